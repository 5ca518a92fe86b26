"""Processes forked from one that has imported what recipes and ranks need: scripts, and what tests/ranks.py starts.

Torch, timm and Hydra take seconds to import, which is most of what a recipe on tiny data costs. The server has only
imported, so a script finds what it would find in a fresh interpreter. A process has one server, whoever asks first.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

_IMPORTS = ["__main__", "pytest", "timm", "torchvision.transforms.v2", "hydra", "sklearn.linear_model"]
_IMPORTS += ["torch._inductor.compile_fx", "open_clip", "ssl_fast.ops.margin_head", "tests.forked", "tests.ranks"]


def prepare_server() -> None:
    """Says what the server imports when it starts."""
    multiprocessing.set_forkserver_preload(_IMPORTS)


def run_script(script: Path, *arguments: str, folder: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """`python script *arguments` in `folder`: its exit code and what it said."""
    prepare_server()
    streams = [folder / f".{script.stem}.{name}" for name in ("stdout", "stderr")]
    server = multiprocessing.get_context("forkserver")
    process = server.Process(target=_become, args=(str(script), arguments, str(folder), dict(os.environ), streams))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise subprocess.TimeoutExpired([str(script), *arguments], timeout, *(path.read_bytes() for path in streams))
    said = [path.read_text() for path in streams]
    for path in streams:
        path.unlink()
    assert process.exitcode is not None
    return subprocess.CompletedProcess([str(script), *arguments], process.exitcode, *said)


def _become(
    script: str, arguments: tuple[str, ...], folder: str, environment: dict[str, str], streams: list[Path]
) -> None:
    for number, path in enumerate(streams, 1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = [script, *arguments], str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
