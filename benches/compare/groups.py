"""The groups: which rows there are, and which of Luthier's rows each is compared with."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import threadpoolctl
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import luthier
import peers
from luthier import LuthierCompare
from measure import Group, Row, Turn, Unit, calibrated, say, timed
from photos import Photos
from problem import Problem

HERE = Path(__file__).parent
INSTRUMENTS = HERE.parent.parent / "fixtures" / "instruments"

# The number formats of the network on a CPU.
PRECISIONS = ("fp32", "bf16", "int8")

# Rows and classes of features; the last needs patience, and is left out of the search.
SIZES = ((1444, 10), (4793, 30), (50_000, 100))
LARGE = 50_000

# A photo of 12 megapixels takes Pillow a tenth of a second.
N_DECODED_LARGE = 12


@dataclass(frozen=True)
class Setting:
    """What all groups need."""

    luthier: Path
    compare: LuthierCompare
    weights: Path
    small: Photos
    large: Photos
    threads: int
    work: Path


def network(setting: Setting) -> Group:
    """Decoded images to features on the CPU: the peers take 8 a call, Luthier divides them as it likes."""
    x = peers.batch(setting.small.files)
    with torch.inference_mode():
        expected = peers.resnet50(setting.weights)(x)
        rows = []
        for precision, networks in peers.networks(setting.weights, x, setting.threads, setting.work).items():
            rival = f"Luthier, {precision}"
            for name, run in networks.items():
                say(f"network: preparing {name}")
                peers.check(run(), expected, name, precision)
                rows.append(Row(name, calibrated(peers.repeated(run, peers.BATCH)), {"": rival}))
            if precision == "fp32":
                rows.append(Row("tch, ResNet-50 as it comes", _asked(setting, "tch", peers.BATCH), {"": rival}))
            rows.append(Row(rival, _asked(setting, "network", "cpu", precision, 0)))
    return Group(f"Network: decoded images to features, {_count(setting.threads)}", rows)


def cuda(setting: Setting) -> Group | None:
    """Decoded images to features on CUDA, 128 a call; nothing without such a device."""
    if not torch.cuda.is_available():
        say("cuda: left out, PyTorch finds no such device")
        return None
    x = peers.batch(setting.small.files)
    run = peers.cuda_network(setting.weights, x)
    with torch.inference_mode():
        peers.check(run(), peers.resnet50(setting.weights)(x), "torch.compile, fp16", "fp16")
    turn = _asked(setting, "network", "cuda:0", "fp16", peers.CUDA_BATCH)
    rows = [
        Row("torch.compile, frozen, fp16", calibrated(peers.repeated(run, peers.CUDA_BATCH)), {"": "Luthier, fp16"}),
        Row("Luthier, fp16", turn),
    ]
    return Group(f"Network on {torch.cuda.get_device_name()}, {peers.CUDA_BATCH} images a call", rows)


def decode(setting: Setting) -> Group:
    """Files to 224 × 224 pixels."""
    rows = []
    for label, files in (
        (setting.small.label, setting.small.files),
        (setting.large.label, setting.large.files[:N_DECODED_LARGE]),
    ):
        exact, scaled = f"Luthier, exact, {label}", f"Luthier, scaled, {label}"
        full = partial(timed, len(files), partial(peers.pillow_full, files))
        draft = partial(timed, len(files), partial(peers.pillow_draft, files))
        turbo_full = partial(timed, len(files), partial(peers.turbo_full, files))
        turbo_scaled = partial(timed, len(files), partial(peers.turbo_scaled, files))
        rows += [
            Row(f"Pillow, {label}", full, {"exact": exact, "scaled": scaled}),
            Row(f"Pillow, draft, {label}", draft, {"scaled": scaled}),
            Row(f"libjpeg-turbo, {label}", turbo_full, {"exact": exact}),
            Row(f"libjpeg-turbo, scaled, {label}", turbo_scaled, {"scaled": scaled}),
            Row(exact, partial(setting.compare.ask, "decode", "exact", 1, *files)),
            Row(scaled, partial(setting.compare.ask, "decode", "scaled", 1, *files)),
        ]
    return Group("Decoding: JPEG files to 224 × 224 pixels, one thread", rows)


def extract(setting: Setting) -> Group:
    """Files to features, and the network alone for comparison: what decoding costs beside it."""
    torch.set_num_threads(setting.threads)
    model = peers.resnet50(setting.weights).to(memory_format=torch.channels_last)
    rows = []
    for photos in (setting.small, setting.large):
        files = photos.files
        rivals = {precision: f"Luthier, {precision}, {photos.label}" for precision in PRECISIONS}
        python = partial(timed, len(files), partial(peers.pipeline, model, files))
        rows.append(Row(f"torchvision, {photos.label}", python, rivals))
        for precision, name in rivals.items():
            rows.append(Row(name, partial(setting.compare.ask, "extract", "cpu", precision, setting.threads, 1, photos.folder)))
    for precision in PRECISIONS:
        rivals = {photos.label: f"Luthier, {precision}, {photos.label}" for photos in (setting.small, setting.large)}
        rows.append(
            Row(f"Luthier's network alone, {precision}", _asked(setting, "network", "cpu", precision, 0), rivals)
        )
    return Group(f"Extraction: JPEG files to features, {_count(setting.threads)}", rows)


def predict(setting: Setting) -> Group:
    """One photo, each time in a new process, from its start to its answer."""
    model = _models(setting)
    rows = []
    for photos in (setting.small, setting.large):
        photo = photos.files[0]
        python: list[object] = [sys.executable, HERE / "predict.py", setting.weights, model, photo, setting.threads]
        rust: list[object] = [setting.luthier, "predict", "--model-path", setting.work / "models" / "model.safetensors"]
        rust += ["--image-path", photo, "--weights", setting.weights, "--threads", setting.threads]
        # The two print in layouts of their own, but both name the likeliest class before all others.
        likeliest = _run(setting, python).split()[0]
        if f" {likeliest} " not in _run(setting, rust).split("%")[0]:
            say(f"warning: {photo}: {likeliest} by scikit-learn, and another class by Luthier")
        rival = f"Luthier, {photos.label}"
        rows += [
            Row(
                f"torchvision and scikit-learn, {photos.label}",
                partial(timed, 1, partial(_run, setting, python)),
                {"": rival},
            ),
            Row(rival, partial(timed, 1, partial(_run, setting, rust))),
        ]
    title = f"Prediction: one photo, from the start of the process to its answer, {_count(setting.threads)}"
    return Group(title, rows, Unit.SECONDS)


def project(setting: Setting) -> Group:
    """Scaler and PCA for 98 % of the variance, fitted to features as a network gives them."""
    _limit_threads(setting.threads)
    rows = []
    for n, classes in SIZES:
        x, _ = _features(setting, n, classes)
        rival = f"Luthier, {n} × 2048"
        for name, data, solver in (
            ("f32", x, "auto"),
            ("f32, covariance_eigh", x, "covariance_eigh"),
            ("f64", x.astype(np.float64), "auto"),
        ):
            pipeline = make_pipeline(StandardScaler(), PCA(0.98, svd_solver=solver))
            fit = partial(timed, 1, partial(pipeline.fit, data))
            rows.append(Row(f"scikit-learn, {name}, {n} × 2048", fit, {"": rival}))
        rows.append(Row(rival, partial(setting.compare.ask, "project", n, classes, setting.threads)))
    return Group(f"Scaler and PCA(0.98), {_count(setting.threads)}", rows, Unit.FIT)


def regress(setting: Setting) -> Group:
    """Logistic regression with C = 1 on the components, to the same gradient."""
    _limit_threads(setting.threads)
    rows = []
    for n, classes in SIZES:
        x, y = _features(setting, n, classes)
        z = make_pipeline(StandardScaler(), PCA(0.98)).fit_transform(x.astype(np.float64))
        for tolerance in (1e-4, 1e-6) if n < LARGE else (1e-4,):
            label = f"gradient {tolerance:.0e}, {n} × {z.shape[1]}, {classes} classes"
            rival = f"Luthier, {label}"
            for name, data in (("f32", z.astype(np.float32)), ("f64", z)):
                regression = LogisticRegression(C=1.0, tol=tolerance, max_iter=10_000)
                fit = partial(timed, 1, partial(regression.fit, data, y))
                rows.append(Row(f"scikit-learn, {name}, {label}", fit, {"": rival}))
            rows.append(Row(rival, partial(setting.compare.ask, "regress", n, classes, tolerance, setting.threads)))
    return Group(f"Logistic regression, {_count(setting.threads)}", rows, Unit.FIT)


def search(setting: Setting) -> Group:
    """Nine values of C in five folds. Luthier fits scaler and components anew in each fold, scikit-learn's
    LogisticRegressionCV does not: it knows them from all images."""
    _limit_threads(setting.threads)
    rows = []
    for n, classes in SIZES:
        if n >= LARGE:
            continue
        x, y = _features(setting, n, classes)
        rival = f"Luthier, {n} × 2048, {classes} classes"
        for name, tolerance, iterations in (("as it comes", 1e-4, 100), ("gradient 1e-06", 1e-6, 10_000)):
            search = LogisticRegressionCV(
                Cs=np.logspace(-4, 4, 9),
                cv=5,
                scoring="neg_log_loss",
                tol=tolerance,
                max_iter=iterations,
                l1_ratios=(0.0,),
                use_legacy_attributes=False,
            )
            fit = partial(timed, 1, partial(make_pipeline(StandardScaler(), PCA(0.98), search).fit, x, y))
            rows.append(Row(f"scikit-learn, {name}, {n} × 2048, {classes} classes", fit, {"": rival}))
        rows.append(Row(rival, partial(setting.compare.ask, "search", n, classes, setting.threads)))
    return Group(f"The choice of C and the model, from features, {_count(setting.threads)}", rows, Unit.FIT)


GROUPS: dict[str, Callable[[Setting], Group | None]] = {
    "network": network,
    "cuda": cuda,
    "decode": decode,
    "extract": extract,
    "predict": predict,
    "project": project,
    "regress": regress,
    "search": search,
}


def _features(setting: Setting, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic features `f32 [n, 2048]` and their labels: Luthier's own."""
    path = setting.work / f"features-{n}-{classes}.f32"
    setting.compare.ask("features", n, classes, path)
    return np.fromfile(path, dtype=np.float32).reshape(n, 2048), np.arange(n) % classes


