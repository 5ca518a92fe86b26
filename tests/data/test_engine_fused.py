"""The fused engine beside the torchvision engine, given the same table; its implementations beside each other."""

import os
import subprocess
import sys

import numpy as np
import pytest
import ssl_fast._cpu as cpu
import torch

from ssl_fast.data.engine_fused import FusedEngine
from ssl_fast.data.engine_torchvision import TorchvisionEngine
from ssl_fast.data.views import COLUMN, View, draw

PLAIN = {"mean": (0.0,), "std": (1.0,)}
JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "jitter": 0.8}
SIMCLR = {**JITTER, "grayscale": 0.2, "blur": 0.5}


def pictures(num, height, width, channels=3, seed=0):
    """Noise over large shapes: edges, gradients and every colour."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.rand(num, channels, 5, 5, generator=generator)
    shapes = torch.nn.functional.interpolate(shapes, size=(height, width), mode="bicubic").clamp(0, 1)
    noise = torch.rand(num, channels, height, width, generator=generator)
    return ((0.8 * shapes + 0.2 * noise) * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def tables(views, images, epoch=0):
    return draw(views, 1, epoch, np.arange(len(images)), np.array([i.shape[:2] for i in images]).reshape(-1, 2))


def levels(view, images, channels=3):
    """Differences from the torchvision engine, in levels of 255."""
    table = tables([view], images)
    (ours,) = FusedEngine([view], channels)(images, table)
    (theirs,) = TorchvisionEngine([view], channels)(images, table)
    assert ours.shape == theirs.shape and ours.dtype == torch.float32
    std = torch.tensor(view.std).view(1, -1, 1, 1)
    return (ours - theirs).abs() * std * 255


def ragged(num=24):
    return [pictures(1, 150 - 3 * i, 60 + 5 * i, seed=i)[0] for i in range(num)]


# Largest and mean difference in levels of 255, with some room: a resize may differ by a level where a weight is a tie.
@pytest.mark.parametrize(
    ("settings", "largest", "mean"),
    [
        ({}, 1e-3, 1e-4),
        ({"interpolation": "bicubic"}, 1e-3, 1e-4),
        ({"brightness": 0.8, "jitter": 1.0}, 1e-3, 1e-4),
        ({"contrast": 0.8, "jitter": 1.0}, 1e-3, 1e-4),
        ({"saturation": 0.8, "jitter": 1.0}, 1e-3, 1e-4),
        ({"hue": 0.5, "jitter": 1.0}, 5e-3, 1e-4),
        ({"grayscale": 0.5}, 1e-3, 1e-4),
        ({"blur": 1.0}, 0.1, 5e-3),  # taps beyond four sigma are left out
        ({"blur": 1.0, "blur_sigma": (0.5, 9.0)}, 0.1, 5e-3),
        ({"solarize": 0.7, "solarize_threshold": 0.4}, 1e-3, 1e-4),
        (SIMCLR, 0.2, 5e-3),
        ({**SIMCLR, "interpolation": "bicubic", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}, 0.2, 5e-3),
    ],
    ids=lambda value: "-".join(value) or "crop" if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("size", [32, 96])
def test_every_operation_equals_torchvisions(settings, largest, mean, size):
    error = levels(View(size=size, **{**PLAIN, **settings}), ragged())
    assert error.max() < largest and error.mean() < mean


def test_solarisation_after_the_chain_flips_only_what_lies_on_the_threshold():
    view = View(size=64, **PLAIN, **SIMCLR, solarize=0.5)
    error = levels(view, ragged())
    assert (error > 2).float().mean() < 1e-5 and error.mean() < 1e-2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_arrays_equal_the_batched_reference(interpolation):
    view = View(size=32, interpolation=interpolation, **PLAIN, **SIMCLR)
    error = levels(view, pictures(128, 32, 32))
    assert error.max() < 0.2 and error.mean() < 1e-3


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 16])
def test_any_number_of_channels(channels):
    view = View(size=23, **PLAIN, brightness=0.4, contrast=0.4, jitter=0.8, blur=0.5, solarize=0.2)
    error = levels(view, pictures(20, 41, 37, channels), channels)
    assert (error > 2).float().mean() < 1e-5 and error.mean() < 1e-2


@pytest.mark.parametrize("channels", [1, 3])
def test_odd_extents(channels):
    images = [pictures(1, *extent, channels)[0] for extent in ((1, 5000), (5000, 1), (1, 1), (2, 3), (700, 9))]
    for size in (1, 2, 7, 33):
        view = View(size=size, **PLAIN, brightness=0.4, contrast=0.4, jitter=1.0, blur=1.0)
        assert levels(view, images, channels).max() < 0.3
    table = tables([View(size=8, **PLAIN)], images)
    table[:, 0, :4] = torch.tensor([0.0, 0.0, 1.0, 1.0])  # crops of one pixel
    (result,) = FusedEngine([View(size=8, **PLAIN)], channels)(images, table)
    corner = torch.stack([torch.from_numpy(image[0, 0].astype(np.float32)) for image in images]) / 255
    torch.testing.assert_close(result, corner[:, :, None, None].expand(result.shape))


def test_layouts_of_memory():
    images, view = pictures(6, 40, 48), View(size=24, **SIMCLR)
    (expected,) = FusedEngine([view], 3)(images, tables([view], images))
    turned = np.ascontiguousarray(images.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    readonly = images.copy()
    readonly.flags.writeable = False
    for same in (
        turned,
        readonly,
        images.copy()[::-1][::-1],
        list(images),
        [image[:, ::-1][:, ::-1] for image in turned],
    ):
        (result,) = FusedEngine([view], 3)(same, tables([view], images))
        assert torch.equal(result, expected)
    for empty in (images[:0], []):
        (result,) = FusedEngine([view], 3)(empty, tables([view], empty))
        assert result.shape == (0, 3, 24, 24)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_types_and_orders_of_the_output(memory_format, channels):
    images, view = pictures(5, 50, 40, channels), View(size=37, **PLAIN, brightness=0.4, jitter=1.0)
    table = tables([view], images)
    (expected,) = FusedEngine([view], channels)(images, table)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        (result,) = FusedEngine([view], channels, dtype, memory_format)(images, table)
        assert result.dtype == dtype and result.is_contiguous(memory_format=memory_format)
        assert torch.equal(result, expected.to(dtype))


def test_views_of_several_sizes_in_one_call():
    views = [View(size=64, **SIMCLR), View(size=24, crop_scale=(0.05, 0.3), **SIMCLR), View(size=64, blur=1.0)]
    images = ragged(10)
    table = tables(views, images)
    for position, (view, result) in enumerate(zip(views, FusedEngine(views, 3)(images, table), strict=True)):
        (alone,) = FusedEngine([view], 3)(images, table[:, position : position + 1])
        assert torch.equal(result, alone)


def test_bits_do_not_depend_on_threads_nor_batch():
    view, images = View(size=48, **SIMCLR, solarize=0.2), ragged(30)
    engine, table = FusedEngine([view, view], 3), tables([view, view], images)
    whole = engine(images, table)
    before = torch.get_num_threads()
    try:
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, engine(images, table), whole))
    finally:
        torch.set_num_threads(before)
    for rows in ([29], [5, 4], list(range(3, 30, 4))):
        part = engine([images[i] for i in rows], table[rows])
        assert all(torch.equal(p, w[rows]) for p, w in zip(part, whole, strict=True))


@pytest.mark.parametrize("size", [32, 61])
def test_instruction_sets_agree(size):
    view, images, found = View(size=size, **SIMCLR), ragged(), {}
    before = cpu.isa()
    try:
        for isa in ("generic", "avx2", "avx512"):
            try:
                cpu.set_isa(isa)
            except ValueError:
                continue  # this processor has it not
            (found[isa],) = FusedEngine([view], 3)(images, tables([view], images))
    finally:
        cpu.set_isa(before)
    for result in found.values():
        torch.testing.assert_close(result, found["generic"], rtol=0, atol=1e-4)


def test_after_a_fork():
    code = """
