"""The ONNX files: names, types, metadata, nothing of this machine in them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from ssl_fast.export.onnx import export_onnx, input_shape, read_metadata
from ssl_fast.export.parity import onnx_runner


@pytest.fixture(scope="module")
def files(small, small_preprocessing, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("small")
    return {p: export_onnx(small, folder / f"{p}.onnx", small_preprocessing, precision=p) for p in ("fp32", "fp16")}


def elements(values) -> list[int]:
    return [value.type.tensor_type.elem_type for value in values]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_dynamic_axis_and_float_ends(files, precision):
    model = onnx.load(files[precision])
    onnx.checker.check_model(model, full_check=True)
    (image,), (feature,) = model.graph.input, model.graph.output
    assert (image.name, feature.name) == ("image", "feature")
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    assert [dim.dim_param or dim.dim_value for dim in feature.type.tensor_type.shape.dim] == ["batch", 64]
    assert elements([image, feature]) == [onnx.TensorProto.FLOAT] * 2
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]


def test_fp16_is_strongly_typed(files):
    model = onnx.load(files["fp16"])
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 2  # one at each end
    assert files["fp16"].stat().st_size < 0.6 * files["fp32"].stat().st_size


def test_metadata(files, small_preprocessing):
    for precision, path in files.items():
        content = read_metadata(path)
        assert content.pop("preprocessing") == small_preprocessing
        assert content == {
            "input_size": [3, 32, 32],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "classes": [],
            "precision": precision,
        }


def test_no_traces_of_this_machine(files):
    for path in files.values():
        content = path.read_bytes()
        for trace in (str(Path.home()), str(Path(__file__).parents[2]), "site-packages", "stack_trace"):
            assert trace.encode() not in content


def test_model_is_left_as_it_was(small, small_preprocessing, tmp_path):
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    export_onnx(small, tmp_path / "model.onnx", small_preprocessing, precision="fp16")
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_head_gives_logits(small, small_preprocessing, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(small, nn.Linear(64, 3)).eval()
    path = export_onnx(
        model, tmp_path / "model.onnx", small_preprocessing, output="logits", classes=["cat", "dog", "été"]
    )
    assert read_metadata(path)["classes"] == ["cat", "dog", "été"]
    assert onnx.load(path).graph.output[0].name == "logits"
    x = torch.randn(5, 3, 32, 32)
    np.testing.assert_allclose(onnx_runner(path)(x), model(x).detach(), atol=1e-5)


def test_input_shape():
    assert input_shape({"size": 64, "channels": 1}) == (1, 64, 64)
    assert input_shape({"size": 64, "mean": (0.5, 0.5, 0.5)}) == (3, 64, 64)
    with pytest.raises(ValueError, match="needs size and channels"):
        input_shape({"mean": (0.5,)})


def test_refusals(small, small_preprocessing, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="precision must be of fp32, fp16, got 'int8'"):
        export_onnx(small, tmp_path / "a.onnx", small_preprocessing, precision="int8")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install ssl_fast\[recipes\]"):
        export_onnx(small, tmp_path / "a.onnx", small_preprocessing)
