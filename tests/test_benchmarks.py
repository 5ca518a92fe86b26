"""The benchmarks' own code: the book of the GPU, run on a CPU at sizes that take no time."""

import csv
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import steps, time_ops
from benchmarks.gpu.losses import MAKERS
from ssl_fast.ops.dispatch import OPS

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "op", "provider", "sizes", "dtype", "direction", "cache", "p20_ms", "p50_ms", "p80_ms", "extra_mb", "rate", "unit",
    "floor_percent", "error", "host_us", "hardware", "versions", "commit", "date",
}  # fmt: skip


@pytest.mark.nightly
def test_every_op_is_timed_beside_its_equation(tmp_path: Path) -> None:
    output = tmp_path / "book.csv"
    time_ops.main(["--device", "cpu", "--small", "--seconds", "300", "--output", str(output)])
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == COLUMNS and all(float(row["p50_ms"]) > 0 for row in rows)
    losses = [row for row in rows if row["direction"] != "step"]
    for op in MAKERS:
        mine = [row for row in losses if row["op"] == op]
        assert {"ssl_fast reference", "equation"} <= {row["provider"] for row in mine}, op
        assert all(float(r["error"]) < 0.05 and int(r["host_us"]) > 0 for r in mine if "ssl_fast" in r["provider"]), op
    assert {row["cache"] for row in rows} == {"hot", "cold"}
    assert {row["provider"] for row in rows} >= {"compiled equation", "ssl_fast reference"}
    assert {row["op"] for row in rows if row["direction"] == "step"} == {"lars", "sam sgd"}


def test_rows_are_kept_when_the_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time_ops.main(["--device", "cpu", "--small", "--seconds", "0", "--output", str(tmp_path / "book.csv")])
    assert not (tmp_path / "book.csv").exists() and "left out, the time is over" in capsys.readouterr().out


def test_every_op_of_the_book_and_no_other() -> None:
    assert set(time_ops.SIZES) == set(MAKERS)
    draw = time_ops.Draw("cpu", torch.float32)
    kernels = {make(draw, time_ops.TINY.get(op, (16, 16))).kernel for op, make in MAKERS.items()}
    assert kernels | {"multi_tensor", "gradients", "sam", "lamb", "prototype_logits"} == set(OPS)
    assert set(steps.OPS) <= set(steps.BYTES)


def test_the_shapes_of_a_resnet50() -> None:
    shapes = list(steps.resnet50_shapes())
    timm = pytest.importorskip("timm")
    assert sorted(shapes) == sorted(tuple(p.shape) for p in timm.create_model("resnet50").parameters())


def test_run_without_a_gpu_says_so() -> None:
    if torch.cuda.is_available() or shutil.which("bash") is None:
        pytest.skip("needs bash, and a machine without a GPU")
    import sys

    command = ["bash", str(ROOT / "benchmarks" / "gpu" / "run.sh")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 2 and "no CUDA device is visible" in done.stderr
