"""Cuts videos into short parts, as folders of frames: many small videos out of a few, the class the video they are of.

    python -m benchmarks.data.cut_videos videos parts --test 0.3

Writes parts/{train,test}/<video>/<number>/<frame>.png: the last share of each video is the test set, so that no frame
is in both. A folder of frames is a video too. Short side 96 pixels, parts of 12 frames.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_fast.data.datasets.video_folder import VideoFolder


def cut(source: Path, target: Path, test: float, frames: int, side: int) -> dict[str, int]:
    """Cuts all videos under `source`; returns the number of parts of each split."""
    videos = VideoFolder(VideoFolder.Config(root=str(source)), "all")
    counts = {"train": 0, "test": 0}
    for i, name in enumerate(videos.names):
        whole = int(videos.lengths[i]) // frames
        if not whole:
            print(f"{name}: {videos.lengths[i]} frames are fewer than a part's {frames}")
        held_out = max(1, round(whole * test)) if whole > 1 else 0
        for part in range(whole):
            split = "train" if part < whole - held_out else "test"
            folder = target / split / Path(name).with_suffix("").as_posix().replace("/", "-") / f"{part:03}"
            save(videos.frames(i, np.arange(part * frames, (part + 1) * frames)), folder, side)
            counts[split] += 1
    return counts


def save(clip: np.ndarray, folder: Path, side: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    height, width = clip.shape[1:3]
    scale = side / min(height, width)
    size = (round(width * scale), round(height * scale))
    for number, frame in enumerate(clip):
        Image.fromarray(frame).resize(size, Image.Resampling.BOX).save(folder / f"{number:03}.png", compress_level=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--test", type=float, default=0.3, help="share of each video, at its end")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--side", type=int, default=96)
    args = parser.parse_args()
    print(cut(args.source, args.target, args.test, args.frames, args.side))


if __name__ == "__main__":
    main()
