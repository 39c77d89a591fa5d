"""What tests share: pictures, and the command line to compare with."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("drum", "harp", "lute")


def picture(path: Path, label: int, number: int) -> None:
    """Stripes in the colour and direction of a class."""
    random = np.random.default_rng(100 * label + number)
    y, x = np.mgrid[:48, :64]
    stripes = (x * (label == 0) + y * (label == 1) + (x + y) * (label == 2)) // 4 % 2
    pixels = np.stack([120 * stripes, 60 + 0 * x, 255 - 120 * stripes], axis=-1)
    pixels = np.roll(pixels, label, axis=-1) + random.integers(0, 30, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of each class."""
    folder = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(CLASSES):
        for number in range(8):
            picture(folder / name / f"{number}.jpg", label, number)
    return folder


@pytest.fixture(scope="session")
def files(photos: Path) -> list[Path]:
    """All pictures, in order."""
    return sorted(photos.rglob("*.jpg"))


def luthier(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command ``luthier`` of this package."""
    environment = {name: value for name, value in os.environ.items() if name == "LUTHIER_LIBTORCH" or not name.startswith("LUTHIER_")}
    program = "import sys; from luthier._command import main; sys.argv[0] = 'luthier'; sys.exit(main())"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
