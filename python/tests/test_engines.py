"""The package on engines that distribute, each with two workers."""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import luthier as run


def engine(name: str) -> object:
    """The module, or none where nobody asks for it."""
    if os.environ.get("LUTHIER_TEST_ENGINES"):
        return __import__(name)
    return pytest.importorskip(name)


@dataclass
class Heap:
    """Photographs, the network for them, and their features by the command line."""

    folder: Path
    settings: dict[str, Any]
    expected: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def heap(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Heap:
    """The drawn pictures; music10 and trained weights, if LUTHIER_TEST_ENGINES says music10."""
    folder, weights = photos, "untrained"
    if os.environ.get("LUTHIER_TEST_ENGINES") == "music10":
        folder, weights = Path(os.environ["LUTHIER_TEST_DATA"]) / "music10", os.environ["LUTHIER_TEST_WEIGHTS"]
    cwd = tmp_path_factory.mktemp("expected")
    extract = ["extract", "--unlabelled", folder, "--weights", weights, "--precision", "auto"]
    ran = run(*extract, cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    names = [row["file"] for row in json.loads((cwd / "features/features.json").read_text())["rows"]]
    expected = dict(zip((str(folder / name) for name in names), np.load(cwd / "features/features.npy"), strict=True))
    return Heap(folder, {"weights": weights, "precision": "auto"}, expected)


def check_shared(heap: Heap, remote: Path, cwd: Path) -> None:
    """That a machine that has nothing finds what the workers have shared."""
    pipeline = ["pipeline", heap.folder, "--weights", heap.settings["weights"], "--precision", "auto", "--json"]
    ran = run(*pipeline, "--cache-remote", remote, cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["images"]["embedded"] == 0, ran.stderr


def check(found: dict[str, object], heap: Heap) -> None:
    """Bit for bit."""
    assert found.keys() == heap.expected.keys()
    for file, features in heap.expected.items():
        assert np.array_equal(np.asarray(found[file], dtype=np.float32), features), file


def test_daft(heap: Heap, tmp_path: Path) -> None:
    daft = engine("daft")
    import luthier.daft

    remote = tmp_path / "shared"
    images = daft.from_glob_path(f"{heap.folder}/**/*.jpg").with_column("bytes", daft.col("path").download())
    embed = luthier.daft.embed(concurrency=2, threads=1, cache_remote=str(remote), **heap.settings)
    table = images.with_column("features", embed(daft.col("bytes"))).select("path", "features").to_pydict()
    check({path.removeprefix("file://"): row for path, row in zip(table["path"], table["features"], strict=True)}, heap)
    check_shared(heap, remote, tmp_path)
    table = daft.from_pydict({"bytes": [b"no image", None]}).with_column("features", embed(daft.col("bytes"))).to_pydict()
    assert all(np.isnan(np.asarray(row)).all() for row in table["features"])


@pytest.mark.skipif(not os.environ.get("LUTHIER_TEST_ENGINES"), reason="cargo xtask python --engines")
def test_ray_on_two_nodes_of_which_a_worker_dies(heap: Heap, tmp_path: Path) -> None:
    import luthier.ray
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, logging_level="error")
    try:
        n_times = 20 if len(heap.expected) < 100 else 1
        images = ray.data.read_binary_files([*heap.expected] * n_times, include_paths=True)
        shared = {"cache_remote": str(tmp_path / "shared"), **heap.settings}
        job = luthier.ray.embed(images, num_cpus=0.5, concurrency=2, batch_size=16, **shared)
        killed = 0
        found: dict[str, object] = {}
        n = 0
        for row in job.iter_rows():
            n += 1
            found[row["path"]] = row["features"]
            if killed == 0:
                killed = kill_a_worker()
        assert killed > 0 and n == n_times * len(heap.expected)
        check(found, heap)
        check_shared(heap, tmp_path / "shared", tmp_path)
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
def test_spark(heap: Heap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import luthier.spark
    from pyspark.sql import SparkSession

    # Its workers are of this Python, too.
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        images = spark.read.format("binaryFile").load(f"{heap.folder}/*/*.jpg").repartition(2)
        shared = {"cache_remote": str(tmp_path / "shared"), **heap.settings}
        rows = luthier.spark.embed(images, **shared).select("path", "features", "error").collect()
        check({row.path.removeprefix("file:"): row.features for row in rows}, heap)
        check_shared(heap, tmp_path / "shared", tmp_path)
        assert all(row.error is None for row in rows)
        bad = spark.createDataFrame([(bytearray(b"no image"),)], ["content"])
        row = luthier.spark.embed(bad, weights="untrained").collect()[0]
        assert row.error and np.isnan(row.features).all()
    finally:
        spark.stop()