import os, numpy as np, torch
from ssl_fast.data.engine_fused import FusedEngine
from ssl_fast.data.views import View, draw
torch.set_num_threads(2)
images, views = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), [View(size=32, blur=0.5)]
make = lambda: FusedEngine(views, 3)(images, draw(views, 0, 0, np.arange(40), np.full((40, 2), 32)))[0]
before = make()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(make(), before) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.strip() == "0", done.stderr


def test_errors_name_what_is_wrong():
    images, view = pictures(2, 8, 8), View(size=8)
    table = tables([view], images)
    engine = FusedEngine([view], 3)
    with pytest.raises(ValueError, match=r"images: expected uint8 \[N, H, W, 3\], got float32 \[2, 8, 8, 3\]"):
        engine(images.astype(np.float32), table)
    with pytest.raises(ValueError, match=r"images: expected uint8 \[H, W, 3\], got uint8 \[8, 8, 1\]"):
        engine([image[..., :1] for image in images], table)
    with pytest.raises(ValueError, match=r"table: expected shape \[2, 1, 21\], got \[1, 1, 21\]"):
        engine(images, table[:1])
    for name, value in (("top", 8), ("left", -1), ("height", 0), ("width", 9), ("width", float("nan"))):
        wrong = table.clone()
        wrong[1, 0, COLUMN[name]] = value
        with pytest.raises(ValueError, match=r"table: expected crops of at least one pixel inside their images"):
            engine(images, wrong)
    with pytest.raises(ValueError, match=r"saturation, hue, grayscale: expected images of 1 or 3 channels, got 4"):
        FusedEngine([View(size=8, **{**PLAIN, **SIMCLR})], 4)
    with pytest.raises(ValueError, match=r"dtype: expected float32, float16 or bfloat16, got torch.float64"):
        FusedEngine([view], 3, torch.float64)
    with pytest.raises(ValueError, match=r"blur: expected a view of at most 5120 pixels, got 6000"):
        FusedEngine([View(size=6000, blur=0.5)], 3)
