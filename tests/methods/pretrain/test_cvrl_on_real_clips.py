"""CVRL on real videos: the loss falls, and later parts of the same videos are told apart better than before."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_fast.data.datasets.video_folder import VideoFolder
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.eval.features import extract_features
from ssl_fast.eval.knn import knn_accuracy
from ssl_fast.methods.pretrain.cvrl import CVRL
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from ssl_fast.train.inputs import new_evaluation_view
from ssl_fast.train.trainer import TrainConfig, Trainer
from tests.videos import Videos

SHORT_SIDE, PART, MOST = 40, 8, 160  # pixels; frames of a part, of a video
HELD_OUT = 0.3  # of each video's parts, at its end
LOADING = LoaderConfig(workers=0)


def small(frames: np.ndarray) -> np.ndarray:
    """[T, H, W, 1], the short side 40 pixels."""
    scale = SHORT_SIDE / min(frames.shape[1:3])
    size = (round(frames.shape[2] * scale), round(frames.shape[1] * scale))
    shrunk = [Image.fromarray(frame[..., 0]).resize(size, Image.Resampling.BOX) for frame in frames]
    return np.stack([np.asarray(image) for image in shrunk])[..., None]


def cut(frames: np.ndarray) -> list[np.ndarray]:
    return [frames[begin : begin + PART] for begin in range(0, len(frames), PART)]


@pytest.fixture(scope="module")
def sets(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Videos, Videos, Videos]:
    """The pack in grey: beginnings of its videos to learn from, the same in parts as gallery, later parts to ask."""
    pytest.importorskip("av", reason="PyAV is not installed")
    if not (shared_data / "video-clips.tar").is_file():
        pytest.skip("video-clips.tar is not beside this checkout")
    folder = tmp_path_factory.mktemp("pack")
    with tarfile.open(shared_data / "video-clips.tar") as archive:
        archive.extractall(folder, filter="data")
    source = VideoFolder(VideoFolder.Config(root=str(folder / "video"), labelled=False, color=False), "all")
    begun, later = [], []
    for i in range(len(source)):
        whole = min(int(source.lengths[i]), MOST) // PART
        kept = PART * (whole - (max(1, round(whole * HELD_OUT)) if whole > 1 else 0))
        frames = small(source.frames(i, np.arange(whole * PART)))
        begun.append(frames[:kept])
        later.append(frames[kept:])
    gallery, queries = ([(part, i) for i, video in enumerate(some) for part in cut(video)] for some in (begun, later))
    return Videos(begun), *(Videos([p for p, _ in some], [i for _, i in some]) for some in (gallery, queries))


def method() -> CVRL:
    config = CVRL.Config(hidden_dim=128, dim=64, num_hidden=1, view2_blur=0.0)
    weak = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0, "blur": 0.0}
    config.view = replace(config.view, size=24, frames=3, mean=(0.459,), std=(0.226,), **weak)
    config.optimizer = replace(config.optimizer, lr=1.0, warmup_epochs=1, weight_decay=5e-4)
    torch.manual_seed(0)
    small_network = BackboneConfig("resnet18", cifar_stem=True, width=8, depth="1,1,1,1", in_channels=1)
    return CVRL(config, build_backbone(small_network))


def top1(cvrl: CVRL, gallery: Videos, queries: Videos) -> float:
    """1-nearest-neighbour accuracy: which video a later part is of."""
    view = replace(new_evaluation_view(cvrl.config.view, gallery, size=32, clips=2), mean=(0.459,), std=(0.226,))
    train, test = (extract_features(cvrl.backbone, part, view, loader=LOADING) for part in (gallery, queries))
    return float(knn_accuracy(train.h, train.labels, test.h, test.labels, 1, 0.07)["top1"])


@pytest.mark.nightly
def test_it_learns_from_real_clips(sets: tuple[Videos, Videos, Videos]) -> None:
    videos, gallery, queries = sets
    cvrl, losses = method(), []
    before = top1(cvrl, gallery, queries)

    class Losses:
        def log(self, step: int, **values: Any) -> None:
            losses.extend([values["loss"]] if "loss" in values else [])

    tracker: Any = Losses()
    batch = len(videos)  # every video once: none is another's negative twice
    loader = Loader(videos, cvrl.views(cvrl.config), LOADING, batch_size=batch, seed=0, shuffle=True, drop_last=True)
    config = TrainConfig(epochs=100, batch_size=batch, precision="fp32", device="cpu", log_every=1, monitor_every=0)
    Trainer(cvrl, loader, config).fit(tracker)
    after = top1(cvrl, gallery, queries)
    first, last = np.mean(losses[:10]), np.mean(losses[-10:])
    print(f"loss {first:.2f} -> {last:.2f}, 1-NN of {len(queries)} later parts {before:.3f} -> {after:.3f}")
    assert len(losses) == 100 and last < first - 0.15
    assert after > before + 0.05
