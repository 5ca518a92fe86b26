import numpy as np
import pytest
import torch

from ssl_fast.data.augment import augment
from ssl_fast.data.view_presets import PRESETS, byol, dino, dinov2, moco_v2, simclr, swav


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_makes_views(name):
    images = [np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), dtype=np.uint8) for i in range(3)]
    views = PRESETS[name](size=28)
    results = augment(images, views, key=(0, 0, [5, 6, 7]))
    assert [tuple(r.shape) for r in results] == [(3, 3, view.size, view.size) for view in views]
    assert all(r.isfinite().all() and r.std() > 0.1 for r in results)
    assert len({r.sum().item() for r in results}) == len(results), "views of one image differ"


def test_numbers_of_the_papers():
    first, second = simclr(strength=0.5)
    assert first == second and (first.brightness, first.hue, first.blur, first.crop_scale[0]) == (0.4, 0.1, 0.5, 0.08)
    assert moco_v2()[0].crop_scale == (0.2, 1.0)
    first, second = byol()
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert [view.size for view in swav()] == [224, 224] + [96] * 6
    assert [view.size for view in dino(98, local_size=42, num_local=3)] == [98, 98, 42, 42, 42]
    assert [view.crop_scale for view in dinov2(num_local=1)] == [(0.32, 1.0), (0.32, 1.0), (0.05, 0.32)]


def test_the_methods_have_the_papers_views():
    from ssl_fast.methods.pretrain.byol import BYOL
    from ssl_fast.methods.pretrain.moco import MoCo
    from ssl_fast.methods.pretrain.simclr import SimCLR

    assert BYOL.views(BYOL.Config()) == byol()
    assert MoCo.views(MoCo.Config()) == moco_v2()
    assert SimCLR.views(SimCLR.Config()) == simclr()


def test_a_key_gives_the_same_views_in_any_company():
    images = torch.randint(0, 256, (6, 30, 36, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = augment(images, simclr(size=16), key=(1, 2, range(6)))
    rows = [4, 1]
    part = augment([images[i] for i in rows], simclr(size=16), key=(1, 2, torch.tensor(rows)))
    assert all(torch.equal(p, w[rows]) for p, w in zip(part, whole, strict=True))
    assert not torch.equal(augment(images, simclr(size=16), key=(1, 3, range(6)))[0], whole[0])
    assert torch.equal(augment(images.numpy(), simclr(size=16), key=(1, 2, np.arange(6)))[1], whole[1])


def test_without_the_kernels_torchvision_makes_them(monkeypatch):
    images = torch.randint(0, 256, (6, 30, 36, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fused = augment(images, simclr(size=16), key=(1, 2, range(6)))
    monkeypatch.setattr("ssl_fast.data.augment.unavailable", lambda: "not built")
    for ours, theirs in zip(fused, augment(images, simclr(size=16), key=(1, 2, range(6))), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2 / 255)
    for empty in ([], images[:0]):
        assert [r.shape for r in augment(empty, simclr(size=16), key=(1, 2, []))] == [(0, 3, 16, 16)] * 2


def test_errors_name_what_is_wrong():
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"key: expected 2 sample numbers for as many images, got \[3\]"):
        augment(images, simclr(size=8), key=(0, 0, range(3)))
    with pytest.raises(ValueError, match=r"images: expected uint8 \[N, H, W, 3\], got float32 \[2, 8, 8, 3\]"):
        augment(images.float(), simclr(size=8), key=(0, 0, range(2)))
    with pytest.raises(ValueError, match=r"images: expected uint8 \[N, H, W, 3\], got uint8 \[8, 8, 3\]"):
        augment(images[0], simclr(size=8), key=(0, 0, range(8)))
    with pytest.raises(ValueError, match=r"images: expected tensors on the CPU or a CUDA device, got one on meta"):
        augment(images.to("meta"), simclr(size=8), key=(0, 0, range(2)))
    with pytest.raises(ValueError, match=r"images: expected all on the CPU, like the first, got one on meta"):
        augment([images[0], images[1].to("meta")], simclr(size=8), key=(0, 0, range(2)))
