import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ssl_fast.data.engine_torchvision import TorchvisionEngine
from ssl_fast.data.resample import blur_kernel_size
from ssl_fast.data.views import COLUMN, View, draw

PLAIN = {"mean": (0.0,), "std": (1.0,)}
SIMCLR = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "jitter": 0.8, "grayscale": 0.2}
OPERATIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
FACTORS = ("brightness", "contrast", "saturation", "hue")


def reference(image, row, view):
    """One image through torchvision's v2 functional with the same parameters."""
    value = dict(zip(COLUMN, row.tolist(), strict=True))
    x = torch.from_numpy(image).permute(2, 0, 1)
    box = [int(value[name]) for name in ("top", "left", "height", "width")]
    mode = InterpolationMode(view.interpolation)
    x = F.resized_crop(x, *box, [view.size, view.size], mode, antialias=True)
    x = F.horizontal_flip(x) if value["flip"] else x
    x = F.to_dtype(x, torch.float32, scale=True)
    if value["jitter"]:
        for step in range(4):
            number = int(value[f"order{step}"])
            if getattr(view, FACTORS[number]) > 0:
                x = OPERATIONS[number](x, value[FACTORS[number]])
    if value["grayscale"] and len(x) == 3:
        x = F.rgb_to_grayscale(x, 3)
    if value["blur"]:
        x = F.gaussian_blur(x, [blur_kernel_size(view.size)] * 2, [value["blur"]] * 2)
    if value["solarize"]:
        x = F.solarize(x, view.solarize_threshold)
    mean, std = (list(numbers) * (len(x) // len(numbers)) for numbers in (view.mean, view.std))
    return F.normalize(x, mean, std)


def smooth_images(num, height, width, channels, seed=0):
    """Pictures with edges and gradients: noise enlarged."""
    noise = torch.rand(num, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic")
    return (large.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def difference(view, images, channels):
    sizes = [image.shape[:2] for image in images]
    table = draw([view], 1, 0, np.arange(len(images)), sizes)
    (ours,) = TorchvisionEngine([view], channels)(images, table)
    theirs = torch.stack([reference(image, row, view) for image, row in zip(images, table[:, 0], strict=True)])
    assert ours.is_contiguous(memory_format=torch.channels_last) and ours.dtype == torch.float32
    return (ours - theirs).abs()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("extent", "size"), [((32, 32), 32), ((32, 32), 48), ((64, 48), 16), ((40, 33), 13)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_batched_crop_equals_torchvisions(extent, size, channels, interpolation):
    view = View(size=size, interpolation=interpolation, **PLAIN)
    error = difference(view, smooth_images(60, *extent, channels), channels) * 255
    # The same arithmetic; a weight that lies just between two of its grid may be rounded the other way: one level.
    assert error.max() < 1.01 and (error > 1e-4).float().mean() < 1e-4


@pytest.mark.parametrize("channels", [1, 3])
def test_list_of_images_of_any_size_equals_torchvision(channels):
    images = [smooth_images(1, 20 + 3 * i, 90 - 2 * i, channels, seed=i)[0] for i in range(24)]
    assert difference(View(size=24, **PLAIN), images, channels).max() < 1e-6


@pytest.mark.parametrize(
    "strengths",
    [
        {"brightness": 0.8, "jitter": 1.0},
        {"contrast": 0.8, "jitter": 1.0},
        {"saturation": 0.8, "jitter": 1.0},
        {"hue": 0.5, "jitter": 1.0},
        {"grayscale": 0.5},
        {"blur": 0.8},
        {"solarize": 0.6, "solarize_threshold": 0.4},
        SIMCLR,
        {**SIMCLR, "blur": 0.5, "solarize": 0.2, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
    ],
    ids=lambda strengths: "-".join(strengths),
)
def test_colours_equal_torchvisions_per_image(strengths):
    # Lists take torchvision's own crop, so that the colours alone can differ.
    view = View(size=32, **{**PLAIN, **strengths})
    error = difference(view, list(smooth_images(96, 32, 32, 3)), 3)
    solarized_at_the_threshold = 1 if "solarize" in strengths else 0
    scale = min(view.std)
    assert error.mean() * scale < 1e-5
    assert (error * scale > 2e-5).sum() <= 3 * solarized_at_the_threshold  # elsewhere: rounding of float32


def test_grey_pixels_and_black_survive_hue():
    images = [np.full((8, 8, 3), level, dtype=np.uint8) for level in (0, 1, 128, 255)]
    view = View(size=8, hue=0.5, jitter=1.0, **PLAIN)
    assert difference(view, images, 3).max() < 1e-6


def test_large_blur_equals_torchvisions():
    view = View(size=96, blur=1.0, **PLAIN)
    assert difference(view, list(smooth_images(6, 96, 96, 3)), 3).max() < 1e-5


def test_one_channel_ignores_saturation_hue_and_grayscale():
    images = smooth_images(32, 32, 32, 1)
    table = draw([View(size=32, **PLAIN, **SIMCLR)], 0, 0, np.arange(32), np.full((32, 2), 32))
    coloured = TorchvisionEngine([View(size=32, **PLAIN, **SIMCLR)], 1)(images, table)
    plain = View(size=32, **PLAIN, brightness=0.8, contrast=0.8, jitter=0.8)
    assert torch.equal(coloured[0], TorchvisionEngine([plain], 1)(images, table)[0])


def test_other_numbers_of_channels():
    with pytest.raises(ValueError, match=r"saturation, hue, grayscale: expected images of 1 or 3 channels, got 4"):
        TorchvisionEngine([View(size=8, **PLAIN, **SIMCLR)], 4)
    with pytest.raises(ValueError, match=r"mean, std: expected 1 or 1 numbers"):
        TorchvisionEngine([View(size=8)], 1)
    view = View(size=8, **PLAIN, brightness=0.4, contrast=0.4, jitter=1.0, flip=0.0, crop="center")
    images = smooth_images(5, 8, 8, 4)
    table = draw([view], 0, 0, np.arange(5), np.full((5, 2), 8))
    (result,) = TorchvisionEngine([view], 4)(images, table)
    row, x = table[0, 0], torch.from_numpy(images[0]).permute(2, 0, 1) / 255
    brightness, contrast = row[COLUMN["brightness"]], row[COLUMN["contrast"]]
    first = next(c for c in row[COLUMN["order0"] : COLUMN["order3"] + 1].tolist() if c < 2)
    for number in (first, 1 - first):
        x = x * brightness if number == 0 else x * contrast + x.mean() * (1 - contrast)
        x = x.clamp(0, 1)
    torch.testing.assert_close(result[0], x)


@pytest.mark.parametrize("size", [13, 32])
@pytest.mark.parametrize("as_list", [False, True])
def test_bits_do_not_depend_on_the_batch(size, as_list):
    view = View(size=size, **{**PLAIN, **SIMCLR}, blur=0.5, solarize=0.2)
    images = smooth_images(301, 32, 32, 3)
    source = (lambda rows: [images[i] for i in rows]) if as_list else (lambda rows: images[rows])
    engine, sizes = TorchvisionEngine([view], 3), np.full((301, 2), 32)
    (whole,) = engine(source(np.arange(301)), draw([view], 0, 0, np.arange(301), sizes))
    for rows in ([0], [300], [5, 4], list(range(100, 164)), list(range(7, 250, 3))):
        rows = np.array(rows)
        (part,) = engine(source(rows), draw([view], 0, 0, rows, sizes[rows]))
        assert torch.equal(part, whole[rows])
