"""Features with Daft: a function of a column of bytes.

    images = daft.from_glob_path("photos/**/*.jpg").with_column("bytes", daft.col("path").download())
    images.with_column("features", luthier.daft.embed(precision="auto")(daft.col("bytes")))
"""

from __future__ import annotations

from typing import Any

import daft

from luthier._extractor import Extractor


def embed(*, concurrency: int = 1, num_cpus: float | None = None, num_gpus: float = 0, **settings: Any) -> Any:
    """A function of a column of bytes of files: their features, an embedding of ``float32``. What cannot be read has NaN.

    Parameters
    ----------
    concurrency : int, default 1
        How many networks there are.
    num_cpus, num_gpus : float
        What Daft reserves for each; ``num_cpus`` are also the threads of a network.
    **settings
        Those of :class:`luthier.Extractor`.
    """
    if num_cpus is not None:
        settings = {"threads": max(1, int(num_cpus)), **settings}
    n_features = Extractor(**settings).n_features
    embedding = daft.DataType.embedding(daft.DataType.float32(), n_features)

    @daft.cls(max_concurrency=concurrency, cpus=num_cpus, gpus=num_gpus)
    class Embed:
        def __init__(self) -> None:
            self.extractor = Extractor(**settings)

        @daft.method.batch(return_dtype=embedding)
        def __call__(self, images: daft.Series) -> Any:
            # A missing image is one that cannot be read.
            features, _ = self.extractor.with_reasons([image or b"" for image in images.to_pylist()])
            return features

    return Embed()
