"""The package on engines that distribute, each with two workers."""

import os
import signal
import sys
import time
from pathlib import Path

import luthier
import numpy as np
import pytest


def engine(name: str) -> object:
    """The module, or none where nobody asks for it."""
    if os.environ.get("LUTHIER_TEST_ENGINES"):
        return __import__(name)
    return pytest.importorskip(name)


@pytest.fixture(scope="module")
def expected(files: list[Path]) -> dict[str, np.ndarray]:
    """The features of each file."""
    return dict(zip(map(str, files), luthier.Extractor("untrained")(files), strict=True))


def check(found: dict[str, object], expected: dict[str, np.ndarray]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for file, features in expected.items():
        assert np.array_equal(np.asarray(found[file], dtype=np.float32), features), file


def test_daft(photos: Path, expected: dict[str, np.ndarray]) -> None:
    daft = engine("daft")
    import luthier.daft

    images = daft.from_glob_path(f"{photos}/**/*.jpg").with_column("bytes", daft.col("path").download())
    embed = luthier.daft.embed(weights="untrained", concurrency=2, threads=1)
    table = images.with_column("features", embed(daft.col("bytes"))).select("path", "features").to_pydict()
    check({path.removeprefix("file://"): row for path, row in zip(table["path"], table["features"], strict=True)}, expected)
    table = daft.from_pydict({"bytes": [b"no image", None]}).with_column("features", embed(daft.col("bytes"))).to_pydict()
    assert all(np.isnan(np.asarray(row)).all() for row in table["features"])


@pytest.mark.skipif(not os.environ.get("LUTHIER_TEST_ENGINES"), reason="cargo xtask python --engines")
def test_ray_on_two_nodes_of_which_a_worker_dies(photos: Path, expected: dict[str, np.ndarray], tmp_path: Path) -> None:
    import luthier.ray
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, logging_level="error")
    try:
        images = ray.data.read_binary_files([*map(str, expected)] * 20, include_paths=True)
        job = luthier.ray.embed(images, weights="untrained", num_cpus=0.5, concurrency=2, batch_size=16)
        killed = 0
        found: dict[str, object] = {}
        n = 0
        for row in job.iter_rows():
            n += 1
            found[row["path"]] = row["features"]
            if killed == 0:
                killed = kill_a_worker()
        assert killed > 0 and n == 20 * len(expected)
        check(found, expected)
        bad = luthier.ray.embed(ray.data.from_items([{"bytes": b"no image"}]), weights="untrained").take_all()
        assert np.isnan(bad[0]["features"]).all() and bad[0]["error"]
    finally:
        ray.shutdown()
        cluster.shutdown()


def kill_a_worker() -> int:
    """Kills a process in which an actor embeds; its number."""
    for _ in range(100):
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if words.startswith(b"ray::") and b"MapWorker" in words:
                os.kill(int(folder.name), signal.SIGKILL)
                return int(folder.name)
        time.sleep(0.1)
    return 0


@pytest.mark.skipif(not os.environ.get("LUTHIER_TEST_ENGINES"), reason="cargo xtask python --engines")
def test_spark(photos: Path, expected: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    import luthier.spark
    from pyspark.sql import SparkSession

    # Its workers are of this Python, too.
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        images = spark.read.format("binaryFile").load(f"{photos}/*/*.jpg").repartition(2)
        rows = luthier.spark.embed(images, weights="untrained").select("path", "features", "error").collect()
        check({row.path.removeprefix("file:"): row.features for row in rows}, expected)
        assert all(row.error is None for row in rows)
        bad = spark.createDataFrame([(bytearray(b"no image"),)], ["content"])
        row = luthier.spark.embed(bad, weights="untrained").collect()[0]
        assert row.error and np.isnan(row.features).all()
    finally:
        spark.stop()
