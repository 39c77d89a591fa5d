"""Features with Ray Data: each actor has its own network, and Ray decides where the actors are.

    import luthier.ray, ray

    images = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
    luthier.ray.embed(images, precision="auto", num_cpus=4, concurrency=8).write_parquet("features")
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray.data

from luthier._extractor import Extractor


def embed(
    dataset: ray.data.Dataset,
    *,
    column: str = "bytes",
    num_cpus: float = 1,
    num_gpus: float = 0,
    concurrency: int | tuple[int, int] = 1,
    batch_size: int = 256,
    **settings: Any,
) -> ray.data.Dataset:
    """Adds a column ``features``, ``float32 [n_features]`` a row, and a column ``error``: why an image cannot be read.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Rows with the bytes of files, or their paths, in ``column``. With files on other machines, read the bytes.
    num_cpus : float, default 1
        Cores of an actor, and the threads of its network.
    num_gpus : float, default 0
        The share of a GPU of an actor; several actors may share one.
    concurrency : int or (least, most), default 1
        How many actors there are. An actor that dies is replaced, and its batch computed again.
    batch_size : int, default 256
        Images of a call.
    **settings
        Those of :class:`luthier.Extractor`.
    """
    settings = {"threads": max(1, int(num_cpus)), "device": "cuda" if num_gpus else "cpu", **settings}
    return dataset.map_batches(
        _Embed,
        fn_constructor_kwargs={"column": column, "settings": settings},
        batch_format="numpy",
        batch_size=batch_size,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        concurrency=concurrency,
    )


class _Embed:
    def __init__(self, column: str, settings: dict[str, Any]) -> None:
        self.column, self.extractor = column, Extractor(**settings)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        features, reasons = self.extractor.with_reasons(
            [b"" if image is None else image for image in batch[self.column]]
        )
        errors = np.array([reasons.get(place) for place in range(len(features))], dtype=object)
        return {**batch, "features": features, "error": errors}
