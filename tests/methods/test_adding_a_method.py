"""docs/adding_a_method.md: its file, dropped into a folder, trains without any other edit."""

import json
import re
from pathlib import Path

import pytest

from tests.forked import run_script

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "pretrain.py"
PAGE = ROOT / "docs" / "adding_a_method.md"
SMALL = (
    "data.num_train=64", "data.num_val=32", "data.num_test=32", "data.workers=0", "train.epochs=1",
    "train.batch_size=32", "train.device=cpu", "backbone.cifar_stem=true", "backbone.width=8",
    "backbone.depth='1,1,1,1'",
)  # fmt: skip


def test_the_file_of_the_page_trains_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)[0]
    assert len(code.splitlines()) <= 50
    methods = tmp_path / "methods"
    methods.mkdir()
    (methods / "rotnet.py").write_text(code)
    monkeypatch.setenv("SSL_FAST_METHODS", "methods")
    done = run_script(RECIPE, "method=rotnet", "method.optimizer.lr=0.05", "run=r", *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 2
    assert (tmp_path / "runs" / "r" / "pretrain" / "backbone.safetensors").exists()


def test_without_the_folder_the_method_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_FAST_METHODS", raising=False)
    done = run_script(RECIPE, "method=rotnet", folder=tmp_path)
    assert done.returncode == 2
    assert "error: method: no 'rotnet'" in done.stderr
