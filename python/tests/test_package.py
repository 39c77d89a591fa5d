"""The package beside the command line."""

import io
import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import luthier
import numpy as np
import pytest
from conftest import CLASSES, luthier as run
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def rotated() -> Image.Exif:
    """That a picture lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def transparent(image: Image.Image) -> Image.Image:
    """Half of the picture."""
    alpha = Image.linear_gradient("L").resize(image.size)
    image = image.copy()
    image.putalpha(alpha)
    return image


@pytest.fixture(scope="session")
def extractor() -> luthier.Extractor:
    """The network without training."""
    return luthier.Extractor("untrained")


@pytest.fixture(scope="session")
def features(extractor: luthier.Extractor, files: list[Path]) -> np.ndarray:
    """Those of all pictures."""
    return extractor(files)


def test_features_are_those_of_the_command_line(
    photos: Path, files: list[Path], features: np.ndarray, tmp_path: Path
) -> None:
    done = run("extract", photos, "--unlabelled", "--weights", "untrained", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [row["file"] for row in json.loads((tmp_path / "out/features.json").read_text())["rows"]]
    expected = dict(zip(names, np.load(tmp_path / "out/features.npy"), strict=True))
    assert features.dtype == np.float32 and features.shape == (24, 2048)
    for file, row in zip(files, features, strict=True):
        assert np.array_equal(row, expected[str(file.relative_to(photos))]), file


def test_images_come_in_every_form(extractor: luthier.Extractor, files: list[Path], features: np.ndarray) -> None:
    with Image.open(files[1]) as image:
        pil = image.copy()
    forms = [str(files[0]), pil, np.asarray(pil), files[3].read_bytes(), memoryview(files[4].read_bytes())]
    found = extractor(forms)
    assert np.array_equal(found, features[[0, 1, 1, 3, 4]])
    # What a PIL image leaves to whoever reads it: which way is up, and what is transparent.
    for changed, options in ((pil, {"exif": rotated()}), (transparent(pil), {}), (pil.convert("CMYK"), {"format": "TIFF"})):
        file = io.BytesIO()
        changed.save(file, **{"format": "PNG", **options})
        same = Image.open(io.BytesIO(file.getvalue()))
        assert np.array_equal(extractor([same]), extractor([file.getvalue()])), changed.mode
    # 16 bits, in both orders of bytes.
    deep = np.asarray(pil.convert("L")).astype(np.uint16) * 257
    for kind, order in (("I;16", "<u2"), ("I;16B", ">u2")):
        file = io.BytesIO()
        Image.frombytes(kind, pil.size, deep.astype(order).tobytes()).save(file, format="TIFF")
        same = Image.open(io.BytesIO(file.getvalue()))
        assert np.array_equal(extractor([same]), extractor([file.getvalue()])), same.mode
    odd = np.asarray(pil)[:, :33]
    assert np.array_equal(extractor([odd]), extractor([Image.fromarray(odd)]))
    assert extractor([]).shape == (0, 2048)


def test_what_is_no_image_is_named(extractor: luthier.Extractor, files: list[Path], features: np.ndarray) -> None:
    with pytest.raises(luthier.UnreadableImageError, match=r"^nowhere\.jpg: No such file") as caught:
        extractor([files[0], "nowhere.jpg"])
    assert caught.value.place == 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.place) == (str(caught.value), 1)
    with pytest.warns(luthier.UnreadableImageWarning, match="image 1: "):
        found = extractor([files[0], b"no image"], errors="nan")
    assert np.array_equal(found[0], features[0]) and np.isnan(found[1]).all()
    with pytest.raises(TypeError, match=r"expected a list of images, found one: \['a\.jpg'\]"):
        extractor("a.jpg")
    with pytest.raises(TypeError, match=r"image 0: expected .*, found float64 \[2, 2\]"):
        extractor([np.zeros((2, 2))])


def test_settings_have_the_words_of_the_command_line(files: list[Path]) -> None:
    assert luthier.Extractor("untrained", views=["squash", "pad"], combine="concat").n_features == 4096
    with pytest.raises(ValueError, match="views: expected squash, .*, found sqash"):
        luthier.Extractor("untrained", views="sqash")
    with pytest.raises(ValueError, match="precision: "):
        luthier.Extractor("untrained", precision="fp64")
    with pytest.raises(luthier.Error, match="resnet18"):
        luthier.Extractor("resnet18")
    with pytest.raises(luthier.Error, match="^device cuda:7: "):
        luthier.Extractor("untrained", device="cuda:7")


def test_extractors_are_pickled_and_used_by_threads(
    extractor: luthier.Extractor, files: list[Path], features: np.ndarray
) -> None:
    copy = pickle.loads(pickle.dumps(extractor))
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(copy(files[:4]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(np.array_equal(one, features[:4]) for one in found)


def in_child(extractor: luthier.Extractor, files: list[Path]) -> str:
    """The shape of the features, or the error."""
    try:
        return str(extractor(files).shape)
    except luthier.Error as error:
        return str(error)


def test_other_processes_have_their_own(extractor: luthier.Extractor, files: list[Path]) -> None:
    extractor(files[:1])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(in_child, (extractor, files[:2])) == "(2, 2048)"
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(in_child, (extractor, files[:2])).startswith("used before this process was forked")


def test_the_interpreter_goes_on_meanwhile(extractor: luthier.Extractor, files: list[Path]) -> None:
    counted, is_over = 0, threading.Event()
    thread = threading.Thread(target=lambda: (extractor(files * 4), is_over.set()))
    thread.start()
    while not is_over.wait(0.001):
        counted += 1
    thread.join()
    assert counted > 10


def test_ctrl_c_ends_an_extraction(files: list[Path]) -> None:
    program = f"""
