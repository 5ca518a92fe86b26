"""Pixels of any depth and number of channels: deep levels become uint8, `.npy` and many-band TIFF files are read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

NPY_MAGIC = b"\x93NUMPY"
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UNIT, _LEAST_OF_BYTES = 1.0, 16.0  # floats up to 1 are shares; those up to 255 are levels when they exceed 16


class UnreadableError(ValueError):
    """A file that is not an image that we take; the message says why, in one line."""


def to_levels(
    values: NDArray[Any],  # any shape, any real dtype
    white: float,
    most: float = 0.0,
) -> NDArray[np.uint8]:
    """Deep pixels scaled to 0..255: uint8 stays, integers by `most`, floats are taken to be in [0, 1] or [0, 255].

    Args:
        values: the pixels.
        white: the value that becomes 255, darker than 0 is cut; 0 takes what the file's depth can hold.
        most: that value for integers; 0 for the dtype's own.

    Raises:
        UnreadableError: floats of another range, or pixels that differ and would all become one level.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "uifb" or not values.size:
        raise UnreadableError(f"pixels of dtype {values.dtype}, expected integers or floating-point numbers")
    floats = np.nan_to_num(values.astype(np.float64), nan=0.0)
    low, high = float(floats.min()), float(floats.max())
    scaled = floats * (255.0 / (white or most or _most(values.dtype, low, high)))
    levels: NDArray[np.uint8] = np.clip(scaled + 0.5, 0, 255).astype(np.uint8)
    if low < high and levels.min() == levels.max():
        raise UnreadableError(f"pixels from {low:g} to {high:g} all become {levels.max()}: set data.white")
    return levels


def _most(dtype: np.dtype[Any], low: float, high: float) -> float:
    if dtype.kind == "b":
        return 1.0
    if dtype.kind in "ui":
        return float(min(np.iinfo(dtype).max, 65535))
    if low < 0 or high > 255 or _UNIT < high < _LEAST_OF_BYTES:
        raise UnreadableError(f"floating-point pixels from {low:g} to {high:g}, expected [0, 1] or [0, 255]")
    return _UNIT if high <= _UNIT else 255.0


def npy_header(content: bytes) -> tuple[tuple[int, ...], Any, int]:
    """(shape, dtype, where the pixels begin) of a `.npy` file's content; nothing is unpickled.

    Raises:
        UnreadableError: no image's shape.
        ValueError: a damaged header.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file)
    if fortran or dtype.hasobject or len(shape) not in (2, 3):
        raise UnreadableError(f"array {dtype} {list(shape)}, expected numbers [H, W] or [H, W, C] in C order")
    return shape, dtype, file.tell()


def read_npy(content: bytes) -> NDArray[Any]:  # [H, W, C]
    """The array of a `.npy` file's content.

    Raises:
        UnreadableError: no image's shape, or cut short.
    """
    shape, dtype, begin = npy_header(content)
    count = int(np.prod(shape, dtype=np.int64))
    if len(content) - begin < count * dtype.itemsize:
        raise UnreadableError(f"{len(content) - begin} bytes of pixels, expected {count * dtype.itemsize}")
    pixels = np.frombuffer(content, dtype, count, begin)
    return pixels.reshape(*shape[:2], -1)


def is_tiff(content: bytes) -> bool:
    """Whether the content is that of a TIFF file."""
    return content.startswith(_TIFF_MAGICS)


def tiff_page(content: bytes) -> Any:
    """The first page of a TIFF file, as tifffile sees it: any number of bands, any depth.

    Raises:
        UnreadableError: tifffile is not installed, or the page is no image.
    """
    try:
        import tifffile
    except ImportError as error:
        raise UnreadableError("a TIFF file of many bands needs tifffile: pip install tifffile") from error
    page = tifffile.TiffFile(io.BytesIO(content)).pages[0]
    if page.axes not in ("YX", "YXS", "SYX"):
        raise UnreadableError(f"TIFF page of axes {page.axes}, expected YX, YXS or SYX")
    return page


def read_tiff(content: bytes) -> NDArray[Any]:  # [H, W, C]
    """All bands of the first page of a TIFF file."""
    page = tiff_page(content)
    pixels = np.asarray(page.asarray())
    if page.axes == "SYX":
        return np.moveaxis(pixels, 0, 2)
    return pixels.reshape(*pixels.shape[:2], -1)
