"""The bodies of the CUDA kernels for views, run on the CPU under the sanitizers, beside the CPU's fused engine."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_fast.data.engine_fused import FusedEngine, settings
from ssl_fast.data.views import View, draw

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
PLAIN = {"mean": (0.0,), "std": (1.0,)}
JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "jitter": 0.8}
SIMCLR = {**JITTER, "grayscale": 0.2, "blur": 0.5}


def compiled(folder, sanitizer):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    path = folder / "views_on_host"
    flags = ["-std=c++17", "-O1", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{CSRC}"]
    command = [compiler, *flags, HERE / "views_on_host.cpp", "-o", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "cannot find" in done.stderr:
        pytest.skip(f"the compiler has no library for -fsanitize={sanitizer}")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("address"), "address,undefined")


@pytest.fixture(scope="module")
def watched_threads(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("thread"), "thread")


def pictures(num, height, width, channels=3, seed=0):
    """Noise over large shapes: edges, gradients and every colour."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.rand(num, channels, 5, 5, generator=generator)
    shapes = torch.nn.functional.interpolate(shapes, size=(height, width), mode="bicubic").clamp(0, 1)
    noise = torch.rand(num, channels, height, width, generator=generator)
    return ((0.8 * shapes + 0.2 * noise) * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def ragged(num=6):
    return [pictures(1, 150 - 9 * i, 60 + 15 * i, seed=i)[0] for i in range(num)]


def tables(views, images):
    return draw(views, 1, 0, np.arange(len(images)), np.array([i.shape[:2] for i in images]).reshape(-1, 2))


def on_host(program, images, table, views, channels, *, channels_last=True, images_a_batch=0):
    """What the CUDA kernels make of them."""
    sizes, bicubic, operations, radii, thresholds, mean, std = settings(views, channels)
    mean, std = (np.array(x, dtype=np.float64).reshape(-1, channels) for x in (mean, std))
    header = [len(images), channels, len(views), channels_last, images_a_batch]
    parts = [np.array([*header, *sizes, *bicubic, *operations, *radii], dtype=np.int64)]
    parts += [np.array(thresholds, dtype=np.float64), np.stack([1 / std, -mean / std], axis=1).astype(np.float32)]
    parts += [table.numpy(), np.array([i.shape[:2] for i in images], dtype=np.int64), *images]
    source, result = program.with_name("input"), program.with_name("output")
    source.write_bytes(b"".join(part.tobytes() for part in parts))
    done = subprocess.run([program, source, result], capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the sanitizer cannot run with this kernel's layout of addresses")
    assert done.returncode == 0, done.stderr
    values = torch.from_numpy(np.fromfile(result, dtype=np.float32))
    whole = values.split([len(images) * channels * size**2 for size in sizes])
    if channels_last:
        return [x.view(-1, size, size, channels).permute(0, 3, 1, 2) for x, size in zip(whole, sizes, strict=True)]
    return [x.view(-1, channels, size, size) for x, size in zip(whole, sizes, strict=True)]


def assert_agree(program, images, views, channels=3, **options):
    """Within a thousandth of a level of 255 of the CPU engine's."""
    table = tables(views, images)
    ours = on_host(program, images, table, views, channels, **options)
    for view, found, expected in zip(views, ours, FusedEngine(views, channels)(images, table), strict=True):
        levels = (found - expected).abs() * torch.tensor(view.std).view(1, -1, 1, 1) * 255
        assert found.shape == expected.shape and levels.isfinite().all()
        assert levels.max() < 1e-3


@pytest.mark.parametrize("size", [32, 67])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interpolation": "bicubic"},
        {"brightness": 0.8, "jitter": 1.0},
        {"contrast": 0.8, "jitter": 1.0},
        {"saturation": 0.8, "jitter": 1.0},
        {"hue": 0.5, "jitter": 1.0},
        {"grayscale": 0.5},
        {"blur": 1.0},
        {"blur": 1.0, "blur_sigma": (0.5, 9.0)},
        {"solarize": 0.7, "solarize_threshold": 0.4},
        {**SIMCLR, "interpolation": "bicubic", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
    ],
    ids="-".join,
)
def test_every_operation_equals_the_cpu_engines(program, options, size):
    assert_agree(program, ragged(), [View(size=size, **{**PLAIN, **options})])


def test_several_views_in_batches_of_two_images(program):
    views = [View(size=64, **SIMCLR), View(size=24, crop_scale=(0.05, 0.3), **SIMCLR), View(size=64, blur=1.0)]
    assert_agree(program, ragged(5), views, images_a_batch=2)


def test_arrays_and_views_of_several_tiles(program):
    assert_agree(program, pictures(40, 32, 32), [View(size=32, **SIMCLR)] * 2)
    assert_agree(program, [pictures(1, 375, 500)[0]], [View(size=224, **SIMCLR), View(size=224, **SIMCLR)])
    assert_agree(
        program, [pictures(1, 90, 70)[0]], [View(size=300, **{**SIMCLR, "blur": 1.0, "blur_sigma": (9.0, 9.0)})]
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_any_number_of_channels(program, channels, channels_last):
    view = View(size=23, **PLAIN, brightness=0.4, contrast=0.4, jitter=0.8, blur=0.5)
    assert_agree(program, list(pictures(6, 41, 37, channels)), [view], channels, channels_last=channels_last)


def test_order_of_the_output(program):
    view = View(size=40, **SIMCLR)
    assert_agree(program, ragged(), [view, view], channels_last=False)


def test_odd_extents(program):
    images = [pictures(1, *extent)[0] for extent in ((1, 5000), (5000, 1), (1, 1), (2, 3), (700, 9))]
    for size in (1, 2, 7, 33):
        view = View(size=size, **PLAIN, brightness=0.4, contrast=0.4, jitter=1.0, blur=1.0)
        assert_agree(program, images, [view])


def test_threads_of_a_block_do_not_race(watched_threads):
    views = [View(size=40, **{**SIMCLR, "jitter": 1.0, "blur": 1.0}), View(size=24, **SIMCLR)]
    assert_agree(watched_threads, ragged(3), views, images_a_batch=2)
    view = View(size=9, **PLAIN, contrast=0.4, jitter=1.0, blur=1.0)
    assert_agree(watched_threads, list(pictures(2, 20, 20, 2)), [view], 2)
