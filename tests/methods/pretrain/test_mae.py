"""MAE beside lightly's encoder, decoder and targets: loss and gradients; what is masked, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ssl_fast.data.view_presets import mae
from ssl_fast.data.views import Batch
from ssl_fast.methods.pretrain.mae import MAE
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from ssl_fast.models.mae_decoder import patchify, sincos_positions
from tests.methods.pretrain.oracles import record_all

NAMES = {  # ours -> lightly's
    "embed": "decoder_embed", "blocks": "decoder_blocks", "norm": "decoder_norm", "pixels": "decoder_pred",
}  # fmt: skip


def make(**options) -> tuple[MAE, Batch]:
    torch.manual_seed(0)
    config = MAE.Config(**{"decoder_dim": 24, "decoder_depth": 2, "decoder_heads": 3} | options)
    backbone = build_backbone(BackboneConfig("test_vit", image_size=16, patch_size=4))
    nn.init.normal_(backbone.model.cls_token, std=0.02)
    method = MAE(config, backbone)
    batch = Batch((torch.randn(6, 3, 16, 16),), None, torch.arange(6) * 7)
    batch.extras |= method.extras(batch, 3)
    return method, batch


def lightly_loss(method: MAE, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss as lightly's MAE example computes it, from the same weights; and its gradients by our names."""
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

    vit, decoder = method.backbone.model, method.decoder
    encoder = MaskedVisionTransformerTIMM(vit, weight_initialization="skip", pos_embed_initialization="skip")
    peer = MAEDecoderTIMM(
        16, 4, 3, vit.embed_dim, 24, 2, 3, mask_token=nn.Parameter(decoder.mask_token.detach()[None, None].clone())
    )
    with torch.no_grad():
        peer.mask_token.copy_(decoder.mask_token)
        for name, parameter in decoder.named_parameters():
            if name != "mask_token":
                first, rest = name.split(".", 1)
                peer.get_parameter(f"{NAMES[first]}.{rest}").copy_(parameter)
    keep, hidden = batch.extras["order"][:, :4] + 1, batch.extras["order"][:, 4:] + 1
    keep = torch.cat((torch.zeros(6, 1, dtype=torch.int64), keep), 1)
    images = batch.views[0]
    decoded = utils.repeat_token(peer.mask_token, (6, 17)).type_as(images)
    decoded = utils.set_at_index(decoded, keep, peer.embed(encoder.encode(images, idx_keep=keep)))
    predicted = peer.predict(utils.get_at_index(peer.decode(decoded), hidden))
    target = utils.normalize_mean_var(utils.get_at_index(utils.patchify(images, 4), hidden - 1))
    loss = nn.functional.mse_loss(predicted, target)
    named = {f"backbone.model.{name}": p for name, p in vit.named_parameters() if p.requires_grad}
    for name, _ in decoder.named_parameters():
        first, _, rest = name.partition(".")
        named[f"decoder.{name}"] = peer.get_parameter(f"{NAMES[first]}.{rest}" if rest else name)
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss, {name: g.reshape(-1) for name, g in zip(named, gradients, strict=True) if g is not None}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_loss_and_gradients_are_lightlys() -> None:
    pytest.importorskip("lightly")
    method, batch = make()
    expected, gradients = lightly_loss(method, batch)
    _, losses = method(batch, 0.0)
    losses["loss"].backward()
    got = {name: p.grad.reshape(-1) for name, p in method.named_parameters() if p.grad is not None}
    assert got.keys() == gradients.keys() and len(got) > 80
    record_all("mae", losses["loss"], expected, got, gradients)
    assert abs(losses["loss"] - expected) <= 1e-5 * expected
    largest = max(g.abs().max() for g in gradients.values())
    for name, gradient in gradients.items():
        assert (got[name] - gradient).abs().max() <= 1e-5 * largest, name


