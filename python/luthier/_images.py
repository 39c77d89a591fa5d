"""Images as Python has them, as the files that Luthier reads."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np

if TYPE_CHECKING:
    import PIL.Image

    Image: TypeAlias = Union[str, os.PathLike[str], bytes, PIL.Image.Image, np.ndarray[Any, Any]]
else:
    # Pillow is not needed where nobody has such images.
    Image = Union[str, os.PathLike, bytes, np.ndarray, Any]
"""An image: the path of a file, the bytes of a file, a PIL image, or RGB pixels ``uint8 [height, width, 3]``."""


def files_of(images: Sequence[Image]) -> list[str | bytes]:
    """Paths and bytes. Pixels become an uncompressed file, so that they are treated as those of any other."""
    if isinstance(images, (str, bytes, os.PathLike)):
        raise TypeError(f"expected a list of images, found one: [{images!r:.60}]")
    return [_file_of(image, place) for place, image in enumerate(images)]


def _file_of(image: Image, place: int) -> str | bytes:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if hasattr(image, "convert"):
        return _file_of_pil(image)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise TypeError(f"image {place}: expected a path, bytes, a PIL image or uint8 [height, width, 3], found {found}")
    return _bitmap(pixels)


def _file_of_pil(image: PIL.Image.Image) -> bytes:
    """What the image's own file would be: turned as EXIF says, and transparency and 16 bits left to Luthier."""
    from PIL import Image as PILImage, ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.mode in ("I;16B", "I;16L", "I;16N"):
        turned = PILImage.fromarray(np.asarray(turned).astype(np.uint16))
    if turned.mode in ("LA", "PA", "RGBA", "I;16") or "transparency" in turned.info:
        file = io.BytesIO()
        (turned.convert("RGBA") if turned.mode == "PA" else turned).save(file, "PNG", compress_level=1)
        return file.getvalue()
    if turned.mode in ("F", "I"):
        raise TypeError(f"a PIL image of mode {turned.mode}: convert it, nobody but you knows its range")
    return _bitmap(np.asarray(turned.convert("RGB")))


def _bitmap(pixels: np.ndarray[Any, Any]) -> bytes:
    """A BMP of 24 bits a pixel: rows from the bottom up, blue first, each row filled up to four bytes."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, (3 * width + 3) // 4 * 4), dtype=np.uint8)
    rows[:, : 3 * width] = pixels[::-1, :, ::-1].reshape(height, 3 * width)
    header = struct.pack("<2sIHHI", b"BM", 54 + rows.size, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, rows.size, 2835, 2835, 0, 0)
    return header + info + rows.tobytes()
