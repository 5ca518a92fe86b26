"""DINOv2 beside lightly's networks and losses, and beside the paper's balancing written out: loss and gradients."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_fast.data.view_presets import dinov2
from ssl_fast.data.views import Batch
from ssl_fast.methods.pretrain.dinov2 import DINOv2, layers_above
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from ssl_fast.optim.config import build_optimizer
from tests.methods.pretrain.oracles import record

SMALL = {"num_prototypes": 24, "hidden_dim": 16, "bottleneck_dim": 8, "num_local": 3, "local_size": 8}


def make(drop_path: float = 0.0, seed: int = 0, **options: Any) -> tuple[DINOv2, Batch]:
    """A method whose teacher differs from its student, and a batch with masks."""
    torch.manual_seed(seed)
    config = DINOv2.Config(**SMALL | options)
    backbone = build_backbone(BackboneConfig("test_vit", image_size=16, patch_size=4, drop_path=drop_path))
    nn.init.normal_(backbone.model.cls_token)
    method = DINOv2(config, backbone).train()
    nn.init.normal_(method.mask_token)
    for head in (method.dino_head, method.ibot_head):  # rows that differ, as after some training
        for layer in head.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.3)
    for target in method.teacher.parameters():
        target.data += 0.05 * torch.randn_like(target)
    views = tuple(torch.randn(6, 3, size, size) for size in (16, 16, 8, 8, 8))
    batch = Batch(views, None, torch.arange(6) * 5)
    batch.extras |= method.extras(batch, 11)
    return method, batch


def peers(method: DINOv2, batch: Batch) -> dict[str, Tensor]:
    """lightly's networks with our weights: logits and class tokens, view by view; gradients reach our parameters."""
    from lightly.models.modules import MaskedVisionTransformerTIMM

    masks = batch.extras["masks"].transpose(0, 1).flatten(0, 1)
    padded = torch.cat((torch.zeros(12, 1, dtype=torch.bool), masks), 1)

    def encode(backbone: Any, images: Tensor, mask: Tensor | None = None) -> Tensor:
        token = nn.Parameter(torch.zeros(1, 1, 64))
        vit = MaskedVisionTransformerTIMM(
            backbone.model, token, weight_initialization="skip", pos_embed_initialization="skip"
        )
        if mask is None:
            return vit.encode(images)
        del vit.mask_token
        vit.mask_token = method.mask_token[None, None]  # the very same, for its gradient
        return vit.encode(images, mask=mask)

    def logits(head: Any, h: Tensor) -> Tensor:
        z = nn.functional.normalize(head.mlp(h), dim=-1)
        weight = head.last_layer.weight
        return z @ (head.gain * weight / weight.norm(dim=1, keepdim=True)).T

    crops, local = torch.cat(batch.views[:2]), torch.cat(batch.views[2:])
    student = encode(method.backbone, crops, padded)
    teacher_parts = method.teacher.module
    with torch.no_grad():
        teacher = encode(teacher_parts["backbone"], crops)
        teacher_classes = logits(teacher_parts["dino_head"], teacher[:, 0])
        teacher_patches = logits(teacher_parts["ibot_head"], teacher[:, 1:][masks])
    classes = torch.cat((student[:, 0], encode(method.backbone, local)[:, 0]))
    return {
        "student": logits(method.dino_head, classes).unflatten(0, (5, 6)),
        "teacher": teacher_classes.unflatten(0, (2, 6)),
        "patches": logits(method.ibot_head, student[:, 1:][masks]),
        "teacher_patches": teacher_patches,
        "h": student[:, 0].unflatten(0, (2, 6)),
        "masks": masks,
    }


def lightly_loss(method: DINOv2, batch: Batch) -> Tensor:
    from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss

    found = peers(method, batch)
    dino, ibot, koleo = DINOLoss(24), IBOTPatchLoss(24), KoLeoLoss()
    dino.center.copy_(method.centers["dino_head"].value)
    ibot.center.value.copy_(method.centers["ibot_head"].value)
    temperature = 0.04  # of the first step
    loss = dino(list(found["teacher"]), list(found["student"]), teacher_temp=temperature)
    masks = found["masks"].reshape(-1, 4, 4)
    loss = loss + ibot(found["teacher_patches"], found["patches"], masks, teacher_temp=temperature)
    return loss + 0.1 * sum(koleo(h) for h in found["h"])


