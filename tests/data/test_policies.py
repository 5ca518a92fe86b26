"""AutoAugment, RandAugment and TrivialAugment: torchvision's operations, our randomness."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from ssl_fast import augment
from ssl_fast.data import engine_fused
from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.engine_fused import FusedEngine
from ssl_fast.data.engine_torchvision import TorchvisionEngine
from ssl_fast.data.loader import Loader, LoaderConfig, choose_engine
from ssl_fast.data.policies import _LEVELS, _PAIRS, _PROBABILITIES, OPERATIONS, POLICIES, draw_policy
from ssl_fast.data.policy_operations import policy_
from ssl_fast.data.view_presets import PRESETS
from ssl_fast.data.views import COLUMN, View, draw

TORCHVISIONS = {"autoaugment": v2.AutoAugment, "randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
BINS = {"autoaugment": 10, "randaugment": 31, "trivialaugment": 31}
needs_fused = pytest.mark.skipif(engine_fused.unavailable() is not None, reason="the C++ module was not built")


def name_of(operation):
    """As torchvision spells it."""
    spelled = "".join(part.capitalize() for part in OPERATIONS[operation].split("_"))
    return {"Autocontrast": "AutoContrast"}.get(spelled, spelled)


def uniforms(num, seed=0):
    return np.random.default_rng(seed).random((num, 5))


def pictures(num=8, size=40, channels=3):
    x = torch.rand(num, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(x, size=(size, size), mode="bicubic").clamp(0, 1) * 255).byte()


def space(policy, operation, size):
    """torchvision's magnitudes [bins] of an operation, or None."""
    magnitudes, signed = TORCHVISIONS[policy]._AUGMENTATION_SPACE[name_of(operation)]
    return magnitudes(BINS[policy], size, size), signed


@pytest.mark.parametrize("policy", POLICIES)
def test_magnitudes_are_torchvisions(policy):
    size, seen = 224, set()
    rows = draw_policy(policy, uniforms(20_000), size)
    for operation, magnitude in rows.reshape(-1, 2).astype(np.float32):
        operation = int(operation)
        if (operation, magnitude) in seen or operation == 0:
            continue
        seen.add((operation, magnitude))
        allowed, signed = space(policy, operation, size)
        if allowed is None:
            assert magnitude == 0
            continue
        allowed = torch.cat([allowed, -allowed]).double() if signed else allowed.double()
        assert (allowed - float(magnitude)).abs().min() < 1e-5, (name_of(operation), magnitude)
        assert OPERATIONS[operation] != "posterize" or magnitude == int(magnitude)  # bits
    expected = set(TORCHVISIONS[policy]._AUGMENTATION_SPACE) - {"Identity"}
    if policy == "autoaugment":
        expected -= {"ShearY", "TranslateX", "TranslateY", "Brightness"}  # not in the pairs for ImageNet
    assert {name_of(operation) for operation, _ in seen} == expected
    if policy == "trivialaugment":
        assert len({magnitude for operation, magnitude in seen if OPERATIONS[operation] == "rotate"}) == 61


def test_the_pairs_are_those_of_the_paper():
    theirs = v2.AutoAugment()._policies
    ours = [
        tuple((name_of(o), float(p), round(level * 9)) for o, p, level in zip(*row, strict=True))
        for row in zip(_PAIRS, _PROBABILITIES, _LEVELS, strict=True)
    ]
    assert ours == [tuple((name, p, level or 0) for name, p, level in pair) for pair in theirs]


def test_autoaugment_takes_each_pair_and_its_probabilities():
    numbers = uniforms(50_000)
    rows, pair = draw_policy("autoaugment", numbers, 32), (numbers[:, 0] * 25).astype(int)
    for p in range(25):
        chosen = rows[pair == p]
        assert abs(len(chosen) / len(rows) - 1 / 25) < 0.005
        assert np.abs((chosen[:, [0, 2]] > 0).mean(axis=0) - _PROBABILITIES[p]).max() < 0.05


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_operations_have_equal_chances_and_both_sides(policy):
    rows = draw_policy(policy, uniforms(28_000), 32)
    counts = np.bincount(rows[:, 0].astype(int), minlength=len(OPERATIONS))
    assert counts[-1] == 0 and np.abs(counts[:-1] / 28_000 - 1 / 14).max() < 0.008
    if policy == "randaugment":
        assert abs(np.corrcoef(rows[:, 0], rows[:, 2])[0, 1]) < 0.03
        assert set(rows[rows[:, 0] == 5, 1]) == {-9.0, 9.0}
    else:
        assert not rows[:, 2:].any()
    turned = rows[(rows[:, 0] == 5) & (rows[:, 1] != 0), 1]
    assert abs((turned > 0).mean() - 0.5) < 0.05


