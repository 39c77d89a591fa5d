"""A step of a scikit-learn pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from luthier._extractor import Extractor
from luthier._images import Image


class Embed(TransformerMixin, BaseEstimator):
    """Images → features, as a scikit-learn transformer: ``make_pipeline(luthier.Embed(), LogisticRegression())``.

    It learns nothing, and its input is a sequence of images instead of a matrix. Parameters are those of
    :class:`luthier.Extractor`, and ``errors`` that of its call.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        views: str | Sequence[str] = "squash",
        combine: Literal["mean", "concat"] = "mean",
        pooling: str = "mean",
        decode: Literal["scaled", "exact"] = "scaled",
        precision: str = "fp32",
        device: str = "auto",
        batch: int | None = None,
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_remote: str | None = None,
        errors: Literal["raise", "nan"] = "raise",
    ) -> None:
        self.weights = weights
        self.views = views
        self.combine = combine
        self.pooling = pooling
        self.decode = decode
        self.precision = precision
        self.device = device
        self.batch = batch
        self.threads = threads
        self.cache_dir = cache_dir
        self.cache_remote = cache_remote
        self.errors = errors

    def fit(self, X: Sequence[Image], y: Any = None) -> Embed:
        """Learns nothing."""
        return self

    def transform(self, X: Sequence[Image]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The features of images, ``float32 [n, n_features]``."""
        return self._made()(X, errors=self.errors)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray[Any, Any]:
        """``luthier0``, ``luthier1`` and so on."""
        return np.array([f"luthier{number}" for number in range(self._made().n_features)], dtype=object)

    def _made(self) -> Extractor:
        parameters = self.get_params(deep=False)
        del parameters["errors"]
        made_for, extractor = getattr(self, "_extractor", (None, None))
        if extractor is None or made_for != parameters:
            extractor = Extractor(**parameters)
            self._extractor = (parameters, extractor)
        return extractor

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags
