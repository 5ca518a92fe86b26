"""docs/adding_a_method.md: its file, dropped into a folder, trains without any other edit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "adding_a_method.md"
SMALL = (
    "data.num_train=64", "data.num_val=32", "data.num_test=32", "data.workers=0", "train.epochs=1",
    "train.batch_size=32", "train.device=cpu", "backbone.cifar_stem=true", "backbone.width=8",
    "backbone.depth='1,1,1,1'",
)  # fmt: skip


def pretrain(folder: Path, *settings: str, methods: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes" / "pretrain.py"), *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SSL_FAST_METHODS": methods}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_the_file_of_the_page_trains_two_steps(tmp_path: Path) -> None:
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)[0]
    assert len(code.splitlines()) <= 50
    methods = tmp_path / "methods"
    methods.mkdir()
    (methods / "rotnet.py").write_text(code)
    done = pretrain(tmp_path, "method=rotnet", "method.optimizer.lr=0.05", "run=r", *SMALL, methods="methods")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 2
    assert (tmp_path / "runs" / "r" / "pretrain" / "backbone.safetensors").exists()


def test_without_the_folder_the_method_is_not_known(tmp_path: Path) -> None:
    done = pretrain(tmp_path, "method=rotnet", methods="")
    assert done.returncode == 2
    assert "error: method: no 'rotnet'" in done.stderr
