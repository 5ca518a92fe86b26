"""Two models exported once, by the recipe as a user runs it: ONNX at batch 1, 3 and 8, engines built without a GPU."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_fast.export.parity import measure, onnx_runner, torch_runner
from ssl_fast.export.tensorrt import Api, gpu_architecture, make_logger
from ssl_fast.models.backbone import Backbone, BackboneConfig, save_backbone
from tests.export.models import preprocessing, trained_like
from tests.forked import run_script

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "export.py"
TARGETS = ("SM80", "SM89", "SM120")


@dataclass
class Exported:
    backbone: Backbone
    folder: Path
    report: dict


def _export(name: str, depth: str, folder: Path) -> Exported:
    backbone = trained_like(BackboneConfig(name, depth=depth), 224)
    save_backbone(folder / "runs" / "r" / "pretrain", backbone, preprocessing(224))
    done = run_script(RECIPE, "run=r", "images=noise", folder=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "runs" / "r" / "export" / "parity.json").read_text())
    result = json.loads(done.stdout.splitlines()[-1])
    assert {key: result[key] for key in report} == report
    return Exported(backbone, folder / "runs" / "r" / "export", report)


# Tracing and optimising twelve equal blocks takes three times as long as four.
MODELS = [("resnet18", ""), ("vit_tiny_patch16_224", "4")]
MODELS += [pytest.param(("vit_tiny_patch16_224", ""), marks=pytest.mark.nightly)]


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def exported(request, tmp_path_factory) -> Exported:
    return _export(*request.param, tmp_path_factory.mktemp("exported"))


def test_fp32_and_fp16_are_close(exported):
    rows = exported.report["parity"]
    assert [row["batch"] for row in rows["model.onnx"]] == [1, 3, 8]
    assert max(row["max_error"] for row in rows["model.onnx"]) <= 1e-5
    assert min(row["cosine_min"] for row in rows["model_fp16.onnx"]) >= 0.9999
    # half precision was really used: an fp32 file under the other name would be exact
    assert min(row["max_error"] for row in rows["model_fp16.onnx"]) > 1e-5


def photographs(pack, count: int) -> torch.Tensor:
    """The first photographs [count, 3, 224, 224] of the pack, centre-cropped and normalised."""
    images = []
    with tarfile.open(pack) as archive:
        for member in archive:
            if member.name.endswith(".jpg") and len(images) < count:
                image = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                crop = image.resize((224, 224), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
                images.append(np.asarray(crop, dtype=np.float32) / 255)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def test_photographs(exported, shared_data):
    images = photographs(shared_data / "photos-hymenoptera.tar", 8)
    reference = torch_runner(exported.backbone)(images)
    rows = measure(onnx_runner(exported.folder / "model.onnx"), images, reference)
    assert max(row["max_error"] for row in rows) <= 1e-5
    rows = measure(onnx_runner(exported.folder / "model_fp16.onnx"), images, reference)
    assert min(row["cosine_min"] for row in rows) >= 0.9999


def diagnostics(api: Api, plan: bytes) -> int:
    """What the library finds wrong with a serialised engine's header; it needs no GPU to read it."""
    return int(api.trt.Runtime(make_logger(api)).get_engine_validity(plan)[1])


@pytest.mark.skipif(gpu_architecture() is not None, reason="the default targets are those of a machine without a GPU")
def test_fp16_engines_are_built_without_a_gpu(exported, rtx):
    engines = exported.report["engines"]
    assert [row["target"] for row in engines] == list(TARGETS)
    malformed = int(rtx.trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    plans = [(exported.folder / row["file"]).read_bytes() for row in engines]
    weights = (exported.folder / "model_fp16.onnx").stat().st_size
    for row, plan in zip(engines, plans, strict=True):
        assert (row["file"], row["builder"]) == (f"model_fp16_{row['target'].lower()}.engine", "tensorrt_rtx")
        assert row["bytes"] == len(plan)
        assert 0.9 * weights < len(plan) < 1.9 * weights  # weights in half precision, not in single
        assert not diagnostics(rtx, plan) & malformed
        assert not row["run"]
    assert diagnostics(rtx, bytes(len(plans[0]))) & malformed
    assert len(set(plans)) == 3
    assert exported.report["tensorrt"] == f"tensorrt_rtx {rtx.version} for SM80, SM89, SM120"
