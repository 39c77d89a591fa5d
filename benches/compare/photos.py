"""The photos: 500 × 375 as in data sets, and 12 megapixels as from a camera.

Without photos of the user's they are made of the two that come with scikit-learn (china.jpg and flower.jpg, CC BY):
seeded crops, brought to size, with noise such as a sensor's, without which enlarged photos would be far too smooth, and
decode far too fast.
"""

import hashlib
import os
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from measure import say
from problem import Problem

N_SMALL = 96
N_LARGE = 48
SMALL = (500, 375)
LARGE = (4000, 3000)
QUALITY = 90

# Noise in grey levels, chosen so that a photo of 12 megapixels has 3 to 5 MB.
NOISE = {SMALL: 3.0, LARGE: 8.5}


@dataclass(frozen=True)
class Photos:
    """A folder with JPEGs, in order."""

    label: str
    folder: Path
    files: list[Path]


def provide(work: Path, source: Path | None) -> tuple[Photos, Photos]:
    """The small and the large photos below `work`, made if they are not there; `source` is a folder of the user's."""
    if source is None:
        small = _folder(work / "photos-small", lambda folder: _make(folder, N_SMALL, SMALL, _bundled()))
        large = _folder(work / "photos-large", lambda folder: _make(folder, N_LARGE, LARGE, _bundled()))
    else:
        found = _jpegs(source)
        name = f"photos-{_fingerprint(found)}"
        small = _folder(work / f"{name}-small", lambda folder: _copy(folder, _spread(found, N_SMALL)))
        large = _folder(work / f"{name}-large", lambda folder: _enlarge(folder, _spread(found, N_LARGE)))
    files = _jpegs(small)
    sizes = [_size(file) for file in files]
    width, height = (round(statistics.median(side)) for side in zip(*sizes, strict=True))
    return Photos(f"{width} × {height}", small, files), Photos("12 megapixels", large, _jpegs(large))


def _folder(target: Path, fill: Callable[[Path], None]) -> Path:
    """`target`, filled first if it is not there. It appears whole, by one rename."""
    if not target.exists():
        say(f"{target}: making photos")
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        partial.rename(target)
    return target


def _jpegs(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise Problem(f"{folder}: expected photos, found no .jpg or .jpeg file", "without --photos, photos are made")
    return files


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def _fingerprint(files: list[Path]) -> str:
    """Changes with the files' names, sizes and times."""
    stats = [(os.fspath(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:12]


def _spread(files: list[Path], n: int) -> list[Path]:
    """At most `n` of the files, from all over the list: its order is often that of the classes."""
    n = min(n, len(files))
    return [files[i * len(files) // n] for i in range(n)]


def _name(folder: Path, number: int) -> Path:
    return folder / f"photo-{number:03}.jpg"


def _copy(folder: Path, files: list[Path]) -> None:
    for number, file in enumerate(files):
        shutil.copyfile(file, _name(folder, number))


def _bundled() -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def _make(folder: Path, n: int, size: tuple[int, int], photos: list[Image.Image]) -> None:
    """`n` crops of `photos`, each between two thirds of it and the whole, brought to `size`."""
    random = np.random.default_rng(0)
    field = _noise(random, size, NOISE[size])
    for number in range(n):
        photo = photos[number % len(photos)]
        height = photo.height * random.uniform(2 / 3, 1)
        width = height * size[0] / size[1]
        left, top = random.uniform(0, photo.width - width), random.uniform(0, photo.height - height)
        image = photo.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))
        _save(image if random.integers(2) else ImageOps.mirror(image), field, random, _name(folder, number))


def _enlarge(folder: Path, files: list[Path]) -> None:
    """The photos in 12 megapixels, with their proportions."""
    random = np.random.default_rng(0)
    for number, file in enumerate(files):
        with Image.open(file) as image:
            factor = (LARGE[0] * LARGE[1] / (image.width * image.height)) ** 0.5
            size = (round(image.width * factor), round(image.height * factor))
            enlarged = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        _save(enlarged, _noise(random, size, NOISE[LARGE]), random, _name(folder, number))


def _noise(random: np.random.Generator, size: tuple[int, int], strength: float) -> np.ndarray:
    """A field of noise, `[height, width, 3]` f32: most of it common to the colours, the rest their own."""
    width, height = size
    common = random.standard_normal((height, width, 1), dtype=np.float32)
    own = random.standard_normal((height, width, 3), dtype=np.float32)
    return strength * (0.8 * common + 0.6 * own)


def _save(image: Image.Image, field: np.ndarray, random: np.random.Generator, path: Path) -> None:
    """Adds the noise, shifted so that no two photos have the same, and more of it where there is more light."""
    pixels = np.asarray(image, dtype=np.float32)
    shifted = np.roll(field, (int(random.integers(image.height)), int(random.integers(image.width))), axis=(0, 1))
    noisy = pixels + shifted * np.sqrt(0.25 + pixels / 255)
    Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
