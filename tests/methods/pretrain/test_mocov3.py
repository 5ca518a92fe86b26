"""MoCo v3 beside lightly's heads and the paper's loss; the fixed patch projection of ViTs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.data.views import Batch
from ssl_fast.methods.pretrain.mocov3 import MoCoV3
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from tests.methods.pretrain.oracles import batch_of, compare, make_pair

modules = pytest.importorskip("lightly.models.modules", reason="lightly is not installed")

VIT = BackboneConfig("vit_tiny_patch16_224", image_size=32, patch_size=16)


def contrast(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """The function ctr of the paper's Algorithm 1, on one process."""
    logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / temperature
    return 2 * temperature * F.cross_entropy(logits, torch.arange(len(logits)))


def test_the_first_step_is_lightlys_and_the_papers() -> None:
    method, oracle = make_pair(
        "mocov3",
        projector=modules.MoCoProjectionHead(64, 16, 8, num_layers=3, batch_norm=True),
        predictor=modules.MoCoProjectionHead(8, 16, 8, num_layers=2, batch_norm=True),
    )
    key_backbone, key_projector = copy.deepcopy(method.backbone), modules.MoCoProjectionHead(64, 16, 8, 3, True)
    oracle.teacher = nn.Sequential(key_backbone, key_projector)

    def loss(batch: Batch) -> Tensor:
        q1, q2 = (oracle.predictor(oracle.projector(oracle.backbone(view))) for view in batch.views)
        with torch.no_grad():
            k1, k2 = (oracle.teacher(view) for view in batch.views)
        return contrast(q1, k2, 0.2) + contrast(q2, k1, 0.2)

    compare(method, oracle, loss, batch_of(method))


def make(fixed: bool, backbone: BackboneConfig = VIT) -> MoCoV3:
    torch.manual_seed(0)
    config = MoCoV3.Config(hidden_dim=16, dim=8, fixed_patch_projection=fixed)
    config.view.size = 32
    return MoCoV3(config, build_backbone(backbone))


@pytest.mark.parametrize("fixed", [True, False])
def test_the_patch_projection_of_a_vit_is_trained_or_not(fixed: bool) -> None:
    method = make(fixed)
    projection = method.backbone.model.patch_embed.proj
    assert [p.requires_grad for p in projection.parameters()] == [not fixed] * 2
    method(batch_of(method), 0.0)[1]["loss"].backward()
    assert (projection.weight.grad is None) == fixed
    if fixed:
        bound = (6 / (3 * 16 * 16 + 192)) ** 0.5
        assert 0.99 * bound < float(projection.weight.abs().max()) <= bound
        assert not projection.bias.any()


def test_weights_that_were_loaded_are_not_drawn_anew(tmp_path) -> None:
    trained = build_backbone(VIT)
    torch.save(trained.model.state_dict(), tmp_path / "vit.pt")
    loaded = BackboneConfig(**{**vars(VIT), "weights": str(tmp_path / "vit.pt")})
    method = make(True, loaded)
    assert torch.equal(method.backbone.model.patch_embed.proj.weight, trained.model.patch_embed.proj.weight)


def test_a_projector_of_one_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.projector_layers: expected at least 2, got 1"):
        MoCoV3(MoCoV3.Config(projector_layers=1), build_backbone(VIT))
