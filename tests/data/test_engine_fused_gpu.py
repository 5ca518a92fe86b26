"""The fused engine on a GPU beside the one on the CPU, and behind the loader.

What is not arithmetic is tested without a GPU too: the C++ engine stands for the kernels, addresses being addresses.
"""

import ctypes

import numpy as np
import pytest
import torch

import ssl_fast
from ssl_fast.data import augment as augment_module
from ssl_fast.data import engine_fused_gpu, resident
from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.engine_fused import FusedEngine
from ssl_fast.data.engine_fused_gpu import FusedGpuEngine
from ssl_fast.data.loader import Loader, LoaderConfig, choose_engine
from ssl_fast.data.view_presets import swav
from ssl_fast.data.views import COLUMNS, View, draw

PLAIN = {"mean": (0.0,), "std": (1.0,)}
JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "jitter": 0.8}
SIMCLR = {**JITTER, "grayscale": 0.2, "blur": 0.5}
CPU = torch.device("cpu")


def pictures(num, height, width, channels=3, seed=0):
    """Noise over large shapes: edges, gradients and every colour."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.rand(num, channels, 5, 5, generator=generator)
    shapes = torch.nn.functional.interpolate(shapes, size=(height, width), mode="bicubic").clamp(0, 1)
    noise = torch.rand(num, channels, height, width, generator=generator)
    return ((0.8 * shapes + 0.2 * noise) * 255).byte().permute(0, 2, 3, 1).contiguous()


def ragged(num=12):
    return [pictures(1, 150 - 9 * i, 60 + 25 * i, seed=i)[0] for i in range(num)]


def tables(views, images, epoch=0):
    return draw(views, 1, epoch, np.arange(len(images)), np.array([i.shape[:2] for i in images]).reshape(-1, 2))


def on_cpu(views, images, table, *options):
    arrays = images.numpy() if isinstance(images, torch.Tensor) else [image.numpy() for image in images]
    return FusedEngine(views, int(images[0].shape[-1]), *options)(arrays, table)


class Stand:
    """ssl_fast._cuda for tensors on the CPU, by the C++ engine."""

    def augment_workspace(self, host_table, sizes, bicubic, radii, num, channels):
        return 16

    def augment(self, images, extents, table, host_table, normalisation, outs, *rest):
        import ssl_fast._cpu as cpu

        *settings, num, channels, dtype, channels_last, _, device, stream = rest
        assert (device, stream) == (3, 4)
        row = 4 * len(COLUMNS)  # bytes
        assert ctypes.string_at(table, num * len(outs) * row) == ctypes.string_at(host_table, num * len(outs) * row)
        numbers = np.frombuffer(ctypes.string_at(normalisation, 8 * len(outs) * channels), dtype=np.float32)
        scale, shift = np.moveaxis(numbers.reshape(-1, 2, channels).astype(np.float64), 1, 0)
        mean, std = (-shift / scale).ravel().tolist(), (1 / scale).ravel().tolist()
        cpu.augment(images, extents, table, outs, *settings, mean, std, num, channels, dtype, channels_last, 1)


@pytest.fixture
def stand(monkeypatch):
    monkeypatch.setattr(engine_fused_gpu, "unavailable", lambda: None)
    monkeypatch.setattr(engine_fused_gpu, "_module", Stand)
    monkeypatch.setattr(engine_fused_gpu, "place", lambda tensor: (3, 4))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_what_the_kernels_are_given(stand, memory_format):
    views = [View(size=24, **SIMCLR), View(size=17, solarize=0.5, blur=1.0)]
    for images in (pictures(5, 40, 48), ragged(), [image.transpose(0, 1) for image in ragged(3)]):
        options = (torch.bfloat16, memory_format)
        table = tables(views, images)
        results = FusedGpuEngine(views, 3, CPU, *options)(images, table)
        for result, expected in zip(results, on_cpu(views, images, table, *options), strict=True):
            assert torch.equal(result, expected) and result.is_contiguous(memory_format=memory_format)
    index = np.array([3, 0, 3])
    images = pictures(5, 40, 48)
    (some,) = FusedGpuEngine(views[:1], 3, CPU)(images, tables(views[:1], images[index]), index)
    torch.testing.assert_close(some, on_cpu(views[:1], images[index], tables(views[:1], images[index]))[0])
    for nothing in (images[:0], []):
        assert FusedGpuEngine(views, 3, CPU)(nothing, tables(views, nothing))[1].shape == (0, 3, 17, 17)


def test_errors_name_what_is_wrong(stand):
    images, view = pictures(2, 8, 8), View(size=8)
    engine, table = FusedGpuEngine([view], 3, CPU), tables([view], images)
    with pytest.raises(ValueError, match=r"images: expected uint8 \[N, H, W, 3\], got float32 \[2, 8, 8, 3\]"):
        engine(images.float(), table)
    with pytest.raises(ValueError, match=r"images: expected uint8 \[H, W, 3\], got uint8 \[8, 8, 1\]"):
        engine([image[..., :1] for image in images], table)
    with pytest.raises(ValueError, match=r"images: expected all on cpu, got one on meta"):
        engine([images[0], images[1].to("meta")], table)
    with pytest.raises(ValueError, match=r"table: expected shape \[2, 1, 21\], got \[1, 1, 21\]"):
        engine(images, table[:1])
    with pytest.raises(ValueError, match=r"table: expected crops of at least one pixel inside their images"):
        engine(images, table + 1)
    with pytest.raises(ValueError, match=r"dtype: expected float32, float16 or bfloat16, got torch.float64"):
        FusedGpuEngine([view], 3, CPU, torch.float64)


def test_the_kernels_take_what_the_engine_gives():
    cuda = pytest.importorskip("ssl_fast._cuda", reason="the CUDA module was not built")
    view = View(size=224, blur=0.5)
    table = tables([view], pictures(1, 100, 100))

    def needed(num, num_views):
        rows = table.expand(num, num_views, len(COLUMNS)).contiguous()
        lists = [224] * num_views, [False] * num_views, [11] * num_views
        return cuda.augment_workspace(rows.data_ptr(), *lists, num, 3)

    assert 3 * 224 * 224 < needed(1, 1) < 4 * 224 * 224
    assert needed(1, 64) == 64 * needed(1, 1) and needed(3, 1) == 3 * needed(1, 1)
    assert (31 << 20) < needed(1000, 1) <= (32 << 20)
    with pytest.raises(ValueError, match=r"views: expected at most 64 on a GPU, got 65"):
        cuda.augment_workspace(0, [224] * 65, [False] * 65, [11] * 65, 0, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the addresses are the CPU's")
def test_the_signature_fits(monkeypatch):
    pytest.importorskip("ssl_fast._cuda", reason="the CUDA module was not built")
    monkeypatch.setattr(engine_fused_gpu, "unavailable", lambda: None)
    monkeypatch.setattr(engine_fused_gpu, "place", lambda tensor: (0, 0))
    images, view = pictures(2, 8, 8), View(size=8, **SIMCLR)
    with pytest.raises(RuntimeError, match=r"^CUDA: "):  # it was called, and finds no device
        FusedGpuEngine([view], 3, CPU)(images, tables([view], images))


def test_without_the_module_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(engine_fused_gpu, "why_not_built", lambda name: f"ssl_fast.{name} is missing (nvcc not found)")
    monkeypatch.setattr(augment_module, "_device", lambda images: torch.device("cuda"))
    with pytest.raises(RuntimeError, match=r"^data.engine: fused cannot be used on a GPU: ssl_fast._cuda is missing"):
        ssl_fast.augment(pictures(2, 8, 8), [View(size=8)], key=(0, 0, range(2)))
    images = ArrayDataset(pictures(4, 8, 8).numpy(), None, [])
    engine, reason = choose_engine("auto", images, torch.device("cuda"))
    assert engine == "fused" and "on the GPU they cannot be made: ssl_fast._cuda is missing (nvcc not found)" in reason
    engine, reason = choose_engine("fused", images, torch.device("cuda"))
    assert engine == "fused" and reason == "asked for; not on the GPU: ssl_fast._cuda is missing (nvcc not found)"


def test_what_is_kept_on_the_gpu(monkeypatch):
    monkeypatch.setattr(engine_fused_gpu, "unavailable", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 4 * 8 * 8 * 3, 1 << 40))
    cuda, fits = torch.device("cuda"), ArrayDataset(pictures(4, 8, 8).numpy(), None, [])
    expected = ("fused", "the images fit on the GPU, and the CUDA kernels are built")
    assert choose_engine("auto", fits, cuda) == expected
    assert choose_engine("fused", fits, cuda) == ("fused", "asked for")
    assert choose_engine("auto", fits, CPU) == ("fused", "the device is a CPU, and the C++ kernels are built")
    larger = ArrayDataset(pictures(5, 8, 8).numpy(), None, [])
    assert resident.unavailable(larger, cuda) == "the images take 0.0 GB and 0.0 GB of the GPU are free"
    fits.arrays = None
    assert resident.unavailable(fits, cuda) == "the images are not in memory, all of one size"


def epochs(dataset, views, device, **options):
    config = LoaderConfig("fused", workers=0)
    options = {"batch_size": 16, "seed": 1, "shuffle": True, "drop_last": False} | options
    loader = Loader(dataset, views, config, device=device, **options)
    return [batch for epoch in (3, 4) for batch in loader.epoch(epoch)]


def test_the_loader_makes_the_same_batches(stand, monkeypatch):
    dataset = ArrayDataset(pictures(70, 20, 20).numpy(), np.arange(70) % 7, [])
    dataset.captions = [[f"{i}a", f"{i}b"] for i in range(70)]
    dataset.tokenize = lambda texts: np.array([[int(text[:-1]), ord(text[-1])] for text in texts])
    views = [View(size=16, **SIMCLR), View(size=24, solarize=0.5)]
    expected = epochs(dataset, views, CPU)
    monkeypatch.setattr(resident, "unavailable", lambda *_: None)
    monkeypatch.setattr(resident, "_AT_A_TIME", 32)
    for batch, same in zip(epochs(dataset, views, CPU), expected, strict=True):
        assert torch.equal(batch.index, same.index) and torch.equal(batch.labels, same.labels)
        assert all(map(torch.equal, batch.views, same.views))
        assert torch.equal(batch.extras["tokens"], same.extras["tokens"])
        assert torch.equal(batch.extras["tokens"][:, 0], batch.index)
    parts = [epochs(dataset, views, CPU, rank=rank, world_size=2)[0].views[0] for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), expected[0].views[0])


def levels(result, expected, view):
    std = torch.tensor(view.std).view(1, -1, 1, 1)
    return (result.float().cpu() - expected.float()).abs() * std * 255


def moved(images):
    return images.cuda() if isinstance(images, torch.Tensor) else [image.cuda() for image in images]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize(
    "settings",
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
def test_every_operation_equals_the_cpu_engines(settings, size):
    view, images = View(size=size, **{**PLAIN, **settings}), ragged()
    table = tables([view], images)
    (result,) = FusedGpuEngine([view], 3, torch.device("cuda"))(moved(images), table)
    error = levels(result, on_cpu([view], images, table)[0], view)
    assert (error > 1.1).float().mean() < 1e-5 and error.max() < 2 + 255 * (view.solarize > 0) and error.mean() < 5e-3


@pytest.mark.gpu
@pytest.mark.parametrize(
    "images", [pictures(300, 32, 32), pictures(3, 375, 500), ragged()], ids=["32", "500", "ragged"]
)
def test_multi_crop_equals_the_cpu_engines(images):
    views = [*swav(size=112), View(size=300, **SIMCLR)]
    table = tables(views, images)
    results = FusedGpuEngine(views, 3, torch.device("cuda"))(moved(images), table)
    for view, result, expected in zip(views, results, on_cpu(views, images, table), strict=True):
        error = levels(result, expected, view)
        assert error.max() < 2 and error.mean() < 5e-3


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_types_orders_and_channels_of_the_output(memory_format, channels):
    images, view = (
        pictures(5, 50, 40, channels),
        View(size=37, **PLAIN, brightness=0.4, contrast=0.4, jitter=1.0, blur=0.5),
    )
    table = tables([view], images)
    (wide,) = FusedGpuEngine([view], channels, torch.device("cuda"))(images.cuda(), table)
    assert levels(wide, on_cpu([view], images, table)[0], view).max() < 2
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        (result,) = FusedGpuEngine([view], channels, torch.device("cuda"), dtype, memory_format)(images.cuda(), table)
        assert result.dtype == dtype and result.is_contiguous(memory_format=memory_format)
        assert torch.equal(result, wide.to(dtype))


@pytest.mark.gpu
def test_odd_extents():
    images = [pictures(1, *extent)[0] for extent in ((1, 5000), (5000, 1), (1, 1), (2, 3), (700, 9))]
    for size in (1, 2, 7, 33):
        view = View(size=size, **PLAIN, brightness=0.4, contrast=0.4, jitter=1.0, blur=1.0)
        table = tables([view], images)
        (result,) = FusedGpuEngine([view], 3, torch.device("cuda"))(moved(images), table)
        assert levels(result, on_cpu([view], images, table)[0], view).max() < 2


@pytest.mark.gpu
def test_views_so_large_that_shared_memory_must_be_asked_for():
    view, images = View(size=5120, **PLAIN, blur=1.0, blur_sigma=(60.0, 60.0)), pictures(1, 90, 70)
    table = tables([view], images)
    (result,) = FusedGpuEngine([view], 3, torch.device("cuda"))(images.cuda(), table)
    assert levels(result, on_cpu([view], images, table)[0], view).max() < 2


@pytest.mark.gpu
def test_bits_do_not_depend_on_run_nor_batch():
    view, images = View(size=224, **SIMCLR, solarize=0.2), moved(ragged())
    engine, table = FusedGpuEngine([view, view], 3, torch.device("cuda")), tables([view, view], images)
    whole = engine(images, table)
    assert all(map(torch.equal, engine(images, table), whole))
    for rows in ([11], [5, 4], list(range(3, 12, 4))):
        part = engine([images[i] for i in rows], table[rows])
        assert all(torch.equal(p, w[rows]) for p, w in zip(part, whole, strict=True))


@pytest.mark.gpu
def test_more_images_than_a_workspace_holds():
    view, images = View(size=224, **PLAIN, **JITTER), pictures(1, 40, 40).expand(500, 40, 40, 3).contiguous()
    table = tables([view], images)
    (result,) = FusedGpuEngine([view], 3, torch.device("cuda"), torch.bfloat16)(images.cuda(), table)
    last = on_cpu([view], images[-20:], table[-20:], torch.bfloat16)[0]
    assert levels(result[-20:], last, view).max() < 3  # a rounding of bf16 is up to two levels
    assert result.isfinite().all()


@pytest.mark.gpu
def test_augment_works_on_the_current_stream_without_waiting():
    images, views = pictures(64, 32, 32), [View(size=32, **SIMCLR)] * 2
    expected = ssl_fast.augment(images, views, key=(0, 0, range(64)))
    resident_images, stream = images.cuda(), torch.cuda.Stream()
    ssl_fast.augment(resident_images, views, key=(0, 0, range(64)))  # kernels are loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            results = ssl_fast.augment(resident_images, views, key=(0, 0, range(64)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    for result, same in zip(results, expected, strict=True):
        assert levels(result, same, views[0]).max() < 2


@pytest.mark.gpu
def test_the_loader_keeps_arrays_on_the_gpu():
    dataset = ArrayDataset(pictures(70, 20, 20).numpy(), np.arange(70) % 7, [])
    views = [View(size=16, **SIMCLR), View(size=24, brightness=0.4, jitter=0.5)]
    assert choose_engine("auto", dataset, torch.device("cuda"))[1].startswith("the images fit on the GPU")
    for batch, same in zip(epochs(dataset, views, torch.device("cuda")), epochs(dataset, views, CPU), strict=True):
        assert batch.views[0].is_cuda and torch.equal(batch.index.cpu(), same.index)
        assert torch.equal(batch.labels.cpu(), same.labels)
        for view, result, expected in zip(views, batch.views, same.views, strict=True):
            assert levels(result, expected, view).max() < 2
