"""Video files to uint8 frames by PyAV: which frames there are, and those of them that are wanted.

A video's packets are looked at once. They say when each frame is shown and from which ones decoding can begin, so that
a clip is decoded from the last such frame before it, and not from the video's beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.bands import UnreadableError

EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".gif")
# By content, whatever the name says. No playlists: they make the decoder open other files.
_FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,gif"
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Track:
    """What the packets of a video say.

    Attributes:
        length: number of frames.
        size: (H, W) of the upright picture.
        turn: quarter turns, counterclockwise, that make it upright.
        first, step: frame i is shown at first + i * step, in units of the stream's time base; step 0 where that is not
            so.
        times: [length] when each frame is shown, where that is irregular; else empty. Where both are missing, frames
            are counted from the beginning.
        keys: [k] the frames from which decoding can begin, ascending.
    """

    length: int
    size: tuple[int, int]
    turn: int = 0
    first: int = 0
    step: float = 0.0
    times: NDArray[np.int64] = field(default_factory=lambda: _NONE)
    keys: NDArray[np.int64] = field(default_factory=lambda: _NONE)

    @property
    def timed(self) -> bool:
        """Whether times tell the frames."""
        return self.step > 0 or len(self.times) > 0

    def time(self, number: int) -> int:
        """When a frame is shown."""
        return round(self.first + number * self.step) if self.step else int(self.times[number])

    def number(self, time: int) -> int:
        """The frame shown at a time: the last that begins at or before it."""
        if self.step:
            return round((time - self.first) / self.step)
        return int(np.searchsorted(self.times, time, side="right")) - 1


def available() -> None:
    """Raises ImportError, with what to install, unless PyAV is there."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ImportError("video files need PyAV: pip install ssl_fast[video]") from error


def look_at(path: Path, full: bool, max_pixels: int) -> Track:
    """Reads the packets of a video and decodes its first frame, or all of them.

    Args:
        path: the file.
        full: decode every frame.
        max_pixels: of a frame; larger ones are refused.

    Raises:
        UnreadableError: no video that can be decoded, damaged or cut short.
    """
    with _opened(path) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        if not 0 < width * height <= max_pixels:
            raise UnreadableError(f"{width} x {height} pixels, expected 1 to {max_pixels} (data.max_pixels)")
        declared = stream.frames
        packets = [(p.pts, p.is_keyframe, p.is_discard, p.is_corrupt) for p in container.demux(stream) if p.size]
        if not packets or any(corrupt for *_, corrupt in packets) or len(packets) < declared:
            raise UnreadableError(f"cut short: {len(packets)} frames of {declared or 'an unknown number'}")
        kept = [(time, key) for time, key, discarded, _ in packets if not discarded]  # an edit list may leave some out
    with _opened(path) as (container, stream):
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None or first.is_corrupt:
            raise UnreadableError("damaged: the first frame cannot be decoded")
        turn = first.rotation // 90 % 4
        size = (first.width, first.height) if turn % 2 else (first.height, first.width)
        if full and (decoded := 1 + sum(not frame.is_corrupt for frame in frames)) < len(kept):
            raise UnreadableError(f"damaged: {decoded} of {len(kept)} frames can be decoded")
    return _track([time for time, _ in kept], [key for _, key in kept], size, turn)


def _track(times: list[int | None], keys: list[bool], size: tuple[int, int], turn: int) -> Track:
    num = len(times)
    shown = np.array([time if time is not None else -(2**62) for time in times], dtype=np.int64)
    order = np.argsort(shown, kind="stable")
    shown = shown[order]
    begins = np.flatnonzero(np.array(keys)[order])
    if None in times or (num > 1 and np.diff(shown).min() <= 0):
        return Track(num, size, turn)
    step = float(shown[-1] - shown[0]) / (num - 1) if num > 1 else 1.0
    if np.abs(shown - (shown[0] + step * np.arange(num))).max() <= step / 4:
        return Track(num, size, turn, int(shown[0]), step, _NONE, begins)
    return Track(num, size, turn, 0, 0.0, shown, begins)


