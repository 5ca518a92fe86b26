"""Small videos: in memory, and written by PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.clips import Frames, VideoDataset


class Videos(VideoDataset):
    """Videos in memory, uint8 [T, H, W, C] each; those of `broken` cannot be read."""

    def __init__(self, videos: list[NDArray[np.uint8]], labels: Any = None, broken: tuple[int, ...] = ()) -> None:
        self.videos_, self.broken, self.refused = videos, broken, []
        self.lengths = np.array([len(video) for video in videos])
        self.channels = videos[0].shape[-1]
        self.labels = None if labels is None else np.asarray(labels)
        self.classes = [] if labels is None else [str(number) for number in range(max(labels) + 1)]

    def frames(self, i: int, numbers: NDArray[np.int64]) -> Frames:
        if i in self.broken:
            raise UnreadableError("broken")
        return self.videos_[i][numbers]

    def refuse(self, i: int, reason: str) -> None:
        self.refused.append((i, reason))

    def fingerprint(self) -> str:
        return "in memory"


def random_videos(count: int = 12, length: int = 9, side: int = 16, channels: int = 3) -> Videos:
    """Random frames, four classes."""
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 256, (length + i % 3, side, side, channels), dtype=np.uint8) for i in range(count)]
    return Videos(videos, np.arange(count) % 4)


def levels(num: int, size: tuple[int, int] = (32, 48)) -> NDArray[np.uint8]:  # [num, H, W, 3]
    """Frames that their brightness tells apart: frame i has level 16 + 6 i (up to 36 frames)."""
    shades = (16 + 6 * np.arange(num)).astype(np.uint8)
    return np.broadcast_to(shades[:, None, None, None], (num, *size, 3)).copy()


def shown(frames: NDArray[np.uint8]) -> list[int]:
    """The numbers of `levels` that decoded frames show."""
    return np.rint((frames.reshape(len(frames), -1).mean(axis=1) - 16) / 6).astype(int).tolist()


def write(
    path: Path,
    frames: NDArray[np.uint8],  # [T, H, W, 3]
    codec: str = "mpeg4",
    times: list[int] | None = None,  # [T] in 25ths of a second; None for one after the other
    **options: str,
) -> Path:
    """Writes a video of 25 frames a second."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        fine = {"qmin": "1", "qmax": "1"} if codec.startswith("mpeg") else {}
        stream: Any = container.add_stream(codec, rate=25, options=fine | options)
        stream.bit_rate = 4_000_000
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.time_base = Fraction(1, 25)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
