"""Members of a .npz file: memory-mapped where they are stored without compression, read otherwise; never unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Members = dict[str, NDArray[Any]]

_LOCAL_HEADER = 30  # bytes of a zip member's local header before its name and extra field


def open_npz(path: Path, argument: str) -> Members:
    """The arrays of a .npz by name.

    Args:
        path: the file.
        argument: what the user called it, for the errors.

    Raises:
        ValueError: no such file, not a .npz, or a member holds Python objects.
    """
    if not path.is_file():
        raise ValueError(f"{argument}: no file {path}" if str(path) != "." else f"{argument}: expected a .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {info.filename.removesuffix(".npy"): _member(archive, info, path) for info in members}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{argument}: {path} is not a readable .npz of plain arrays: {error}") from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    with archive.open(info) as file:
        if info.compress_type != zipfile.ZIP_STORED:
            plain: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            return plain
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(file)
        header = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python objects")
    expected = header + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if expected != info.file_size:
        raise ValueError(f"{info.filename} is {info.file_size} bytes, its header says {expected}")
    if 0 in shape:
        return np.zeros(shape, dtype)
    offset = _content_offset(path, info) + header
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")


def _content_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: the local header's own lengths count, not the directory's."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + _LOCAL_HEADER + name + extra
