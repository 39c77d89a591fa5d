"""Loads libtorch before the extension module, which is linked to it but does not say where it is."""

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

# What the extension module is linked to, and what comes first.
LIBRARIES = ("libc10.so", "libtorch_cpu.so")

VERSION = "2.11"


def load() -> None:
    """Loads the libtorch of the installed PyTorch, or the one that ``LUTHIER_LIBTORCH`` names.

    PyTorch itself is not imported, which would take a second or two. It may be imported before or after.
    """
    if "torch" in sys.modules:
        return
    folder = _folder()
    try:
        for library in LIBRARIES:
            ctypes.CDLL(str(folder / library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ImportError(f"{folder}: libtorch cannot be loaded: {error}") from error


def _folder() -> Path:
    named = os.environ.get("LUTHIER_LIBTORCH")
    if named:
        return Path(named) / "lib"
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise ImportError(f"luthier needs PyTorch {VERSION}, for its libtorch: pip install 'torch=={VERSION}.*'")
    folder = Path(torch.origin).parent
    found = (folder / "version.py").read_text(encoding="utf-8")
    if f"'{VERSION}." not in found:
        raise ImportError(f"{folder}: expected PyTorch {VERSION}, for its libtorch: pip install 'torch=={VERSION}.*'")
    return folder / "lib"
