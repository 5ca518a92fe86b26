"""Engines: built for named architectures without a GPU, refused in one sentence where they cannot be."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from ssl_fast.export import Engine, ExportConfig, export_model
from ssl_fast.export.onnx import export_onnx
from ssl_fast.export.parity import measure, torch_runner
from ssl_fast.export.tensorrt import (
    Api,
    build_engine,
    find_api,
    gpu_architecture,
    resolve_targets,
    timing_cache_path,
)

TARGETS = ("SM80", "SM89", "SM120")


def trt_api(kind: str = "tensorrt") -> Api:
    members = {f"SM{n}": n for n in (75, 80, 86, 89, 120)} | {"NONE": 0, "CURRENT": 1}
    return Api(kind, "11.0", SimpleNamespace(ComputeCapability=SimpleNamespace(__members__=members)))


def test_file_that_is_no_model_is_refused(rtx, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(RuntimeError, match=r"tensorrt_rtx .* cannot read model.onnx"):
        build_engine(tmp_path / "model.onnx", tmp_path / "a.engine", api=rtx, target="SM80")
    assert not (tmp_path / "a.engine").exists()


@pytest.mark.skipif(gpu_architecture() is not None, reason="needs a machine without a GPU")
def test_refused_build_says_why(rtx, small, small_preprocessing, tmp_path):
    path = export_onnx(small, tmp_path / "model.onnx", small_preprocessing, precision="fp16")
    with pytest.raises(RuntimeError, match=r"built no engine for CURRENT: .*CUDA"):
        build_engine(path, tmp_path / "a.engine", api=rtx, target="CURRENT")
    with pytest.raises(ValueError, match="1 <= min <= opt <= max"):
        build_engine(path, tmp_path / "a.engine", api=rtx, target="SM80", batch=(1, 9, 8))
    assert not (tmp_path / "a.engine").exists()
    build_engine(path, tmp_path / "a.engine", api=rtx, target="SM80")
    with pytest.raises(RuntimeError, match=r"a\.engine needs a GPU"):
        Engine(tmp_path / "a.engine", rtx)


@pytest.mark.parametrize(
    ("kind", "targets", "architecture", "expected"),
    [
        ("tensorrt_rtx", [], None, list(TARGETS)),
        ("tensorrt_rtx", [], "SM89", ["CURRENT"]),
        ("tensorrt_rtx", [], "SM90", list(TARGETS)),  # RTX has no SM90: ahead of time for the others
        ("tensorrt_rtx", ["sm86"], None, ["SM86"]),
        ("tensorrt", [], "SM90", ["CURRENT"]),
        ("tensorrt", ["SM90", "AMPERE_PLUS"], "SM90", ["SM90", "AMPERE_PLUS"]),
    ],
)
def test_targets(kind, targets, architecture, expected):
    assert resolve_targets(trt_api(kind), targets, architecture) == expected


@pytest.mark.parametrize(
    ("kind", "target", "architecture", "message"),
    [
        ("tensorrt_rtx", "SM90", None, "SM90 cannot be built here .*GPU none.*possible: SM75, SM80"),
        ("tensorrt_rtx", "CURRENT", None, "CURRENT cannot be built here"),
        ("tensorrt_rtx", "CURRENT", "SM90", "CURRENT cannot be built here"),
        ("tensorrt_rtx", "AMPERE_PLUS", "SM89", "AMPERE_PLUS cannot be built here"),
        ("tensorrt", "SM80", "SM90", "SM80 cannot be built here .*possible: CURRENT, AMPERE_PLUS"),
    ],
)
def test_impossible_targets(kind, target, architecture, message):
    with pytest.raises(ValueError, match=message):
        resolve_targets(trt_api(kind), [target], architecture)


def test_full_tensorrt_comes_first_where_it_can(monkeypatch):
    monkeypatch.setattr("ssl_fast.export.tensorrt.load_api", trt_api)
    for targets, architecture, kind in (
        ([], "SM90", "tensorrt"),
        (["SM120"], "SM90", "tensorrt_rtx"),
        ([], None, "tensorrt_rtx"),
    ):
        api, _, _ = find_api(targets, architecture)
        assert api is not None and api.kind == kind


def test_onnx_comes_out_without_a_builder(small, small_preprocessing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    report = export_model(ExportConfig(precision=["fp16"], targets=["SM89"]), small, small_preprocessing, tmp_path)
    assert report["tensorrt"].startswith("no engine was built: tensorrt_rtx is not available")
    assert report["tensorrt"].endswith("pip install ssl_fast[trt]")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_fp16.onnx", "parity.json"]
    with pytest.raises(ImportError, match=r"tensorrt=require: no engine can be built: .*pip install ssl_fast\[trt\]"):
        export_model(ExportConfig(tensorrt="require"), small, small_preprocessing, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": ["int8"]}, "precision must list some of fp32, fp16, got"),
        ({"precision": []}, "precision must list some of"),
        ({"tensorrt": "yes"}, "tensorrt must be auto, off or require, got 'yes'"),
        ({"min_batch": 4, "opt_batch": 2}, "in rising order from 1, got"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options, message, small, small_preprocessing, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(ExportConfig(**options), small, small_preprocessing, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_timing_cache_is_of_one_version_gpu_and_level(tmp_path):
    paths = {
        timing_cache_path(tmp_path, Api("tensorrt", version, None), architecture, target)
        for version in ("10.16.1", "11.4.0")
        for architecture in ("SM80", "SM90")
        for target in ("CURRENT", "AMPERE_PLUS")
    }
    assert len(paths) == 8
    assert tmp_path / "timing-tensorrt-11.4.0-sm90-current.cache" in paths


@pytest.mark.gpu
def test_engine_runs_as_pytorch_does(small, small_preprocessing, tmp_path):
    api, targets, reason = find_api([], gpu_architecture())
    if api is None or targets != ["CURRENT"]:
        pytest.skip(
            f"no builder for this GPU, {gpu_architecture()}: {reason or 'TensorRT-RTX has not this architecture'}"
        )
    config = ExportConfig(precision=["fp16"], tensorrt="require", max_batch=16)
    report = export_model(config, small, small_preprocessing, tmp_path)
    (row,) = report["engines"]
    assert row["run"]
    assert min(r["cosine_min"] for r in report["parity"][row["file"]]) >= 0.999
    engine = Engine(tmp_path / row["file"], api)
    x = torch.randn(16, 3, 32, 32)
    (result,) = measure(lambda x: engine(x.cuda()).cpu(), x, torch_runner(small)(x), batches=(16,))
    assert result["cosine_min"] >= 0.999
    with pytest.raises(ValueError, match="must have 1 to 16 images"):
        engine(torch.randn(17, 3, 32, 32))
    (tmp_path / "bad.engine").write_bytes(b"not an engine" * 100)
    with pytest.raises(RuntimeError, match=r"cannot load bad\.engine"):
        Engine(tmp_path / "bad.engine", api)
