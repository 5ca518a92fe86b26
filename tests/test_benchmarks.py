"""The benchmarks' own code: the book of the GPU, run on a CPU at sizes that take no time."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import record
from benchmarks.gpu import sizes, steps, summary, time_ops, time_to_accuracy, time_training
from benchmarks.gpu.book import Book
from benchmarks.gpu.losses import MAKERS
from ssl_fast.ops.dispatch import OPS

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "chapter", "op", "provider", "sizes", "dtype", "direction", "cache", "p20_ms", "p50_ms", "p80_ms", "extra_mb",
    "rate", "unit", "floor_percent", "product_tflop_s", "copy_gb_s", "error", "host_us", "hardware", "versions",
    "commit", "date",
}  # fmt: skip


@pytest.mark.nightly
def test_every_op_is_timed_beside_its_equation(tmp_path: Path) -> None:
    output = tmp_path / "book.csv"
    time_ops.main(["--device", "cpu", "--small", "--seconds", "300", "--output", str(output)])
    rows = rows_of(output)
    assert set(rows[0]) == COLUMNS and all(float(row["p50_ms"]) > 0 for row in rows)
    losses = [row for row in rows if row["direction"] != "step"]
    for op in MAKERS:
        mine = [row for row in losses if row["op"] == op]
        assert {"ssl_fast reference", "equation"} <= {row["provider"] for row in mine}, op
        ours = [row for row in mine if "ssl_fast" in row["provider"]]
        assert all(float(row["error"]) < 0.05 for row in ours), op
        assert all(int(row["host_us"]) > 0 for row in ours if "compiled" not in row["chapter"]), op
    assert {row["cache"] for row in rows} == {"hot", "cold"}
    assert {row["provider"] for row in rows} >= {"compiled equation", "ssl_fast reference"}
    assert {row["op"] for row in rows if row["direction"] == "step"} == {"lars", "sam sgd"}


def test_rows_are_kept_when_the_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time_ops.main(["--device", "cpu", "--small", "--seconds", "0", "--output", str(tmp_path / "book.csv")])
    assert not (tmp_path / "book.csv").exists() and "left out, the time is over" in capsys.readouterr().out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_chapter_is_measured_once_on_a_kind_of_machine(tmp_path: Path) -> None:
    path = tmp_path / "book.csv"
    first = Book(path, (), 60)
    assert first.opens("a") and first.opens("b")
    first.close("a", [{"ms": 1, "who": "x"}, {"ms": 2, "who": "y"}])
    assert not first.opens("a")
    later = Book(path, (), 60)
    assert not later.opens("a") and later.opens("b")
    later.close("b", [{"ms": 3, "rate": 4}])
    assert [row["ms"] for row in rows_of(path)] == ["1", "2", "3"] and rows_of(path)[0]["rate"] == ""

    elsewhere = Book(path, (), 60)
    elsewhere.environment["hardware"] = "another"
    elsewhere.done = set()
    elsewhere.close("a", [{"ms": 5}])
    assert [row["ms"] for row in rows_of(path)] == ["1", "2", "3", "5"], "the other machine's rows stay"

    anew = Book(path, (), 60, again=True)
    assert anew.opens("a")
    anew.close("a", [{"ms": 6}])
    assert [(row["chapter"], row["ms"]) for row in rows_of(path)] == [("b", "3"), ("a", "5"), ("a", "6")]
    assert not Book(path, (), -1).opens("c")


def test_the_book_in_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    summary.main()
    assert capsys.readouterr().out == ""
    common = {
        "op": "nt_xent",
        "sizes": "8192x128",
        "dtype": "bfloat16",
        "direction": "forward+backward",
        "cache": "hot",
    }
    book = Book(tmp_path / "gpu_ops.csv", (), 60)
    times = {"ssl_fast triton": 0.2, "ssl_fast triton, graph": 0.1, "ssl_fast reference": 0.05, "equation": 1.0}
    times |= {"compiled equation": 0.3, "lightly NTXentLoss": 2.5}
    measured = [
        {**common, "provider": name, "p50_ms": ms, "floor_percent": round(4 / ms, 1)} for name, ms in times.items()
    ]
    book.close("a", [{**row, "extra_mb": "" if "graph" in row["provider"] else 7} for row in measured])
    curve = Book(tmp_path / "gpu_cifar10.csv", (), 60)
    run = {"method": "simclr", "epochs": 2, "batch": 512, "images": 50000, "compiled": False, "seed": 0}
    curve.close("c", [
        {**run, "epoch": epoch, "knn_top1": score, "train_seconds": 9 * epoch}
        for epoch, score in ((1, 0.81), (2, 0.85))
    ])  # fmt: skip
    summary.main()
    said = capsys.readouterr().out.splitlines()
    assert said[2].split() == ["nt_xent", "8192x128", "bfloat16", "0.200", "0.100", "2.5", "7", "5.0x", "1.5x", "12.5x"]
    assert said[-1].split() == ["simclr", "512", "50000", "2", "of", "2", "0.85", "18", "9", "18"]


@pytest.mark.nightly
def test_training_is_timed_with_its_data_and_without(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    output = tmp_path / "training.csv"
    time_training.main(["--device", "cpu", "--small", "--output", str(output)])
    rows = rows_of(output)
    assert [row["chapter"] for row in rows] == [f"resnet 32 px, {who}" for who in ("fused", "constant", "fused moco")]
    for row in rows:
        parts = [float(row[f"{part}_percent"]) for part in ("data", "forward", "backward", "optimizer")]
        assert abs(sum(parts) - 100) < 0.5 and float(row["images_per_second"]) > 0 and float(row["loss_percent"]) > 0


def test_the_networks_arithmetic() -> None:
    pytest.importorskip("timm")
    found = [round(time_training.gflop(job) / 6, 2) for job in time_training.JOBS.values()]
    assert found == [9.2, 8.17, 1.11]  # of a forward pass: twice 4.6, 4.09 and 0.555 GMAC


@pytest.mark.nightly
def test_a_curve_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    generator = np.random.default_rng(0)
    x = {f"x_{part}": generator.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "data.npz", y_train=np.arange(300) % 3, y_test=np.arange(300) % 3, **x)
    command = ["--data", str(tmp_path / "data.npz"), "--batch", "100", "--every", "1", "--device", "cpu"]
    command += ["--run", str(tmp_path / "run"), "--epochs", "2"]
    for _ in range(2):  # the second has nothing left to do
        with pytest.raises(SystemExit, match="0"):
            time_to_accuracy.main(command, {"width": 8, "depth": "1,1,1,1"})
    rows = rows_of(tmp_path / "gpu_cifar10.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"] and all(0 < float(row["knn_top1"]) < 1 for row in rows)
    assert float(rows[0]["train_seconds"]) < float(rows[1]["train_seconds"])


@pytest.mark.nightly
def test_tiles_are_compared_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    output = tmp_path / "tiles.csv"
    command = [sys.executable, "-m", "benchmarks.gpu.tune_tiles", "--device", "cpu", "--small", "--output", str(output)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True)
    rows = rows_of(output)
    assert {row["tile"] for row in rows} == {"table", "64x32x4x2", "64x32x4x3"}
    assert all(float(row["error"]) < 1e-5 and float(row["p50_ms"]) > 0 for row in rows)


def test_what_the_sanitizers_are_given_runs_on_a_cpu() -> None:
    pytest.importorskip("ssl_fast._cpu")
    done = subprocess.run(
        [sys.executable, "-m", "tests.every_kernel", "--device", "cpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "all finite" in done.stdout, done.stderr


def test_every_op_of_the_book_and_no_other() -> None:
    assert set(sizes.SIZES) == set(MAKERS)
    draw = time_ops.Draw("cpu", torch.float32)
    kernels = {make(draw, sizes.TINY.get(op, (16, 16))).kernel for op, make in MAKERS.items()}
    assert kernels | {"multi_tensor", "gradients", "sam", "lamb", "prototype_logits"} == set(OPS)
    assert set(steps.OPS) <= set(steps.BYTES)


def test_the_shapes_of_a_resnet50() -> None:
    shapes = list(steps.resnet50_shapes())
    timm = pytest.importorskip("timm")
    assert sorted(shapes) == sorted(tuple(p.shape) for p in timm.create_model("resnet50").parameters())


def test_the_shapes_of_a_vit_base() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    assert sorted(steps.vit_base_shapes()) == sorted(tuple(p.shape) for p in model.parameters())


@pytest.mark.parametrize(
    ("part", "said"), [("ops", "no CUDA device is visible"), ("opps", "expected tests, sanitize, ops")]
)
def test_run_without_a_gpu_or_a_part_says_so(part: str, said: str) -> None:
    if torch.cuda.is_available() or shutil.which("bash") is None:
        pytest.skip("needs bash, and a machine without a GPU")
    command = ["bash", str(ROOT / "benchmarks" / "gpu" / "run.sh"), part]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and said in done.stderr
