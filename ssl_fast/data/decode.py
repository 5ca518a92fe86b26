"""Image files to uint8 arrays; whatever a wrong or hostile file holds, it ends in one `UnreadableError`."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # no EPS, nor anything else that runs a program


class UnreadableError(ValueError):
    """A file that is not an image that we take; the message says why, in one line."""


@dataclass(frozen=True)
class Limits:
    """What a file may cost: bytes on disk, and pixels of the picture, looked up in its header before it is decoded."""

    max_bytes: int
    max_pixels: int


def read_bytes(path: Path, limits: Limits) -> bytes:
    """The content of a regular file within the limit.

    Raises:
        UnreadableError: no such file, no regular file, empty or too large.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UnreadableError("not a regular file")
        if not 0 < size <= limits.max_bytes:
            raise UnreadableError(f"{size} bytes, expected 1 to {limits.max_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableError(_reason(error)) from error


def image_size(content: bytes, limits: Limits) -> tuple[int, int]:
    """(H, W) of the upright picture, from the header alone.

    Raises:
        UnreadableError: no image that we take, or too many pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = _open(content, limits)
            turned = _orientation(image) in _TURNED
        except UnreadableError:
            raise
        except Exception as error:
            raise UnreadableError(_reason(error)) from error
    return (image.width, image.height) if turned else (image.height, image.width)


def decode(content: bytes, channels: int, limits: Limits) -> NDArray[np.uint8]:  # [H, W, channels]
    """The first frame of an image file, turned upright by its EXIF, in RGB (3 channels) or grey (1).

    16-bit pixels are scaled, floating-point ones are taken to be in [0, 1] (or [0, 255] when larger ones occur), CMYK
    and palettes are converted, transparency is dropped.

    Raises:
        UnreadableError: no image that we take, damaged, cut short, or too many pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; a file that decodes is good
        try:
            image = _upright(_open(content, limits))
            array = np.array(_eight_bit(image).convert("L" if channels == 1 else "RGB"))
        except UnreadableError:
            raise
        except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error and more on junk
            raise UnreadableError(_reason(error)) from error
    return array.reshape(*array.shape[:2], channels)


_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # orientations that swap width and height


def _open(content: bytes, limits: Limits) -> Any:
    from PIL import Image

    image = Image.open(io.BytesIO(content), formats=_FORMATS)
    pixels = image.width * image.height
    if not 0 < pixels <= limits.max_pixels:
        raise UnreadableError(f"{image.width} x {image.height} pixels, expected at most {limits.max_pixels}")
    return image


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    image.load()
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _orientation(image: Any) -> Any:
    """EXIF orientation; 1, upright, where the metadata are damaged or absent: the pixels may be good."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1


def _eight_bit(image: Any) -> Any:
    """Scales deep images: Pillow's own conversion from 16 bits cuts everything above 255."""
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values)
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
    else:
        scale = 255.0 / 65535.0
    return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]
