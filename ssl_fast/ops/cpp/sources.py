"""Which sources a native module was built from. setup.py runs this file on its own: it imports the standard library."""

from hashlib import sha256
from pathlib import Path

_CSRC = Path(__file__).parents[3] / "csrc"


def stamp(
    module: str,  # "_cpu" or "_cuda"
) -> str | None:
    """A hash of all sources of the module, for `module.sources`; None where they are not beside the package."""
    bindings = _CSRC / f"bindings{module}.cpp"
    if not bindings.exists():
        return None
    folders = (_CSRC / "core", _CSRC / module.removeprefix("_"))
    digest = sha256()
    for file in (bindings, _CSRC / "ops.h", *sorted(f for folder in folders for f in folder.rglob("*") if f.is_file())):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(_CSRC).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]