@pytest.mark.parametrize("operation", range(len(OPERATIONS)), ids=OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_are_torchvisions(operation, channels):
    x = pictures(channels=channels)
    magnitudes = {"posterize": [8, 5, 2], "solarize": [1.0, 0.3]}.get(OPERATIONS[operation], [0.0, 0.3, -0.27, 9.0])
    oracle = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=128)
    for magnitude in magnitudes if operation < 6 else [m for m in magnitudes if abs(m) <= 8 and m >= -1]:
        expected = torch.stack(
            [
                oracle._apply_image_or_video_transform(
                    image, name_of(operation), magnitude, oracle.interpolation, oracle._fill
                )
                for image in x
            ]
        )
        found = x.float()
        policy_(found, torch.tensor([[operation, magnitude, 0, 0]] * len(x)))
        assert torch.equal(found, expected.float())


def test_the_second_operation_follows_the_first():
    x = pictures().float()
    invert, posterize = OPERATIONS.index("invert"), OPERATIONS.index("posterize")
    both, once = x.clone(), x.clone()
    policy_(both, torch.tensor([[posterize, 2, invert, 0]] * len(x)))
    policy_(once, torch.tensor([[posterize, 2, 0, 0]] * len(x)))
    assert torch.equal(both, 255 - once)


def photos(num=40):
    images = np.random.default_rng(0).integers(0, 256, (num, 24, 24, 3), dtype=np.uint8)
    return ArrayDataset(images, np.arange(num) % 4, [])


def batches(policy, **config):
    view = View(size=20, policy=policy)
    loader = Loader(photos(), (view, view), LoaderConfig(**config), batch_size=8, seed=3, shuffle=True, drop_last=False)
    found = {int(i): [v[n].clone() for v in b.views] for b in loader.epoch(1) for n, i in enumerate(b.index)}
    loader.close()
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sample_has_its_views_whatever_makes_them(policy):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone = batches(policy, workers=0)
    assert torch.equal(state, torch.get_rng_state())  # torch's own generator has no part in it
    torch.manual_seed(1)
    for config in ({"workers": 2, "start_method": "thread"}, {"workers": 2, "prefetch": 1}):
        for i, views in batches(policy, **config).items():
            assert all(torch.equal(x, y) for x, y in zip(views, alone[i], strict=True))
    assert any(not torch.equal(x, y) for x, y in alone.values())


def test_a_policy_leaves_crop_flip_and_colours_as_they_were():
    index, sizes = np.arange(50), np.full((50, 2), 60)
    colours = {"brightness": 0.4, "jitter": 0.8, "blur": 0.5}
    plain = draw([View(size=32, **colours)], 0, 0, index, sizes)
    for policy in POLICIES:
        table = draw([View(size=32, policy=policy, **colours)], 0, 0, index, sizes)
        first = COLUMN["operation0"]
        assert torch.equal(table[..., :first], plain[..., :first])
        assert table[..., first:].any() and not plain[..., first:].any()


@needs_fused
def test_auto_says_why_it_takes_the_slow_engine(caplog):
    batches("randaugment", workers=0)
    assert "torchvision, the slowest: policy=randaugment needs the torchvision engine" in caplog.text


@needs_fused
def test_the_engines_that_have_no_policies_say_so():
    views, cpu = (View(size=20), View(size=20, policy="randaugment")), torch.device("cpu")
    assert choose_engine("auto", photos(), cpu, views) == (
        "torchvision",
        "policy=randaugment needs the torchvision engine",
    )
    for engine in ("fused", "dali"):
        with pytest.raises(ValueError, match=f"{engine} cannot be used: policy=randaugment needs the torchvision"):
            choose_engine(engine, photos(), cpu, views)
    with pytest.raises(ValueError, match=r"policy: expected '' for the fused engine, got 'randaugment'"):
        FusedEngine(views, 3)
    with pytest.raises(ValueError, match=r"policy: expected '' or 'autoaugment' or .*, got 'randaug'"):
        View(policy="randaug")
    with pytest.raises(ValueError, match=r"policy: expected images of 1 or 3 channels, got 4"):
        TorchvisionEngine([View(size=20, policy="randaugment", mean=(0.5,), std=(0.5,))], 4)


@pytest.mark.parametrize("policy", POLICIES)
def test_presets_go_through_augment(policy):
    images = np.asarray(photos().arrays)[:6]
    (view,) = PRESETS[policy](size=20)
    (found,) = augment(images, [view], key=(0, 0, range(6)))
    (again,) = augment(images[2:3], [view], key=(0, 0, [2]))
    assert found.shape == (6, 3, 20, 20) and torch.equal(found[2:3], again)
    (plain,) = augment(images, PRESETS["supervised"](size=20), key=(0, 0, range(6)))
    assert not torch.allclose(found, plain, atol=0.05)
