"""open_clip's losses: value and gradients of the installed package, single process."""

import math

import pytest
import torch
from torch import Tensor

from ssl_fast.dropin import open_clip as ours
from tests.dropin.same import rows, same

theirs = pytest.importorskip("open_clip.loss")
DTYPES = [torch.float64, torch.float32]
SHAPES = [(1, 4), (2, 3), (5, 4), (16, 8), (33, 7)]


def batch(shape: tuple[int, int], dtype: torch.dtype, scale: float, bias: float = 0.0) -> list[Tensor]:
    features = [torch.nn.functional.normalize(rows(*shape, seed=seed, grad=False), dim=1) for seed in (0, 1)]
    numbers = [torch.tensor(scale), torch.tensor(bias)]
    return [t.to(dtype).requires_grad_() for t in (*features, *numbers)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_clip(shape: tuple[int, int], scale: float, dtype: torch.dtype) -> None:
    same(ours.ClipLoss(), theirs.ClipLoss(), batch(shape, dtype, scale)[:3])


@pytest.mark.parametrize("bias", [0.0, -10.0])
def test_clip_with_a_bias_that_gets_a_gradient_of_zero(bias: float) -> None:
    same(ours.ClipLoss(), theirs.ClipLoss(), batch((6, 4), torch.float64, 10.0, bias))


def test_clip_takes_features_as_they_come() -> None:
    inputs = [rows(6, 4), rows(6, 4, seed=1), torch.tensor(2.0, dtype=torch.float64)]
    same(ours.ClipLoss(), theirs.ClipLoss(), inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (100.0, -10.0), (10.0, 3.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_siglip(shape: tuple[int, int], scale: float, bias: float, dtype: torch.dtype) -> None:
    same(ours.SigLipLoss(), theirs.SigLipLoss(), batch(shape, dtype, scale, bias))


def test_siglip_without_a_bias() -> None:
    inputs = batch((6, 4), torch.float64, 10.0)[:3]
    same(lambda *t: ours.SigLipLoss()(*t, None), lambda *t: theirs.SigLipLoss()(*t, None), inputs)


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_numbers_as_floats_as_vectors_of_one_and_as_logarithms(name: str) -> None:
    image, text, *_ = batch((6, 4), torch.float64, 1.0)
    mine, other = getattr(ours, name)(), getattr(theirs, name)()
    same(lambda i, t: mine(i, t, 10.0, -5.0), lambda i, t: other(i, t, 10.0, -5.0), (image, text))
    log_scale = torch.tensor([math.log(10.0)], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([-5.0], dtype=torch.float64, requires_grad=True)
    inputs = (image, text, log_scale, bias)
    same(lambda i, t, s, b: mine(i, t, s.exp(), b), lambda i, t, s, b: other(i, t, s.exp(), b), inputs)


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_output_dict(name: str) -> None:
    inputs = batch((6, 4), torch.float64, 10.0, -1.0)
    got = getattr(ours, name)()(*inputs, output_dict=True)
    assert list(got) == list(getattr(theirs, name)()(*inputs, output_dict=True)) == ["contrastive_loss"]
    assert torch.equal(got["contrastive_loss"], getattr(ours, name)()(*inputs))


def test_constructors_take_open_clips_arguments() -> None:
    ours.ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True, rank=0, world_size=1, use_horovod=False)
    for impl in (None, *ours.DIST_IMPLS):
        ours.SigLipLoss(cache_labels=True, rank=0, world_size=1, dist_impl=impl)


def test_what_is_not_served_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="use_horovod"):
        ours.ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="gather_with_grad=True"):
        ours.ClipLoss(local_loss=True, world_size=2)
    with pytest.raises(ValueError, match="dist_impl"):
        ours.SigLipLoss(dist_impl="ring")
    for loss in (ours.ClipLoss(world_size=2), ours.SigLipLoss(world_size=2)):
        with pytest.raises(ValueError, match="world_size must be the number of ranks"):
            loss(*batch((3, 4), torch.float32, 1.0, 0.0))


def test_half_precision_is_computed_in_fp32() -> None:
    inputs = [t.detach() for t in batch((16, 8), torch.bfloat16, 10.0, -1.0)]
    for name in ("ClipLoss", "SigLipLoss"):
        loss = getattr(ours, name)()(*inputs)
        exact = getattr(theirs, name)()(*(t.double() for t in inputs))
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-5)
