"""Images → answers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier import luthier_native
from luthier._images import Image, files_of


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image."""

    answer: str | None
    """The most probable class, or "unknown"; ``None`` for an image that cannot be read."""
    probabilities: dict[str, float]
    """The most probable classes with their probabilities, 0 to 1, the most probable first."""
    distance: float | None = None
    """The distance to the nearest class in standard deviations, with ``keep_known``."""
    error: str | None = None
    """Why the image cannot be read."""


class Predictor:
    """A model that ``luthier pipeline`` or ``luthier train`` wrote, with the network that fits it.

    Parameters
    ----------
    path : str or path
        The model.safetensors.
    weights : str or path, optional
        The network's weights; by default those that the model was trained with, which are looked for.
    cache_dir : path, optional
        A cache such as ``.luthier``: images that it knows do not go through the network.
    cache_remote : str, optional
        Where machines share features, as for :class:`Extractor`.
    device, threads : optional
        As for :class:`Extractor`.
    top_k : int, default 3
        How many classes a prediction names.
    min_confidence : float, optional
        The answer is "unknown" if no class is as probable as this, 0 to 1.
    keep_known : float, optional
        The answer is "unknown" to images that are less like a class than this percentage of known images: 90, 95 or 99.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        weights: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_remote: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        top_k: int = 3,
        min_confidence: float | None = None,
        keep_known: float | None = None,
    ) -> None:
        self._settings: dict[str, Any] = {
            "weights": None if weights is None else os.fspath(weights),
            "cache_dir": cache_dir,
            "cache_remote": cache_remote,
            "device": device,
            "threads": threads,
            "top_k": top_k,
            "min_confidence": min_confidence,
            "keep_known": keep_known,
        }
        self._path = os.fspath(path)
        self._native = luthier_native.NativePredictor(self._path, **self._settings)

    @property
    def classes(self) -> list[str]:
        """The classes, in label order."""
        return self._native.classes

    def __call__(self, images: Sequence[Image]) -> list[Prediction]:
        """Predicts images, named as for :class:`Extractor`, in their order."""
        return [_prediction(found, error) for found, error in self._native.predict(files_of(images))]

    def __getstate__(self) -> tuple[str, dict[str, Any]]:
        return self._path, self._settings

    def __setstate__(self, state: tuple[str, dict[str, Any]]) -> None:
        self._path, self._settings = state
        self._native = luthier_native.NativePredictor(self._path, **self._settings)


def _prediction(found: str | None, error: str | None) -> Prediction:
    if found is None:
        return Prediction(answer=None, probabilities={}, error=error)
    prediction = json.loads(found)
    probabilities = {one["class"]: one["probability"] for one in prediction["predictions"]}
    return Prediction(prediction["answer"], probabilities, prediction.get("distance"))
