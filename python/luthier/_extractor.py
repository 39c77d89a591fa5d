"""Images → features."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from luthier import luthier_native
from luthier._images import Image, files_of
from luthier.luthier_native import Error


class UnreadableImageError(Error):
    """An image that cannot be read. ``place`` is its place among the images, ``reason`` says why."""

    def __init__(self, place: int, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.place, self.name, self.reason = place, name, reason

    def __reduce__(self) -> tuple[type, tuple[int, str, str]]:
        return type(self), (self.place, self.name, self.reason)


class UnreadableImageWarning(UserWarning):
    """An image cannot be read, and its features are NaN."""


class Extractor:
    """ResNet-50 without its top: images → features, those of ``luthier extract`` to the bit.

    Parameters
    ----------
    weights : str or path, default "resnet50-imagenet1k-v1"
        A name that ``luthier weights list`` prints, a .safetensors or .pth file, or "untrained".
    views : str or list of str, default "squash"
        How the network sees an image: "squash", "crop", "pad" and mirrored ones, also "squash@288".
    combine : {"mean", "concat"}, default "mean"
        How the features of several views become one row.
    pooling : {"mean", "gem"}, default "mean"
        How the last maps become features.
    decode : {"scaled", "exact"}, default "scaled"
        How large JPEGs are decoded.
    precision : {"fp32", "bf16", "fp16", "int8", "auto"}, default "fp32"
        The number format of the network; "auto" takes the fastest one that is as accurate.
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}, default "auto"
    batch : int, optional
        Images that go through the network at once.
    threads : int, optional
        Threads that decode and compute; all cores by default.
    cache_dir : path, optional
        A cache such as ``.luthier``: images that it knows do not go through the network, and others are kept there.
    cache_remote : str, optional
        Where machines share features, such as "s3://bucket/cache" or a folder that all of them reach: what one has embedded,
        the others find. What a call has computed is there when it returns.

    The network is loaded by the first call. An extractor can be pickled, so that other processes load their own, and be
    used by several threads, one after the other. Start processes with the method spawn or forkserver: in the child of a
    fork, what was used before does not work any more.
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
    ) -> None:
        self._settings: dict[str, Any] = {
            "weights": None if weights is None else os.fspath(weights),
            "views": views if isinstance(views, str) else ",".join(views),
            "combine": combine,
            "pooling": pooling,
            "decode": decode,
            "precision": precision,
            "device": device,
            "batch": batch,
            "threads": threads,
            "cache_dir": None if cache_dir is None else os.fspath(cache_dir),
            "cache_remote": cache_remote,
        }
        self._native = luthier_native.NativeExtractor(self._settings)

    @property
    def n_features(self) -> int:
        """How many features an image has: 2048, or that for each view if they are concatenated."""
        return self._native.n_features

    def __call__(
        self, images: Sequence[Image], *, errors: Literal["raise", "nan"] = "raise"
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The features of images, ``float32 [n, n_features]``, in their order.

        Parameters
        ----------
        images : sequence
            Paths, bytes of files, PIL images, or RGB pixels ``uint8 [height, width, 3]``, in any mixture.
        errors : {"raise", "nan"}, default "raise"
            What an image that cannot be read does: raises :class:`UnreadableImageError`, or warns and has NaN as features.
        """
        if errors not in ("raise", "nan"):
            raise ValueError(f"errors: expected 'raise' or 'nan', found {errors!r}")
        files = files_of(images)
        features, reasons = self._embed(files)
        for place, reason in reasons.items():
            name = files[place] if isinstance(files[place], str) else f"image {place}"
            if errors == "raise":
                raise UnreadableImageError(place, str(name), reason)
            warnings.warn(f"{name}: {reason}", UnreadableImageWarning, stacklevel=2)
        return features

    def with_reasons(self, images: Sequence[Image]) -> tuple[np.ndarray[Any, np.dtype[np.float32]], dict[int, str]]:
        """The features of images, and why some cannot be read, by their places: their features are NaN."""
        return self._embed(files_of(images))

    def _embed(self, files: list[str | bytes]) -> tuple[np.ndarray[Any, np.dtype[np.float32]], dict[int, str]]:
        data, reasons = self._native.embed(files)
        return np.frombuffer(data, dtype=np.float32).reshape(len(files), self.n_features), dict(reasons)

    def __getstate__(self) -> dict[str, Any]:
        return self._settings

    def __setstate__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._native = luthier_native.NativeExtractor(settings)

    def __repr__(self) -> str:
        named = {name: value for name, value in self._settings.items() if value is not None}
        return f"Extractor({', '.join(f'{name}={value!r}' for name, value in named.items())})"
