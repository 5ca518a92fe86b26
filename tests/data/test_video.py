"""Frames of video files: those asked for, in any order, from wherever decoding can begin; damage ends in one error."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.video import Track, look_at, read_frames
from tests.videos import levels, shown, write

av = pytest.importorskip("av", reason="PyAV is not installed")
LIMIT = 10**7
# name, codec, its options: intra only, key frames far apart, frames that refer to later ones
FILES = (
    ("a.mp4", "mpeg4", {"g": "8"}),
    ("b.mp4", "mpeg4", {"g": "12", "bf": "2"}),
    ("c.mp4", "libx264", {"g": "10", "bf": "3", "crf": "5"}),
    ("d.mkv", "libx264", {"g": "10", "x264-params": "open-gop=1:bframes=3", "crf": "5"}),
    ("e.mkv", "mpeg4", {"g": "1000"}),
    ("f.avi", "mpeg4", {"g": "8"}),
    ("g.mpg", "mpeg1video", {"g": "8", "bf": "2"}),
    ("h.webm", "libvpx", {"g": "9", "crf": "4", "b:v": "1M"}),
    ("i.gif", "gif", {}),
    ("j.mov", "mjpeg", {}),
    ("k.ts", "libx264", {"g": "10", "bf": "2", "crf": "5"}),
    ("l.m4v", "mpeg4", {"g": "8"}),
)


def written(folder: Path, name: str, codec: str, options: dict[str, str], num: int = 30, **more: Any) -> Path:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    return write(folder / name, levels(num), codec, sc_threshold="1000000000", **options, **more)


@pytest.mark.parametrize(("name", "codec", "options"), FILES, ids=[name for name, _, _ in FILES])
def test_the_frames_asked_for(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = written(tmp_path, name, codec, options)
    track = look_at(path, True, LIMIT)
    assert (track.length, track.size) == (30, (32, 48))
    assert shown(read_frames(path, track, np.arange(30), 3)) == list(range(30))
    for numbers in ([29], [0], [13, 14, 15], [28, 3, 3, 17], [9, 10, 11, 12], [25, 1]):
        assert shown(read_frames(path, track, np.array(numbers), 3)) == numbers


def test_few_frames_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those from the key frame on; a far clip does not cost the video before it."""
    from ssl_fast.data import video

    path = written(tmp_path, "a.mp4", "mpeg4", {"g": "8"})
    track, decoded, real = look_at(path, False, LIMIT), [], video._run
    assert track.keys.tolist() == [0, 8, 16, 24]

    def counted(frames: Any, *rest: Any) -> Any:
        def counting() -> Any:
            for frame in frames:
                decoded.append(track.number(frame.pts))
                yield frame

        return real(counting(), *rest)

    monkeypatch.setattr(video, "_run", counted)
    assert shown(read_frames(path, track, np.array([26, 27]), 3)) == [26, 27]
    assert decoded == [24, 25, 26, 27]
    decoded.clear()
    assert shown(read_frames(path, track, np.array([18, 2]), 3)) == [18, 2]
    assert decoded == [0, 1, 2, 16, 17, 18]


def test_irregular_times(tmp_path: Path) -> None:
    times = np.cumsum([1 + i % 3 for i in range(20)]).tolist()
    path = written(tmp_path, "a.mkv", "mpeg4", {"g": "5"}, 20, times=times)
    track = look_at(path, False, LIMIT)
    assert track.length == len(track.times) == 20 and track.step == 0
    assert shown(read_frames(path, track, np.array([19, 4, 11]), 3)) == [19, 4, 11]


def test_without_times_frames_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, "a.mp4", "mpeg4", {"g": "8"})
    track = Track(30, (32, 48))
    assert not track.timed and shown(read_frames(path, track, np.array([20, 3]), 3)) == [20, 3]


def test_a_picture_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    """The matrix in a phone's file: shown a quarter turn clockwise, what is on the left comes to the top."""
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    frames[:, :, :16] = 220
    path = written(tmp_path, "a.mp4", "mpeg4", {})
    write(path, frames)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    assert content[matrix : matrix + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    path.write_bytes(content)
    track = look_at(path, True, LIMIT)
    assert track.size == (48, 32)
    (frame,) = read_frames(path, track, np.array([2]), 1)
    assert frame.shape == (48, 32, 1) and frame[:12].min() > 180 and frame[20:].max() < 40


def test_grey_is_pillows(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(0, 256, (4, 4, 6, 3), dtype=np.uint8), 8, axis=1), 8, axis=2)
    path = write(tmp_path / "a.mp4", frames)
    track = look_at(path, True, LIMIT)
    colour, grey = (read_frames(path, track, np.array([1]), channels)[0] for channels in (3, 1))
    assert np.array_equal(grey[..., 0], np.asarray(Image.fromarray(colour).convert("L")))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "InvalidDataError"),
        (b"<html>not found</html>" * 100, "InvalidDataError"),
        (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\na.mp4\n#EXT-X-ENDLIST\n",
            "InvalidDataError|ValueError|Error",
        ),
        (b"ffconcat version 1.0\nfile a.mp4\n", "InvalidDataError|ValueError|Error"),
        (bytes(5000), "InvalidDataError"),
    ],
)
def test_what_is_no_video(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path / "a.mp4", levels(5))  # what the playlists would lead to
    (tmp_path / "b.mp4").write_bytes(content)
    with pytest.raises(UnreadableError, match=reason):
        look_at(tmp_path / "b.mp4", False, LIMIT)


def test_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", levels(30), g="8")
    whole, track = path.read_bytes(), look_at(path, False, LIMIT)
    path.write_bytes(whole[: len(whole) // 2])  # the index is at the end
    with pytest.raises(UnreadableError):
        look_at(path, False, LIMIT)
    with pytest.raises(UnreadableError):
        read_frames(path, track, np.array([3]), 3)
    path.unlink()
    for lost in (look_at, lambda *_: read_frames(path, track, np.array([3]), 3)):
        with pytest.raises(UnreadableError, match="not a regular file"):
            lost(path, False, LIMIT)
    early = write(tmp_path / "early.mp4", levels(30), g="8")
    with pytest.raises(UnreadableError, match=r"48 x 32 pixels, expected 1 to 1000 \(data.max_pixels\)"):
        look_at(early, False, 1000)


def test_cut_short_with_its_index_in_front(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (30, 32, 48, 3), dtype=np.uint8)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for pixels in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    whole = path.read_bytes()
    assert look_at(path, False, LIMIT).length == 30
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UnreadableError, match=r"cut short: [0-9]+ frames of 30"):
        look_at(path, False, LIMIT)