def balanced(logits: Tensor, temperature: float) -> Tensor:
    """Sinkhorn-Knopp as in the paper's appendix: rows, then columns, three times."""
    assignments = (logits / temperature).exp().T
    assignments /= assignments.sum()
    for _ in range(3):
        assignments /= assignments.sum(1, keepdim=True) * len(assignments)
        assignments /= assignments.sum(0, keepdim=True) * len(logits)
    return (assignments * len(logits)).T


def written_out_loss(method: DINOv2, batch: Batch) -> Tensor:
    """DINOv2's loss in loops over pairs of views and over images."""
    found = peers(method, batch)
    targets = balanced(found["teacher"].flatten(0, 1), 0.04).unflatten(0, (2, 6))
    logs = (found["student"] / 0.1).log_softmax(-1)
    pairs = [(t, s) for t in range(2) for s in range(5) if t != s]
    loss = sum(-(targets[t] * logs[s]).sum(1).mean() for t, s in pairs) / len(pairs)
    tokens = -(balanced(found["teacher_patches"], 0.04) * (found["patches"] / 0.1).log_softmax(-1)).sum(1)
    for part in tokens.split(found["masks"].sum(1).tolist()):
        loss = loss + (part.mean() / 12 if len(part) else 0)
    for h in found["h"]:
        unit = h / h.norm(dim=1, keepdim=True)
        distances = (unit[:, None] - unit[None] + 1e-20).norm(dim=2) + 4 * torch.eye(6)
        loss = loss - 0.1 * (distances.min(1).values + 1e-8).log().mean()
    return loss


def compare(method: DINOv2, batch: Batch, expected: Tensor) -> tuple[float, float]:
    """Largest differences of loss and gradients, relative to the largest."""
    named = {name: p for name, p in method.named_parameters() if p.requires_grad}
    gradients = dict(zip(named, torch.autograd.grad(expected, list(named.values())), strict=True))
    _, losses = method(batch, 0.0)
    losses["loss"].backward()
    assert all(p.grad is not None for p in named.values())
    largest = max(float(g.abs().max()) for g in gradients.values())
    assert all(g.abs().max() > 0 for g in gradients.values())
    apart = max(float((named[name].grad - g).abs().max()) for name, g in gradients.items())
    return abs(losses["loss"].item() - expected.item()) / expected.item(), apart / largest


@pytest.mark.parametrize("separate", [True, False])
def test_centred_loss_and_gradients_are_lightlys(separate: bool) -> None:
    pytest.importorskip("lightly")
    method, batch = make(centering="mean", separate_heads=separate, freeze_last_layer=0.0)
    for center in method.centers.values():
        center.value.normal_(std=0.1)
    loss, gradients = compare(method, batch, lightly_loss(method, batch))
    record("dinov2", loss, gradients)
    assert loss <= 1e-5 and gradients <= 1e-5


def test_balanced_loss_and_gradients_are_the_papers() -> None:
    pytest.importorskip("lightly")
    method, batch = make(freeze_last_layer=0.0)
    loss, gradients = compare(method, batch, written_out_loss(method, batch))
    assert loss <= 1e-5 and gradients <= 1e-5


def test_prototypes_rest_at_first() -> None:
    for progress, frozen in ((0.0, True), (0.05, False)):
        method, batch = make(freeze_last_layer=0.05)
        _, losses = method(batch, progress)
        losses["loss"].backward()
        for head in (method.dino_head, method.ibot_head):
            assert (head.last_layer.weight.grad is None) == frozen
            assert (head.gain.grad is None) == frozen
            assert head.mlp[0].weight.grad is not None


def test_drop_path_is_the_students() -> None:
    method, batch = make(drop_path=0.5)
    first, second = method.targets(batch), method.targets(batch)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(method.embed(batch)["z"], method.embed(batch)["z"])