def _limit_threads(threads: int) -> None:
    """For numpy's and scipy's BLAS; a group lasts as long as the limit."""
    threadpoolctl.threadpool_limits(threads)
    # Those who ask for less than convergence know it.
    warnings.simplefilter("ignore", ConvergenceWarning)


def _count(threads: int) -> str:
    return f"{threads} threads" if threads > 1 else "one thread"


def _asked(setting: Setting, *request: object) -> Callable[[], Turn]:
    """A calibrated turn of Luthier's, asked for by REQUEST THREADS REPETITIONS."""
    say(f"preparing Luthier: {' '.join(map(str, request))}")
    return calibrated(lambda repetitions: setting.compare.ask(*request, setting.threads, repetitions))


def _run(setting: Setting, command: Sequence[object]) -> str:
    """Runs a program in the work folder, and returns what it prints."""
    words = list(map(str, command))
    done = subprocess.run(
        words, cwd=setting.work, env=luthier.environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Problem(f"{' '.join(words)}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _models(setting: Setting) -> Path:
    """Trains Luthier's model on the demo's drawings, and scikit-learn's on the same features; returns the latter."""
    say("predict: training on fixtures/instruments")
    command: list[object] = [
        setting.luthier,
        "pipeline",
        "--quiet",
        "--weights",
        setting.weights,
        "--threads",
        setting.threads,
    ]
    command += ["--train-dir", INSTRUMENTS / "train", "--test-dir", INSTRUMENTS / "test"]
    command += ["--out", setting.work, "--cache-dir", setting.work / ".luthier"]
    _run(setting, command)
    folder = setting.work / "features"
    x, y = np.load(folder / "train_features.npy"), np.load(folder / "train_labels.npy")
    classes = np.array(json.loads((folder / "features.json").read_text())["classes"])
    model = make_pipeline(StandardScaler(), PCA(0.98, svd_solver="full"), LogisticRegression(C=1.0, max_iter=5000))
    path = setting.work / "scikit-learn.joblib"
    joblib.dump(model.fit(x, classes[y]), path)
    return path
