"""Features with Spark: each Python worker has its own network.

    images = spark.read.format("binaryFile").load("photos/*/*.jpg")
    luthier.spark.embed(images, precision="auto").write.parquet("features")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, FloatType, StringType, StructField, StructType

if TYPE_CHECKING:
    import pandas as pd


def embed(frame: DataFrame, *, column: str = "content", threads: int = 1, **settings: Any) -> DataFrame:
    """Adds a column ``features``, an array of floats a row, and a column ``error``: why an image cannot be read.

    Parameters
    ----------
    frame : DataFrame
        Rows with the bytes of files in ``column``, as ``spark.read.format("binaryFile")`` gives them.
    threads : int, default 1
        Threads of a network: as many as ``spark.task.cpus``, because each task of an executor has a network.
    **settings
        Those of :class:`luthier.Extractor`.

    ``spark.sql.execution.arrow.maxRecordsPerBatch`` says how many images a call has: 256 or so keep memory small.
    """
    settings = {"threads": threads, **settings}

    def embed_batches(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        from luthier._extractor import Extractor

        extractor = Extractor(**settings)
        for batch in batches:
            features, reasons = extractor.with_reasons([bytes(image or b"") for image in batch[column]])
            errors = [reasons.get(place) for place in range(len(features))]
            yield batch.assign(features=list(features), error=errors)

    added = [StructField("features", ArrayType(FloatType(), containsNull=False)), StructField("error", StringType())]
    return frame.mapInPandas(embed_batches, StructType([*frame.schema.fields, *added]))