def test_schedules() -> None:
    method, _ = make()
    temperatures = [method._teacher_temperature(progress) for progress in (0.0, 0.15, 0.3, 1.0)]
    assert temperatures == pytest.approx([0.04, 0.055, 0.07, 0.07])
    before = copy.deepcopy(method.teacher)
    method.after_step(0.0)
    for old, new, student in zip(
        before.parameters(), method.teacher.parameters(), method._student().parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.992 * old + 0.008 * student)


def test_the_centre_moves_to_the_teachers_logits() -> None:
    method, batch = make(centering="mean")
    embeddings, _ = method(batch, 0.0)
    method.after_step(0.0)
    prototypes = make(centering="mean")[0].teacher.module["dino_head"].prototypes()  # as they were
    logits = embeddings["teacher_z"].flatten(0, 1) @ prototypes.T
    dino, ibot = (method.centers[name].value for name in ("dino_head", "ibot_head"))
    torch.testing.assert_close(dino, 0.1 * logits.mean(0))
    assert ibot.any() and not torch.allclose(ibot, dino)


def test_learning_rates_by_depth() -> None:
    method, _ = make()
    groups = build_optimizer(method.config.optimizer, method.named_parameters(), 1.0, options=method.group_options)
    scale = {id(p): group.get("lr_scale", 1.0) for group in groups.param_groups for p in group["params"]}
    found = {name: scale[id(p)] for name, p in method.named_parameters() if p.requires_grad}
    assert found["dino_head.last_layer.weight"] == found["backbone.model.norm.weight"] == 1.0
    assert found["backbone.model.blocks.5.mlp.fc1.weight"] == pytest.approx(0.9)
    assert found["backbone.model.blocks.0.attn.qkv.bias"] == pytest.approx(0.9**6)
    assert found["mask_token"] == found["backbone.model.cls_token"] == pytest.approx(0.9**7)
    assert found["backbone.model.patch_embed.proj.weight"] == pytest.approx(0.2 * 0.9**7)
    assert layers_above("backbone.model.blocks.11.norm1.weight", 12) == 1
    assert layers_above("backbone.model.reg_token", 12) == 13


def test_a_step_without_masks_or_local_crops() -> None:
    method, batch = make(num_local=0, mask_probability=0.0)
    batch = Batch(batch.views[:2], None, batch.index, method.extras(batch, 0))
    assert not batch.extras["masks"].any()
    _, losses = method(batch, 0.5)
    losses["loss"].backward()
    assert losses["ibot"] == 0 and losses["loss"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_registers_and_rotary_positions() -> None:
    torch.manual_seed(0)
    for name, size, patch in (("vit_small_patch14_reg4_dinov2", 28, 7), ("vit_small_patch16_dinov3", 64, 16)):
        backbone = build_backbone(BackboneConfig(name, image_size=size, patch_size=patch))
        method = DINOv2(DINOv2.Config(**SMALL | {"num_local": 0}), backbone).train()
        batch = Batch((torch.randn(4, 3, size, size),) * 2, None, torch.arange(4))
        batch.extras |= method.extras(batch, 2)
        _, losses = method(batch, 0.5)
        losses["loss"].backward()
        assert losses["loss"].isfinite() and backbone.model.reg_token.grad.abs().max() > 0


def test_defaults_and_refusals() -> None:
    assert DINOv2.views(DINOv2.Config()) == dinov2()
    with pytest.raises(ValueError, match=r"method\.centering: expected mean or sinkhorn, got 'softmax'"):
        make(centering="softmax")
    with pytest.raises(ValueError, match="mask_ratio: expected low, high with 0 < low"):
        make(mask_ratio=(0.5, 0.1))
    with pytest.raises(ValueError, match="dinov2 needs a class token"):
        DINOv2(DINOv2.Config(), build_backbone(BackboneConfig("test_vit2", image_size=16, patch_size=4)))
    with pytest.raises(ValueError, match=r"set backbone\.image_size, or backbone\.dynamic_size=true"):
        backbone = build_backbone(BackboneConfig("vit_tiny_patch16_224", image_size=32))
        method = DINOv2(DINOv2.Config(**SMALL), backbone)
        batch = Batch(tuple(torch.randn(2, 3, s, s) for s in (32, 32, 16)), None, torch.arange(2))
        batch.extras |= method.extras(batch, 0)
        method.embed(batch)