def test_positions_are_lightlys() -> None:
    utils = pytest.importorskip("lightly.models.utils")
    expected = torch.from_numpy(utils.get_2d_sine_cosine_positional_embedding(24, 5, cls_token=False)).float()
    torch.testing.assert_close(sincos_positions((5, 5), 24), expected)
    assert sincos_positions((2, 3), 8).shape == (6, 8)
    with pytest.raises(ValueError, match="a multiple of 4, got 6"):
        sincos_positions((2, 2), 6)


def test_patchify_puts_every_pixel_in_its_patch() -> None:
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(images, (2, 3))
    assert patches.shape == (2, 4, 18)
    assert torch.equal(patches[1, 3].reshape(2, 3, 3), images[1, :, 2:, 3:].permute(1, 2, 0))


def test_the_encoder_sees_a_quarter_and_the_loss_the_rest() -> None:
    method, batch = make()
    visible = batch.extras["order"][:, :4]
    assert batch.extras["order"].shape == (6, 16) and len(visible.unique(dim=0)) > 3
    embeddings = {**method.embed(batch), **method.targets(batch)}
    assert embeddings["pixels"].shape == embeddings["target"].shape == (6, 12, 48)
    # the hidden patches change the targets alone
    changed = batch.views[0].clone()
    for row, order in enumerate(batch.extras["order"]):
        for place in order[4:].tolist():
            changed[row, :, place // 4 * 4 :, place % 4 * 4 :][:, :4, :4] *= 3
    other = Batch((changed,), None, batch.index, batch.extras)
    torch.testing.assert_close(method.embed(other)["pixels"], embeddings["pixels"])
    torch.testing.assert_close(method.targets(other)["target"], embeddings["target"], rtol=1e-3, atol=1e-3)  # normed
    method.config = replace(method.config, normalize_pixels=False)
    assert (method.targets(other)["target"] - embeddings["target"]).abs().max() > 1


def test_the_encoders_positions_are_fixed_or_learnt() -> None:
    method, _ = make()
    positions = method.backbone.model.pos_embed
    assert not positions.requires_grad and not positions[0, 0].any()
    torch.testing.assert_close(positions[0, 1:], sincos_positions((4, 4), 64))
    assert make(sincos_positions=False)[0].backbone.model.pos_embed.requires_grad


def test_models_without_a_class_token_and_with_registers() -> None:
    torch.manual_seed(0)
    for name in ("test_vit2", "vit_small_patch14_reg4_dinov2"):
        size, patch = (16, 4) if name == "test_vit2" else (28, 7)
        backbone = build_backbone(BackboneConfig(name, image_size=size, patch_size=patch))
        method = MAE(MAE.Config(decoder_dim=24, decoder_depth=1, decoder_heads=3), backbone)
        batch = Batch((torch.randn(4, 3, size, size),), None, torch.arange(4))
        batch.extras |= method.extras(batch, 0)
        _, losses = method(batch, 0.0)
        losses["loss"].backward()
        used = [p.grad is not None for p in method.parameters() if p.requires_grad]
        assert losses["loss"] > 0.5 and all(used)


def test_defaults_and_refusals() -> None:
    assert MAE.views(MAE.Config()) == mae()
    with pytest.raises(ValueError, match="mae needs a vision transformer"):
        MAE(MAE.Config(), build_backbone(BackboneConfig("resnet18")))
    with pytest.raises(ValueError, match=r"mask_ratio: expected to hide some of 16 patches, got 1\.0"):
        make(mask_ratio=1.0)
    method, batch = make()
    with pytest.raises(ValueError, match=r"expected \(4, 4\) patches as backbone.image_size makes, got \(2, 2\)"):
        method.extras(Batch((torch.randn(6, 3, 8, 8),), None, batch.index), 0)
    vit = build_backbone(BackboneConfig("test_vit", image_size=16, patch_size=4))
    vit.config = replace(vit.config, weights="some.safetensors")
    with pytest.raises(ValueError, match="brings its own with its weights"):
        MAE(MAE.Config(), vit)
