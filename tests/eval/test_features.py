"""Features of a data set: order, modes, files that cannot be read, and raw pixels."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_fast.data.views import View
from ssl_fast.eval.features import _device_of, evaluation_mode, extract_features, raw_pixels

VIEW = View(size=12, crop="center", flip=0.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Mean(nn.Module):
    """Mean colour: a feature that can be worked out from the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def by_hand(pictures: Any) -> Tensor:
    return (
        torch.from_numpy((np.stack([pictures.read(i) for i in range(len(pictures))]) / 255).mean((1, 2)) - 0.5) / 0.25
    )


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_rows_are_the_images_in_order(pictures: Any, batch_size: int) -> None:
    features = extract_features(Mean(), pictures(), VIEW, batch_size=batch_size)
    torch.testing.assert_close(features.h.double(), by_hand(pictures()), rtol=0, atol=1e-5)
    assert features.labels is not None
    assert (features.labels.numpy() == pictures().labels).all()
    assert features.names == pictures().names
    assert (features.index == torch.arange(40)).all() and features.skipped == 0
    assert features.h.dtype == torch.float32 and not features.h.is_inference()


def test_evaluation_mode_gives_every_module_its_flag_back() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(), nn.Linear(3, 3)))
    module.train()
    module[1].eval()
    with pytest.raises(KeyError), evaluation_mode(module):
        assert not any(m.training for m in module.modules())
        raise KeyError
    assert [m.training for m in module.modules()] == [True, True, False, False, False]


def test_running_statistics_are_used_and_kept(pictures: Any) -> None:
    backbone = nn.Sequential(Mean(), nn.BatchNorm1d(3)).train()
    backbone[1].running_mean.fill_(1.0)
    features = extract_features(backbone, pictures(), VIEW, batch_size=8)
    expected = (by_hand(pictures()) - 1) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(features.h.double(), expected, rtol=0, atol=1e-5)
    assert (backbone[1].running_mean == 1).all() and backbone[1].training


def test_bf16_features_are_close_and_come_back_in_fp32(pictures: Any) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 16))
    full = extract_features(backbone, pictures(), VIEW)
    half = extract_features(backbone, pictures(), VIEW, precision="bf16")
    assert half.h.dtype == torch.float32
    assert not torch.equal(full.h, half.h)
    assert torch.cosine_similarity(full.h, half.h).min() > 0.999
    assert half.protocol["precision"] == "bf16"


def test_images_that_cannot_be_read_are_left_out_and_counted(pictures: Any) -> None:
    features = extract_features(Mean(), pictures(broken=(3, 39)), VIEW, batch_size=8)
    kept = [i for i in range(40) if i not in (3, 39)]
    assert features.index.tolist() == kept and features.skipped == 2
    torch.testing.assert_close(features.h.double(), by_hand(pictures())[kept], rtol=0, atol=1e-5)
    assert features.names == [pictures().names[i] for i in kept]
    assert features.labels is not None and (features.labels.numpy() == pictures().labels[kept]).all()


def test_protocol_holds_view_and_normalisation(pictures: Any) -> None:
    protocol = extract_features(Mean(), pictures(), VIEW).protocol
    assert protocol["view"] == {
        "size": 12,
        "crop": "center",
        "crop_scale": list(VIEW.crop_scale),
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    assert "evaluation mode" in protocol["batch_norm"]


def test_raw_pixels(pictures: Any) -> None:
    features = raw_pixels(pictures())
    assert features.h.shape == (40, 12 * 12 * 3)
    assert (features.h[5].reshape(12, 12, 3) * 255).round().to(torch.uint8).numpy().tolist() == pictures().read(
        5
    ).tolist()
    read_one_by_one = pictures()
    read_one_by_one.arrays = None
    assert torch.equal(raw_pixels(read_one_by_one).h, features.h)


def test_errors_name_the_argument(pictures: Any) -> None:
    with pytest.raises(ValueError, match=r"view: expected an evaluation view .* got crop='random', flip"):
        extract_features(Mean(), pictures(), View(size=12))
    with pytest.raises(ValueError, match="policy='randaugment'"):
        extract_features(Mean(), pictures(), replace(VIEW, policy="randaugment"))
    with pytest.raises(ValueError, match=r"precision: expected fp32 or bf16, got 'int8'"):
        extract_features(Mean(), pictures(), VIEW, precision="int8")
    with pytest.raises(ValueError, match=r"backbone: expected features \[N, F\] .* got shape"):
        extract_features(nn.Identity(), pictures(), VIEW)
    uneven = pictures()
    uneven.arrays, uneven.read = None, lambda i: np.zeros((4 + i, 4, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"raw pixels need images of one size, expected \(4, 4, 3\)"):
        raw_pixels(uneven)


def test_without_a_device_the_backbone_is_used_where_it_is(pictures: Any) -> None:
    class Watched(Mean):
        moved: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def to(self, device: Any) -> "Watched":  # type: ignore[override]
            self.moved = device
            return self

    backbone = Watched()
    extract_features(backbone, pictures(), VIEW)
    assert backbone.moved == backbone.weight.device
    with torch.device("meta"):
        assert _device_of(nn.Linear(1, 1)).type == "meta"


def test_rows_without_a_known_class_are_left_out_of_scores(pictures: Any) -> None:
    dataset = pictures()
    dataset.labels = np.where(np.arange(40) % 2, -1, dataset.labels)
    features = extract_features(Mean(), dataset, VIEW)
    known = features.labelled()
    assert len(features) == 40 and known.index.tolist() == list(range(0, 40, 2))
    assert known.names == [dataset.names[i] for i in range(0, 40, 2)] and known.labels is not None
    assert torch.equal(known.h, features.h[::2]) and known.labels.tolist() == dataset.labels[::2].tolist()
    assert known.labelled() is known
    dataset.labels = np.full(40, -1)
    assert not dataset.has_classes
