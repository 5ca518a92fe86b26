"""Tokens of timm's transformers: the model's own features, masks and kept patches as lightly and timm have them."""

import pytest
import torch
from torch import Tensor

from ssl_fast.models.backbone import Backbone, BackboneConfig, build_backbone
from ssl_fast.models.tokens import check_transformer, patch_grid, tokens

MODELS = {  # class tokens, registers
    "test_vit": (BackboneConfig("test_vit", image_size=16, patch_size=4), 1, 0),
    "test_vit2": (BackboneConfig("test_vit2", image_size=16, patch_size=4), 0, 1),
    "vit_tiny": (BackboneConfig("vit_tiny_patch16_224", image_size=32, patch_size=8), 1, 0),
    "dinov2": (BackboneConfig("vit_small_patch14_reg4_dinov2", image_size=56), 1, 4),
    "dinov3": (BackboneConfig("vit_small_patch16_dinov3", image_size=64), 1, 4),
    "eva02": (BackboneConfig("eva02_tiny_patch14_224", image_size=56), 1, 0),
    "rope_mixed": (BackboneConfig("vit_small_patch16_rope_mixed_224", image_size=64), 1, 0),
}


def build(name: str) -> tuple[Backbone, Tensor]:
    torch.manual_seed(0)
    config = MODELS[name][0]
    backbone = build_backbone(config).eval()
    for parameter in backbone.parameters():  # class tokens and layer scales start at almost nothing
        parameter.requires_grad_(False).add_(torch.randn_like(parameter) * 0.02)
    return backbone, torch.randn(2, 3, config.image_size, config.image_size)


@pytest.mark.parametrize("name", MODELS)
def test_the_models_own_features(name: str) -> None:
    backbone, images = build(name)
    _, num_classes, num_registers = MODELS[name]
    found = tokens(backbone.model, images)
    grid = patch_grid(backbone.model, *images.shape[-2:])
    assert found.patches.shape == (2, grid[0] * grid[1], backbone.num_features)
    assert found.registers.shape == (2, num_registers, backbone.num_features)
    assert (found.class_token is not None) == (num_classes == 1)
    parts = [found.registers, found.patches]
    parts = parts if found.class_token is None else [found.class_token[:, None], *parts]
    expected = backbone.model.forward_features(images)
    if isinstance(backbone.model.norm, torch.nn.Identity):
        expected = backbone.model.fc_norm(expected)
    torch.testing.assert_close(torch.cat(parts, 1), expected)
    if found.class_token is not None and name not in ("eva02", "rope_mixed", "dinov3"):  # these pool the patches
        torch.testing.assert_close(found.class_token, backbone(images))


@pytest.mark.parametrize("name", MODELS)
def test_hidden_patches_leave_no_trace(name: str) -> None:
    """What lies under a mask, or is not kept, changes nothing; what is seen does."""
    backbone, images = build(name)
    rows, columns = patch_grid(backbone.model, *images.shape[-2:])
    size = images.shape[-1] // columns
    changed = images.clone()
    changed[:, :, :size, :size] += 1  # patch 0
    mask = torch.zeros(2, rows * columns, dtype=torch.bool)
    mask[:, 0] = True
    token = torch.randn(backbone.num_features)
    keep = torch.arange(1, rows * columns).flip(0).expand(2, -1)
    for options in ({"mask": mask, "mask_token": token}, {"keep": keep}):
        before, after = (tokens(backbone.model, x, **options).patches for x in (images, changed))
        torch.testing.assert_close(before, after)
        seen, other = (tokens(backbone.model, x).patches for x in (images, changed))
        assert (seen - other).abs().max() > 1e-3
        assert (before[:, 1:] - seen[:, 1 : before.shape[1]]).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_keeping_all_in_another_order_permutes(name: str) -> None:
    """Each patch takes its position along, a rotary one too."""
    backbone, images = build(name)
    whole = tokens(backbone.model, images)
    order = torch.stack([torch.randperm(whole.patches.shape[1]) for _ in range(2)])
    permuted = tokens(backbone.model, images, keep=order)
    for row in range(2):
        torch.testing.assert_close(permuted.patches[row], whole.patches[row][order[row]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(permuted.registers, whole.registers, rtol=1e-4, atol=1e-4)


def test_against_lightly() -> None:
    modules = pytest.importorskip("lightly.models.modules")
    for name in ("test_vit", "dinov2"):
        backbone, images = build(name)
        token = torch.randn(backbone.num_features)
        prefix = backbone.model.num_prefix_tokens
        peer = modules.MaskedVisionTransformerTIMM(
            backbone.model,
            torch.nn.Parameter(token[None, None]),
            weight_initialization="skip",
            pos_embed_initialization="skip",
        )
        mask = torch.rand(2, patch_grid(backbone.model, *images.shape[-2:])[0] ** 2) < 0.4
        padded = torch.cat((torch.zeros(2, prefix, dtype=torch.bool), mask), 1)
        found = tokens(backbone.model, images, mask=mask, mask_token=token)
        torch.testing.assert_close(found.patches, peer.encode(images, mask=padded)[:, prefix:])
        keep = torch.rand(mask.shape).argsort(1)[:, :5]
        kept = torch.cat((torch.arange(prefix).expand(2, -1), keep + prefix), 1)
        found = tokens(backbone.model, images, keep=keep)
        torch.testing.assert_close(found.patches, peer.encode(images, idx_keep=kept)[:, prefix:])


def test_several_sizes() -> None:
    backbone, _ = build("test_vit")
    images = torch.randn(2, 3, 8, 24)
    assert patch_grid(backbone.model, 8, 24) == (2, 6)
    torch.testing.assert_close(tokens(backbone.model, images).class_token, backbone(images))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"mae needs a vision transformer of timm .*, got resnet18"):
        check_transformer(build_backbone(BackboneConfig("resnet18")), "mae")
    with pytest.raises(ValueError, match="needs a vision transformer"):
        check_transformer(build_backbone(BackboneConfig("swin_tiny_patch4_window7_224")), "mae")
    with pytest.raises(ValueError, match="dinov2 needs a class token, and test_vit2 has none"):
        check_transformer(build("test_vit2")[0], "dinov2", class_token=True)
    backbone, images = build("vit_tiny")
    with pytest.raises(ValueError, match=r"takes 32x32 pixels, got 16x16; set backbone\.image_size"):
        tokens(backbone.model, images[:, :, :16, :16])
    with pytest.raises(ValueError, match="a multiple of the patch's side 8 x 8, got 30x32"):
        patch_grid(backbone.model, 30, 32)
    with pytest.raises(ValueError, match="mask and mask_token must both be given"):
        tokens(backbone.model, images, mask=torch.zeros(2, 16, dtype=torch.bool))