import luthier, sys
extractor = luthier.Extractor("untrained")
extractor({[str(files[0])]!r})
try:
    print("ready", flush=True)
    extractor({[str(file) for file in files]!r} * 1000)
except KeyboardInterrupt:
    print("interrupted", extractor({[str(files[0])]!r}).shape)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate()[0] == "interrupted (1, 2048)\n"


def test_a_step_of_scikit_learn(files: list[Path], features: np.ndarray) -> None:
    labels = [file.parent.name for file in files]
    model = make_pipeline(luthier.Embed("untrained"), LogisticRegression(max_iter=1000))
    model.fit(files, labels)
    assert model.score(files, labels) > 0.9
    assert np.array_equal(luthier.Embed("untrained").fit_transform(files[:3]), features[:3])
    step = luthier.Embed("untrained").set_params(views="pad")
    assert not np.array_equal(step.transform(files[:3]), features[:3])


def test_the_transformer_follows_scikit_learns_rules() -> None:
    from sklearn.utils.estimator_checks import estimator_checks_generator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checks = list(estimator_checks_generator(luthier.Embed("untrained")))
        for _, check in checks:
            check(luthier.Embed("untrained"))
    # The others are for estimators that take a matrix.
    assert [check.func.__name__ for _, check in checks] == ["check_estimator_cloneable"]


def test_the_pipeline_and_its_model(photos: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = luthier.pipeline(photos, weights="untrained", test_fraction=0.3)
    assert result.test is not None and 0.5 < result.test["accuracy"] <= 1
    assert [stage["status"] for stage in result.summary["stages"]] == ["ran"] * 9
    again = luthier.pipeline(photos, weights="untrained", test_fraction=0.3)
    assert {stage["status"] for stage in again.summary["stages"]} == {"fresh"}
    # An argument stands above a file, also where it is false.
    (tmp_path / "luthier.toml").write_text("[features]\nwhiten = true\n")
    again = luthier.pipeline(photos, weights="untrained", test_fraction=0.3, whiten=False)
    assert {stage["status"] for stage in again.summary["stages"]} == {"fresh"}
    (tmp_path / "luthier.toml").unlink()
    printed = run("pipeline", photos, "--weights", "untrained", "--test-fraction", 0.3, "--json", cwd=tmp_path)
    assert json.loads(printed.stdout)["test"] == result.test

    table = result.predictions()
    assert len(table) == result.test["n"] and {f"p({name})" for name in CLASSES} < set(table.columns)
    assert (table["true_class"] == table["predicted_class"]).mean() == pytest.approx(result.test["accuracy"])
    assert result.confusion().to_numpy().sum() == result.test["n"]
    assert list(result.suspects().columns)[:3] == ["split", "file", "class"]
    assert f"{result.test['accuracy']:.4f}" in result._repr_html_()

    predictor = luthier.Predictor(result.model, cache_dir=".luthier")
    assert predictor.classes == list(CLASSES)
    printed = run("predict", *files[:3], "--format", "json", cwd=tmp_path)
    expected = [json.loads(line)["answer"] for line in printed.stdout.splitlines()]
    found = pickle.loads(pickle.dumps(predictor))([*files[:3], "nowhere.jpg"])
    assert [one.answer for one in found] == [*expected, None]
    assert found[3].error is not None and "No such file" in found[3].error
    careful = luthier.Predictor(result.model, keep_known=90)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert careful([noise])[0].answer == "unknown"


def test_errors_of_the_pipeline_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(luthier.Error) as caught:
        luthier.pipeline("nowhere")
    printed = run("pipeline", "nowhere", cwd=tmp_path)
    assert printed.returncode == 1 and printed.stderr.strip() == f"error: {caught.value}"
    with pytest.raises(luthier.Error, match="--dry-run gives no result"):
        luthier.pipeline("nowhere", dry_run=True)
    with pytest.raises(luthier.Error, match="unexpected argument '--varianc'"):
        luthier.pipeline("nowhere", varianc=0.9)
    with pytest.raises(ValueError, match="exclude: expected values without commas, found 'Smith, John/'"):
        luthier.pipeline("nowhere", exclude=["*.gif", "Smith, John/"])
    assert run("pipeline", "--varianc", 0.9, cwd=tmp_path).returncode == 2
    assert run("--version", cwd=tmp_path).stdout.startswith("luthier 0.")
