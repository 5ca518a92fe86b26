import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms as v1
from torchvision.transforms import v2

from ssl_fast.data.views import COLUMN, COLUMNS, Batch, View, draw

FULL = View(
    size=32, brightness=0.4, contrast=1.5, saturation=0.4, hue=0.1, jitter=0.8, grayscale=0.2, blur=0.5, solarize=0.3
)


def table_of(view, num=10_000, size=(48, 64), seed=0, epoch=0):
    return draw([view], seed, epoch, np.arange(num), np.tile(size, (num, 1)))[:, 0].numpy()


def column(table, name):
    return table[:, COLUMN[name]]


@pytest.mark.parametrize("size", [(48, 64), (20, 100)])  # the second often needs the fallback
def test_boxes_are_distributed_as_torchvisions(size):
    torch.manual_seed(0)
    reference = v2.RandomResizedCrop(32, scale=(0.2, 1.0))
    image = torch.zeros(1, *size)
    boxes = [reference.make_params([image]) for _ in range(10_000)]
    ours = table_of(View(size=32, crop_scale=(0.2, 1.0)), size=size)
    for name in ("top", "left", "height", "width"):
        theirs = [box[name] for box in boxes]
        assert stats.ks_2samp(column(ours, name), theirs, method="asymp").pvalue > 1e-3, name
    height, width = column(ours, "height"), column(ours, "width")
    assert (column(ours, "top") + height <= size[0]).all() and (column(ours, "left") + width <= size[1]).all()


def test_the_fallback_is_the_centred_box_of_the_nearest_ratio():
    table = table_of(View(size=8, crop_scale=(1.0, 1.0)), num=50, size=(10, 100))
    assert np.array_equal(table[:, :4], np.tile([0, 43, 10, 13], (50, 1)))
    table = table_of(View(size=8, crop_scale=(1.0, 1.0)), num=50, size=(100, 10))
    assert np.array_equal(table[:, :4], np.tile([43, 0, 13, 10], (50, 1)))
    assert np.array_equal(table_of(View(size=8), num=5, size=(1, 1))[:, :4], np.tile([0, 0, 1, 1], (5, 1)))


def test_factors_orders_and_sigmas_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    jitter = v1.ColorJitter(0.4, 1.5, 0.4, 0.1)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    theirs = [v1.ColorJitter.get_params(*ranges) for _ in range(10_000)]
    ours = table_of(FULL)
    for position, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        factors = [draws[1 + position] for draws in theirs]
        assert stats.ks_2samp(column(ours, name), factors, method="asymp").pvalue > 1e-3, name
    for step in range(4):
        operations = [int(draws[0][step]) for draws in theirs]
        assert stats.ks_2samp(column(ours, f"order{step}"), operations, method="asymp").pvalue > 1e-3
    sigma = column(ours, "blur")
    theirs = [v1.GaussianBlur.get_params(0.1, 2.0) for _ in range(10_000)]
    assert stats.ks_2samp(sigma[sigma > 0], theirs, method="asymp").pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("brightness", 0.6, 1.4), ("contrast", 0.0, 2.5), ("saturation", 0.6, 1.4), ("hue", -0.1, 0.1)],
)
def test_factors_are_uniform(name, low, high):
    values = column(table_of(FULL), name)
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "probability"), [("flip", 0.5), ("jitter", 0.8), ("grayscale", 0.2), ("solarize", 0.3)]
)
def test_switches_have_their_probability(name, probability):
    values = column(table_of(FULL), name)
    assert set(values) == {0.0, 1.0}
    assert abs(values.mean() - probability) < 4 * math.sqrt(probability * (1 - probability) / len(values))


def test_blur_is_off_or_uniform():
    sigma = column(table_of(FULL), "blur")
    assert abs((sigma > 0).mean() - 0.5) < 0.04
    assert stats.kstest(sigma[sigma > 0], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_all_24_orders_are_equally_likely():
    orders = table_of(FULL, num=12000)[:, COLUMN["order0"] : COLUMN["order3"] + 1]
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(4), (12000, 1)))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-3


def test_columns_are_independent():
    table = table_of(FULL, num=20000)[
        :, [COLUMN[n] for n in ("flip", "brightness", "contrast", "hue", "blur", "jitter")]
    ]
    correlation = np.corrcoef(table.T) - np.eye(6)
    assert np.abs(correlation).max() < 0.03


def test_a_view_depends_on_its_key_alone():
    views, index, sizes = [FULL, View(size=16), FULL], np.arange(60), np.full((60, 2), 40)
    whole = draw(views, 3, 5, index, sizes)
    assert whole.shape == (60, 3, len(COLUMNS)) and whole.dtype == torch.float32
    chosen = np.array([59, 7, 30])
    assert torch.equal(draw(views, 3, 5, chosen, sizes[chosen]), whole[chosen])
    assert not torch.equal(whole[:, 0], whole[:, 2])  # the same View in another place is another view
    for other in (draw(views, 4, 5, index, sizes), draw(views, 3, 6, index, sizes)):
        assert not torch.equal(whole, other)


def test_centre_crop():
    table = table_of(View(size=224, crop="center", crop_scale=(0.08, 0.875**2), flip=0.0), num=3, size=(256, 400))
    assert table[0, :5].tolist() == [16, 88, 224, 224, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "centre"}, "crop: expected 'random' or 'center', got 'centre'"),
        ({"kind": "text"}, "kind: expected 'image'"),
        ({"interpolation": "nearest"}, "interpolation: expected"),
        ({"size": 0}, "size: expected a positive"),
        ({"flip": 1.5}, r"flip: expected a number in \[0, 1\], got 1.5"),
        ({"hue": 0.6}, "hue: expected"),
        ({"crop_scale": [0.5, 0.2]}, "crop_scale: expected"),
        ({"crop_scale": [0.0, 0.2]}, "crop_scale: expected"),
        ({"blur_sigma": [1.0]}, "blur_sigma: expected"),
        ({"mean": [0.5]}, "mean, std: expected one number"),
        ({"mean": [0.5], "std": [0.0]}, "std: expected positive"),
    ],
)
def test_bad_fields_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        View(**arguments)


def test_lists_become_tuples():
    assert View(crop_scale=[0.2, 1], mean=[0.5], std=[1]).crop_scale == (0.2, 1.0)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"sizes: expected shape \[2, 2\]"):
        draw([FULL], 0, 0, [0, 1], [[3, 3]])
    with pytest.raises(ValueError, match=r"index >= 0"):
        draw([FULL], 0, 0, [-1], [[3, 3]])


def test_batch_slices_and_moves_everything():
    batch = Batch((torch.arange(4.0), torch.arange(4.0) * 2), None, torch.arange(4), {"mask": torch.ones(4)})
    part = batch.slice(1, 3)
    assert len(part) == 2 and part.labels is None
    assert part.views[1].tolist() == [2, 4] and len(part.extras["mask"]) == 2
    moved = Batch((torch.zeros(2),), torch.ones(2), torch.arange(2), {"m": torch.ones(2)}).to("meta")
    assert {t.device.type for t in (moved.views[0], moved.labels, moved.index, moved.extras["m"])} == {"meta"}
