"""The built wheel in a clean environment, oldest and newest torch: README's drop-in example and every public name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ssl_fast
from tests import every_op

ROOT = Path(__file__).resolve().parents[1]


def example() -> str:
    """The code of README's section on the drop-in ops."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert found
    return found[1]


def test_the_example_of_readme_runs() -> None:
    checked = example() + "\nassert z1.grad.norm() > 0 and q.grad.norm() > 0 and int(queue.pointer) == 256"
    subprocess.run([sys.executable, "-c", checked], check=True)


def test_every_public_name_has_a_case() -> None:
    assert {*every_op.LOSSES, *every_op.OTHERS} == {*ssl_fast.__all__} - {"__version__"}


@pytest.mark.nightly
@pytest.mark.parametrize("torch", ["torch==2.6.*", "torch"])
def test_the_wheel_needs_torch_alone(tmp_path: Path, torch: str) -> None:
    def run(*command: str, **options: str) -> str:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout  # type: ignore[call-overload, no-any-return]

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(ROOT))
    run(sys.executable, "-m", "venv", str(tmp_path / "clean"))
    python = str(tmp_path / "clean" / "bin" / "python")
    wheel = str(next(tmp_path.glob("ssl_fast-*.whl")))
    run(python, "-m", "pip", "install", "--quiet", torch, wheel)
    said = run(python, "-c", example() + "\nassert backends()['nt_xent']['cpp'] == 'available'", cwd=str(tmp_path))
    assert "available" in said
    assert "names" in run(python, str(ROOT / "tests" / "every_op.py"), cwd=str(tmp_path))
    for package in ("hydra", "torchvision", "timm"):
        assert subprocess.run([python, "-c", f"import {package}"], stderr=subprocess.DEVNULL).returncode
