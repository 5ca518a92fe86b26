"""Clips: which frames they have, one row of parameters for all of them, the same whatever workers and ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ssl_fast.data.clips import check_clips, draw_places, frame_numbers
from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.engine_fused import unavailable
from ssl_fast.data.engine_torchvision import TorchvisionEngine
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.view_presets import cvrl
from ssl_fast.data.views import View, draw
from tests.videos import Videos, random_videos

VIEWS = cvrl(size=12, frames=4, stride=2)
ENGINES = ("torchvision", *(() if unavailable() else ("fused",)))


def batches(dataset: Any, views: Any = VIEWS, engine: str = "torchvision", epoch: int = 0, **options: Any) -> list[Any]:
    loading = {name: options.pop(name) for name in ("workers", "start_method") if name in options}
    config = LoaderConfig(**{"engine": engine, "workers": 0, **loading})
    settings = {"batch_size": 5, "seed": 3, "shuffle": True, "drop_last": False, **options}
    loader = Loader(dataset, views, config, **settings)
    found = list(loader.epoch(epoch))
    loader.close()
    return found


def test_frames_of_a_clip() -> None:
    assert frame_numbers(10, 0.0, 4, 2).tolist() == [0, 2, 4, 6]
    assert frame_numbers(10, 1.0, 4, 2).tolist() == [3, 5, 7, 9]
    assert {int(frame_numbers(10, place, 4, 2)[0]) for place in np.linspace(0, 1, 99)} == {0, 1, 2, 3}
    assert frame_numbers(7, 0.0, 4, 2).tolist() == [0, 2, 4, 6]  # exactly long enough
    assert frame_numbers(5, 0.5, 4, 2).tolist() == [2, 4, 1, 3]  # too short: it begins again
    assert frame_numbers(1, 0.9, 3, 2).tolist() == [0, 0, 0]


def test_places_are_functions_of_the_sample() -> None:
    index = np.arange(50)
    whole = draw_places(VIEWS, 7, 2, index)
    assert np.array_equal(whole[20:30], draw_places(VIEWS, 7, 2, index[20:30]))
    assert not np.array_equal(whole, draw_places(VIEWS, 7, 3, index))
    assert not np.array_equal(whole, draw_places(VIEWS, 8, 2, index))


def test_near_clips_have_the_papers_distances() -> None:
    """P(t) = 2 (1 - t), so F(t) = 2 t - t^2; the earlier clip is uniform in what is left."""
    places = draw_places(VIEWS, 0, 0, np.arange(40_000))
    assert places.min() >= 0 and places.max() <= 1
    distance = np.sort(np.abs(places[:, 0] - places[:, 1]))
    expected = 2 * distance - distance**2
    assert np.abs(expected - np.arange(len(distance)) / len(distance)).max() < 1.63 / 200  # Kolmogorov's bound, 1 %
    early = places.min(axis=1) / (1 - np.abs(places[:, 0] - places[:, 1]))
    assert np.abs(np.sort(early) - np.arange(len(early)) / len(early)).max() < 1.63 / 200
    assert abs((places[:, 0] < places[:, 1]).mean() - 0.5) < 0.02


def test_random_and_even_places() -> None:
    random = replace(VIEWS[0], place="random")
    places = draw_places((random, random), 0, 0, np.arange(20_000))
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.03
    assert np.abs(np.sort(places[:, 0]) - np.linspace(0, 1, 20_000)).max() < 0.02
    even = replace(random, place="even")
    assert draw_places((even,) * 3, 0, 0, np.arange(2)).tolist() == [[0, 0.5, 1]] * 2
    assert draw_places((even,), 0, 0, np.arange(1)).tolist() == [[0.5]]


@pytest.mark.parametrize("engine", ENGINES)
def test_all_frames_of_a_clip_get_one_row(engine: str) -> None:
    """Of a video that stands still every frame of a clip is the same picture, with every augmentation on."""
    rng = np.random.default_rng(0)
    still = Videos([np.repeat(rng.integers(0, 256, (1, 20, 24, 3), dtype=np.uint8), 9, axis=0) for _ in range(40)])
    views = tuple(replace(view, solarize=0.5, blur=0.5) for view in VIEWS)
    (batch,) = batches(still, views, engine, batch_size=40)
    for clip in batch.views:
        assert clip.shape == (40, 3, 4, 12, 12) and clip.is_contiguous(memory_format=torch.channels_last_3d)
        assert torch.equal(clip, clip[:, :, :1].expand_as(clip))
    assert not torch.equal(batch.views[0], batch.views[1])


def test_a_clip_is_its_frames_by_the_engine_of_images() -> None:
    """The oracle: the frames as images, each with the row of `draw`, by the reference engine."""
    dataset = random_videos()
    views = (VIEWS[0], replace(VIEWS[1], frames=3, stride=1))
    for batch in batches(dataset, views):
        places = draw_places(views, 3, 0, batch.index.numpy())
        table = draw(views, 3, 0, batch.index.numpy(), np.full((len(batch), 2), 16))
        for row, i in enumerate(batch.index.tolist()):
            for v, view in enumerate(views):
                numbers = frame_numbers(len(dataset.videos_[i]), places[row, v], view.frames, view.stride)
                for t, number in enumerate(numbers):
                    picture = dataset.videos_[i][number][None]
                    (expected,) = TorchvisionEngine((view,), 3)(picture, table[row : row + 1, v : v + 1])
                    torch.testing.assert_close(batch.views[v][row, :, t], expected[0], rtol=0, atol=1e-6)


@pytest.mark.skipif(len(ENGINES) < 2, reason="the C++ module was not built")
def test_engines_agree() -> None:
    plain, fused = (batches(random_videos(), engine=engine) for engine in ENGINES)
    for a, b in zip(plain, fused, strict=True):
        for x, y, view in zip(a.views, b.views, VIEWS, strict=True):
            assert (x - y).abs().max() * min(view.std) * 255 < 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", ["fork", "thread"])
def test_workers_change_nothing(engine: str, way: str) -> None:
    dataset = random_videos()
    alone = batches(dataset, engine=engine)
    others = batches(dataset, engine=engine, workers=2, start_method=way)
    assert len(alone) == len(others) == 3
    for a, b in zip(alone, others, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def test_ranks_share_a_batch() -> None:
    dataset = random_videos()
    alone = batches(dataset)
    parts = [batches(dataset, rank=rank, world_size=3) for rank in range(3)]
    for whole, *cut in zip(alone, *parts, strict=True):
        for v in range(2):
            assert torch.equal(whole.views[v], torch.cat([part.views[v] for part in cut]))
        assert torch.equal(whole.index, torch.cat([part.index for part in cut]))


def test_epochs_differ_and_labels_follow() -> None:
    dataset = random_videos()
    first, second = batches(dataset)[0], batches(dataset, epoch=1)[0]
    assert not torch.equal(first.views[0], second.views[0])
    assert (first.labels.numpy() == dataset.labels[first.index.numpy()]).all()
    assert first.seconds.keys() == {"decode", "augment"}


def test_images_of_videos() -> None:
    (batch,) = batches(random_videos(), (View(size=12), View(size=12, place="even", crop="center")), batch_size=12)
    assert [view.shape for view in batch.views] == [(12, 3, 12, 12)] * 2


def test_a_broken_video_is_replaced_by_the_next() -> None:
    whole = random_videos()
    broken = Videos(whole.videos_, whole.labels, broken=(4, 5))
    (batch,) = batches(broken, batch_size=12, shuffle=False)
    assert batch.index.tolist() == [0, 1, 2, 3, 6, 6, 6, 7, 8, 9, 10, 11]
    assert {i for i, _ in broken.refused} == {4, 5}
    assert batch.labels.tolist() == [i % 4 for i in batch.index.tolist()]
    with pytest.raises(ValueError, match="no video of this split can be decoded any more"):
        batches(Videos(whole.videos_, broken=tuple(range(12))))


def test_errors() -> None:
    images = ArrayDataset(np.zeros((4, 8, 8, 3), np.uint8), None, [], ((0.5,) * 3, (0.5,) * 3))
    with pytest.raises(ValueError, match="expected videos for views of kind 'clip', got images"):
        Loader(images, VIEWS, LoaderConfig(), batch_size=2, seed=0, shuffle=True, drop_last=True)
    with pytest.raises(ValueError, match="expected 'near' for two views or none, got it for 1"):
        check_clips(VIEWS[:1], random_videos())
    with pytest.raises(ValueError, match="frames: expected 1 for kind='image', got 2"):
        View(frames=2)
    with pytest.raises(ValueError, match="frames, stride, clips: expected positive numbers, got 0, 1, 1"):
        View(kind="clip", frames=0)
    with pytest.raises(ValueError, match="clips: expected 1 unless place='even', got 3 and place='random'"):
        View(clips=3)
    with pytest.raises(ValueError, match="place: expected 'random' or 'near' or 'even', got 'far'"):
        View(place="far")