def read_frames(
    path: Path,
    track: Track,
    numbers: NDArray[np.int64],  # [n] in any order, repeats allowed
    channels: int,
) -> NDArray[np.uint8]:  # [n, H, W, channels]
    """Frames of a video; only what lies between them and the key frames before them is decoded.

    Raises:
        UnreadableError: the video cannot be decoded there, or is not the one that was looked at.
    """
    wanted, places = np.unique(numbers, return_inverse=True)
    reason = ""
    for keys in (track.keys, _NONE) if track.timed and len(track.keys) else (_NONE,):
        try:
            with _opened(path) as (container, stream):
                frames = _decoded(container, stream, track, keys, wanted)
                return np.stack([_pixels(frame, track, channels) for frame in frames])[places]
        except UnreadableError as refusal:  # a container may lead elsewhere than its packets said: from the beginning
            reason = str(refusal)
    raise UnreadableError(reason)


def _decoded(
    container: Any,
    stream: Any,
    track: Track,
    keys: NDArray[np.int64],  # [k] frames at which decoding may begin beside the first
    wanted: NDArray[np.int64],  # [n] ascending
) -> list[Any]:
    """The wanted frames, by a run of decoding for each key frame that some of them follow."""
    found: list[Any] = []
    after = np.searchsorted(keys, wanted, side="right") - 1
    for key in np.unique(after).tolist():
        begin = int(keys[key]) if key >= 0 else 0
        if begin > 0 and not found:
            next(container.decode(stream), None)  # some files give what all frames need with the first one alone
        if begin > 0:
            container.seek(track.time(begin), stream=stream)
        found += _run(container.decode(stream), track, wanted[after == key], begin)
    return found


def _run(frames: Iterator[Any], track: Track, wanted: NDArray[np.int64], begin: int) -> list[Any]:
    """The wanted frames out of those decoded one after the other, from frame `begin` on.

    A frame that the decoder leaves out is the one after it; at the video's end, the last.

    Raises:
        UnreadableError: damage, or decoding began behind the first of them, or in the middle and ended before the last.
    """
    found: list[Any] = []
    last: Any = None
    for count, frame in enumerate(frames):
        number = track.number(frame.pts) if track.timed and frame.pts is not None else begin + count
        if last is None and begin > 0 and number > wanted[0]:
            raise UnreadableError(f"decoding begins at frame {number}, expected {begin}")
        last = frame
        while len(found) < len(wanted) and number >= wanted[len(found)]:
            if frame.is_corrupt:
                raise UnreadableError(f"damaged: frame {number}")
            found.append(frame)
        if len(found) == len(wanted):
            return found
    if last is None or begin > 0:
        raise UnreadableError(f"damaged: {len(found)} of {len(wanted)} frames can be decoded from frame {begin} on")
    return found + [last] * (len(wanted) - len(found))


def _pixels(frame: Any, track: Track, channels: int) -> NDArray[np.uint8]:  # [H, W, channels]
    from PIL import Image

    pixels: NDArray[np.uint8] = np.rot90(frame.to_ndarray(format="rgb24"), track.turn)
    if pixels.shape[:2] != track.size:
        raise UnreadableError(f"a frame of {pixels.shape[1]} x {pixels.shape[0]}, expected {track.size[::-1]}")
    if channels == 1:  # Pillow's luma, as of images
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
    return pixels


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; whatever goes wrong inside is an UnreadableError."""
    import av

    try:
        if not path.is_file():
            raise UnreadableError("not a regular file")
        with av.open(str(path), options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise UnreadableError("no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # the loader's workers share the cores
            yield container, stream
    except UnreadableError:
        raise
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        text = " ".join(str(error).split()).replace(str(path), path.name)
        raise UnreadableError(f"{type(error).__name__}: {text}"[:200]) from error
