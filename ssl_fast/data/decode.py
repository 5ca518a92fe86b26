"""Image files to uint8 arrays; whatever a wrong or hostile file holds, it ends in one `UnreadableError`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.bands import (
    NPY_MAGIC,
    UnreadableError,
    is_tiff,
    npy_header,
    read_npy,
    read_tiff,
    tiff_page,
    to_levels,
)
from ssl_fast.data.quiet import quiet

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # no EPS, nor anything else that runs a program


@dataclass(frozen=True)
class Limits:
    """What a file may cost, and how deep pixels are read.

    Args:
        max_bytes: of the file.
        max_pixels: of the picture, looked up in its header before it is decoded.
        white: the value of 16-bit and floating-point pixels that becomes 255; 0: what the file's depth can hold.
    """

    max_bytes: int
    max_pixels: int
    white: float = 0.0


def read_bytes(path: Path, limits: Limits) -> bytes:
    """The content of a regular file within the limit.

    Raises:
        UnreadableError: no such file, no regular file, empty or too large.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UnreadableError("not a regular file")
        check_bytes(size, limits)
        return path.read_bytes()
    except OSError as error:
        raise UnreadableError(_reason(error)) from error


def check_bytes(size: int, limits: Limits) -> None:
    """Raises UnreadableError unless a file of `size` bytes is within the limit."""
    if not 0 < size <= limits.max_bytes:
        raise UnreadableError(f"{size} bytes, expected 1 to {limits.max_bytes} (data.max_bytes)")


def image_size(content: bytes, limits: Limits, channels: int = 3) -> tuple[int, int]:
    """(H, W) of the upright picture, from the header alone.

    Raises:
        UnreadableError: no image that we take, or too many pixels.
    """
    with quiet:
        try:
            if content.startswith(NPY_MAGIC):
                return _checked(npy_header(content)[0][:2], limits)
            if _many_bands(content, channels):
                page = tiff_page(content)
                return _checked((page.imagelength, page.imagewidth), limits)
            image = _open(content, limits)
            turned = _orientation(image) in _TURNED
        except UnreadableError:
            raise
        except Exception as error:
            raise UnreadableError(_reason(error)) from error
    return (image.width, image.height) if turned else (image.height, image.width)


def decode(
    content: bytes, channels: int, limits: Limits, shrink: int = 1
) -> NDArray[np.uint8]:  # [H, W, channels], or [ceil(H / shrink), ceil(W / shrink), channels]
    """The first frame of an image file, turned upright by its EXIF, in RGB (3 channels), grey (1) or its own bands (n).

    Deep pixels are scaled (`Limits.white`); CMYK, LAB and palettes are converted; transparency is dropped, but where
    the colours under it are one all over, the shape that it draws is put on the opposite ground. Other numbers of
    channels must be the file's: `.npy` [H, W, C], bands of a TIFF file, or RGBA, CMYK and LA. `shrink` (1, 2, 4 or 8)
    is for JPEGs, whose cosine transform can be inverted at a fraction of the size; other files ignore it.

    Raises:
        UnreadableError: no image that we take, damaged, cut short, too many pixels, or other channels.
    """
    with quiet:
        try:
            pixels = _pixels(content, channels, limits, shrink)
        except UnreadableError:
            raise
        except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error and more on junk
            raise UnreadableError(_reason(error)) from error
    return pixels


_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # orientations that swap width and height
_BITS, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2  # TIFF tags, and a value of the second


def _pixels(content: bytes, channels: int, limits: Limits, shrink: int) -> NDArray[np.uint8]:  # [H, W, channels]
    if content.startswith(NPY_MAGIC):
        _checked(npy_header(content)[0][:2], limits)
        return _fitted(to_levels(read_npy(content), limits.white), channels)
    if _many_bands(content, channels):
        page = tiff_page(content)
        _checked((page.imagelength, page.imagewidth), limits)
        return _fitted(to_levels(read_tiff(content), limits.white), channels)
    image = _open(content, limits)
    if shrink > 1 and image.width >= shrink and image.height >= shrink:
        image.draft(None, (image.width // shrink, image.height // shrink))
    image = _eight_bit(_upright(image), limits)
    if channels not in (1, 3):
        return _fitted(np.array(image).reshape(image.height, image.width, -1), channels)
    image, mode = _without_alpha(image), "L" if channels == 1 else "RGB"
    array = np.array(image if image.mode == mode else image.convert(mode))  # `convert` copies what is right already
    return array.reshape(*array.shape[:2], channels)


def _many_bands(content: bytes, channels: int) -> bool:
    """Whether Pillow is passed by: it reads at most four bands, and those in eight bits alone."""
    return channels not in (1, 3) and is_tiff(content)


def _fitted(
    pixels: NDArray[np.uint8],  # [H, W, C]
    channels: int,
) -> NDArray[np.uint8]:  # [H, W, channels]
    from PIL import Image

    if pixels.shape[2] == 1 and channels == 3:
        pixels = np.repeat(pixels, 3, axis=2)
    elif pixels.shape[2] == 3 and channels == 1:
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
    if pixels.shape[2] != channels:
        raise UnreadableError(f"{pixels.shape[2]} channels, expected {channels}")
    return np.array(pixels)  # writable, and free of the file's content


def _open(content: bytes, limits: Limits) -> Any:
    from PIL import Image, UnidentifiedImageError

    if (most := Image.MAX_IMAGE_PIXELS) is not None and most < limits.max_pixels:
        Image.MAX_IMAGE_PIXELS = limits.max_pixels  # Pillow's own limit, of 89 million, gives way to the user's
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise UnreadableError(f"many more pixels than {limits.max_pixels} (data.max_pixels)") from error
    except UnidentifiedImageError as error:  # its message holds an address, which changes from run to run
        raise UnreadableError(f"cannot identify the content as {', '.join(_FORMATS)}") from error
    _checked((image.height, image.width), limits)
    return image


def _checked(size: tuple[int, ...], limits: Limits) -> tuple[int, int]:
    height, width = size
    if not 0 < height * width <= limits.max_pixels:
        expected = f"expected 1 to {limits.max_pixels} (data.max_pixels)"
        raise UnreadableError(f"{width} x {height} pixels, {expected}")
    return height, width


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


def _eight_bit(image: Any, limits: Limits) -> Any:
    """Scales deep images: Pillow's own conversion from 16 bits cuts everything above 255."""
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    tags = getattr(image, "tag_v2", {})
    bits = int((tags.get(_BITS) or (16,))[0])
    signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    most = 0.0 if image.mode == "F" else float(2 ** min(bits - (signed and bits <= 16), 16) - 1)
    return Image.fromarray(to_levels(np.asarray(image), limits.white, most))


def _without_alpha(image: Any) -> Any:
    """The colours; where they are one all over, the shape in the alpha channel, on the opposite ground."""
    from PIL import Image

    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    layers = image.convert("RGBA")
    colour, alpha = layers.getextrema()[:3], layers.getextrema()[3]
    if alpha[0] == alpha[1] or any(low < high for low, high in colour):
        return image
    ground = 255 if sum(low for low, _ in colour) < 3 * 128 else 0
    return Image.alpha_composite(Image.new("RGBA", image.size, (ground, ground, ground, 255)), layers)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]
