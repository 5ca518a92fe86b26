"""DINO: loss and gradients of a first step are those of lightly's parts; the teacher, its temperature, the centre."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_fast import dino_loss
from ssl_fast.data.views import Batch
from ssl_fast.methods.pretrain.dino import DINO
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from tests.methods.pretrain.oracles import record_all

RESNET = BackboneConfig("resnet18", cifar_stem=True, width=8, depth="1,1,1,1", norm="group")
VIT = BackboneConfig(
    "vit_tiny_patch16_224", width=32, heads=2, depth="2", image_size=16, patch_size=4, dynamic_size=True
)


def batch(seed: int = 0, num: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = tuple(torch.randn(num, 3, size, size, generator=generator) for size in (16, 16, 8, 8, 8))
    return Batch(views, None, torch.arange(num))


def make(backbone: BackboneConfig = VIT, **options: Any) -> DINO:
    torch.manual_seed(0)
    settings = {"hidden_dim": 16, "bottleneck_dim": 8, "num_prototypes": 12, "num_local": 3, "freeze_last_layer": 0.1}
    return DINO(DINO.Config(**settings | options), build_backbone(backbone)).train()


def apart(method: DINO) -> DINO:
    """The same method, its teacher away from the student."""
    generator = torch.Generator().manual_seed(3)
    for parameter in method.teacher.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return method


def step(method: DINO, data: Batch, progress: float) -> dict[str, Tensor]:
    method.zero_grad()
    loss = method(data, progress)[1]["loss"]
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


def lightlys_head(method: DINO, head: Any, batch_norm: bool) -> Any:
    heads = pytest.importorskip("lightly.models.modules.heads", reason="lightly is not installed")
    theirs = heads.DINOProjectionHead(method.backbone.num_features, 16, 8, 12, batch_norm=batch_norm)
    skipped = ("layers.0.bias", "layers.3.bias") if batch_norm else ()  # a bias that the norm removes: zero, as set
    names = [name for name in theirs.layers.state_dict(prefix="layers.") if name not in skipped]
    theirs.load_state_dict(dict(zip(names, head.mlp.state_dict().values(), strict=True)), strict=False)
    theirs.last_layer.weight_v.data.copy_(head.last_layer.weight)
    return theirs, [name for name in names if not name.endswith(("mean", "var", "tracked"))]


@pytest.mark.parametrize(("backbone", "norm"), [(VIT, "none"), (RESNET, "batch")])
def test_the_first_step_is_lightlys(backbone: BackboneConfig, norm: str) -> None:
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    method, data = apart(make(backbone, norm=norm)), batch()
    center = 0.1 * torch.randn(12, generator=torch.Generator().manual_seed(5))
    method.center.value.copy_(center)
    head, names = lightlys_head(method, method.head, norm == "batch")
    teacher_head, _ = lightlys_head(method, method.teacher.module[1], norm == "batch")
    criterion = lightly.DINOLoss(12, teacher_temp=0.07)
    criterion.center.copy_(center.view(1, 1, -1))

    big, small = torch.cat(data.views[:2]), torch.cat(data.views[2:])
    student = head(torch.cat([method.backbone(big), method.backbone(small)])).chunk(5)
    with torch.no_grad():
        teacher = teacher_head(method.teacher.module[0](big)).chunk(2)
    expected = criterion(list(teacher), list(student))
    expected.backward()
    gradients = dict(head.named_parameters())
    wanted = {f"backbone.{name}": p.grad for name, p in method.backbone.named_parameters()}
    ours = [f"head.mlp.{name}" for name, _ in method.head.mlp.named_parameters()]
    wanted |= {mine: gradients[name].grad for mine, name in zip(ours, names, strict=True)}
    wanted["head.last_layer.weight"] = gradients["last_layer.weight_v"].grad

    found = step(method, data, 0.5)
    value = found.pop("loss")
    record_all("dino", value, expected, found, wanted)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=0)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm() + 1e-8, name
    method.after_step(0.5)
    torch.testing.assert_close(method.center.value, criterion.center.flatten(), rtol=1e-5, atol=1e-7)


def test_sinkhorn_in_place_of_the_centre() -> None:
    method, data = apart(make(centering="sinkhorn")), batch()
    with torch.no_grad():
        z, y = method.embed(data)["z"].transpose(0, 1), method.targets(data)["y"].transpose(0, 1)
        w, w_teacher = method.head.prototypes(), method.teacher.module[1].prototypes()
        expected = dino_loss(z, y, w, w_teacher, teacher_temperature=0.07, center="sinkhorn")
    torch.testing.assert_close(step(method, data, 0.5)["loss"], expected)
    assert (expected - dino_loss(z, y, w, w_teacher, teacher_temperature=0.07)).abs() > 1e-4
    with pytest.raises(ValueError, match=r"method\.centering: expected mean or sinkhorn, got 'none'"):
        DINO.Config(centering="none")


def test_the_temperature_rises_and_the_last_layer_waits() -> None:
    method = make(temperature_warmup=0.2)
    found = [method.teacher_temperature(progress) for progress in (0.0, 0.1, 0.2, 1.0)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert make(temperature_warmup=0.0).teacher_temperature(0.0) == 0.07
    assert "head.last_layer.weight" not in step(method, batch(), 0.05)
    assert step(method, batch(), 0.1)["head.last_layer.weight"].abs().sum() > 0


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
def test_the_teacher_follows_along_a_cosine(progress: float, momentum: float) -> None:
    method = apart(make(momentum=0.9))
    before, student = method.teacher.module[1].last_layer.weight.clone(), method.head.last_layer.weight
    step(method, batch(), progress)
    method.after_step(progress)
    expected = momentum * before + (1 - momentum) * student
    torch.testing.assert_close(method.teacher.module[1].last_layer.weight, expected.detach())


def test_the_student_alone_drops_blocks() -> None:
    from dataclasses import replace

    method, data = make(replace(VIT, drop_path=0.5)), batch()
    with torch.no_grad():
        rows, targets = ([f(data)[key] for _ in range(2)] for f, key in ((method.embed, "z"), (method.targets, "y")))
    assert not torch.equal(*rows) and torch.equal(*targets)


def test_views() -> None:
    views = DINO.views(DINO.Config())
    assert [view.size for view in views] == [224] * 2 + [96] * 8
    assert [view.name for view in views[:3]] == ["global1", "global2", "local"]
    assert [view.blur for view in views[:3]] == [1.0, 0.1, 0.5] and views[1].solarize == 0.2
    assert views[0].crop_scale == (0.4, 1.0) and views[2].crop_scale == (0.05, 0.4)
    assert [v.size for v in DINO.views(DINO.Config(num_local=1, local_size=40))] == [224, 224, 40]
