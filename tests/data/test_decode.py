import io
import json
import resource
import tarfile

import numpy as np
import pytest
from PIL import Image

from ssl_fast.data.decode import EXTENSIONS, Limits, UnreadableError, decode, image_size, read_bytes
from ssl_fast.data.scan import scan

LIMITS = Limits(max_bytes=1 << 20, max_pixels=1 << 20)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp(channels=3):
    x = np.linspace(0, 255, 40).astype(np.uint8)
    return np.repeat(np.tile(x, (30, 1))[:, :, None], channels, axis=2)


def test_sixteen_bits_are_scaled_not_cut():
    levels = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))
    for kind in ("PNG", "TIFF"):
        pixels = decode(encoded(Image.fromarray(levels), kind), 1, LIMITS)[0, :, 0]
        assert np.abs(pixels.astype(int) - np.arange(256)).max() <= 1


def test_floating_point_pixels():
    unit = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (4, 1))
    for image in (unit, unit * 255):
        pixels = decode(encoded(Image.fromarray(image), "TIFF"), 3, LIMITS)
        assert np.abs(pixels[0, :, 1].astype(int) - np.arange(256)).max() <= 1
    unit[0, 0] = np.nan
    assert decode(encoded(Image.fromarray(unit), "TIFF"), 1, LIMITS)[0, 0, 0] == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_what_was_asked(mode, channels):
    image = Image.fromarray(ramp())
    image = image.quantize() if mode == "P" else image.convert(mode)
    pixels = decode(encoded(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"), channels, LIMITS)
    assert pixels.shape == (30, 40, channels) and pixels.dtype == np.uint8 and pixels.flags.writeable
    if mode != "1":
        assert np.abs(pixels.astype(int) - ramp(channels)).mean() < 6


def test_cmyk_jpeg_has_the_right_colours():
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    assert np.abs(decode(encoded(red, "JPEG"), 3, LIMITS).mean(axis=(0, 1)) - [250, 10, 10]).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = np.zeros((20, 30, 3), dtype=np.uint8)
    upright[:10, :15] = 255  # the upper left quarter is white
    undo = {2: [1], 3: [0, 1], 4: [0], 5: ["t"], 6: ["t", 0], 7: ["t", 0, 1], 8: ["t", 1]}.get(orientation, [])
    stored = upright
    for step in undo:
        stored = stored.transpose(1, 0, 2) if step == "t" else np.flip(stored, axis=step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(decode(content, 3, LIMITS), upright)
    assert image_size(content, LIMITS) == (20, 30)


def test_animations_give_their_first_frame():
    frames = [Image.new("L", (8, 8), level) for level in (10, 200)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(content, 1, LIMITS) == 10).all()


def test_limits_hold_before_anything_is_decoded(tmp_path):
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    with pytest.raises(UnreadableError, match=r"20000 x 20000 pixels, expected at most|exceeds limit"):
        decode(bomb, 3, LIMITS)
    with pytest.raises(UnreadableError, match=r"20000 x 20000 pixels|exceeds limit"):
        image_size(bomb, LIMITS)
    (tmp_path / "file").write_bytes(b"x" * (LIMITS.max_bytes + 1))
    with pytest.raises(UnreadableError, match=r"1048577 bytes, expected 1 to 1048576"):
        read_bytes(tmp_path / "file", LIMITS)
    with pytest.raises(UnreadableError, match=r"not a regular file"):
        read_bytes(tmp_path, LIMITS)
    with pytest.raises(UnreadableError, match=r"FileNotFoundError"):
        read_bytes(tmp_path / "none", LIMITS)


def test_only_image_formats_are_opened():
    content = encoded(Image.fromarray(ramp()), "EPS")
    with pytest.raises(UnreadableError, match=r"cannot identify"):
        decode(content, 3, LIMITS)


def damaged(num, seed):
    """Truncated files and files with flipped bits, `num` of each for each of six formats."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"):
        content = encoded(image, kind)
        for _ in range(num):
            yield kind, "cut", content[: random.integers(0, len(content))]
            flipped = np.frombuffer(content, dtype=np.uint8).copy()
            flipped[random.integers(0, len(content), 8)] ^= 1 << random.integers(0, 8, 8, dtype=np.uint8)
            yield kind, "flipped", flipped.tobytes()


def fuzz(num, seed):
    verdicts = {}
    for kind, damage, content in damaged(num, seed):
        try:
            pixels = decode(content, 3, LIMITS)
            assert pixels.ndim == 3 and pixels.shape[2] == 3
            readable = True
        except UnreadableError as refusal:
            assert "\n" not in str(refusal)
            readable = False
        verdicts.setdefault((kind, damage), []).append(readable)
    return verdicts


def test_damaged_files_decode_or_are_refused():
    verdicts = fuzz(num=50, seed=0)
    assert not any(verdicts[kind, "cut"].count(True) > 2 for kind in ("JPEG", "PNG", "WEBP", "BMP"))
    assert not any(verdicts["PNG", "flipped"])  # its checksums see every flipped bit of the pixels


@pytest.mark.nightly
def test_many_damaged_files_decode_or_are_refused():
    fuzz(num=420, seed=1)


def look_at_pack(archive_path, folder, chosen):
    with tarfile.open(archive_path) as archive:
        manifest = {}
        for line in archive.extractfile("robustness/manifest.jsonl").read().decode().splitlines():
            entry = json.loads(line)
            manifest[entry["file"]] = entry
        archive.extractall(folder, [m for m in archive.getmembers() if chosen(m)], filter="data")
    root = folder / "robustness"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = scan(root, Limits(64 << 20, 64_000_000), full=True, threads=2)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    files = [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.suffix.lower() in EXTENSIONS]
    refused = dict(found.refused)
    assert sorted([*found.names, *refused]) == sorted(files)  # each is decoded or refused, none is lost
    # Nothing is taken that Pillow refuses. The other way round: formats and sizes that we do not take, and damage after
    # the pixels, which Pillow reports once (here when it looked for EXIF) and then forgets.
    assert all(manifest[name]["result"] == "ok" for name in found.names if name in manifest)
    for name, reason in refused.items():
        if name in manifest and manifest[name]["result"] == "ok" and "exif_error" not in manifest[name]:
            assert "pixels, expected" in reason or "cannot identify" in reason, name
    return found, grown


def test_odd_files_of_the_robustness_pack(shared_data, tmp_path, capfd):
    def every_third(member):
        return "/made/" in member.name or (member.isfile() and sum(member.name.encode()) % 3 == 0)

    found, grown = look_at_pack(shared_data / "robustness.tar", tmp_path, every_third)
    assert len(found.names) > 80 and len(found.refused) > 15 and grown < 500


@pytest.mark.nightly
def test_all_files_of_the_robustness_pack(shared_data, tmp_path, capfd):
    found, grown = look_at_pack(shared_data / "robustness.tar", tmp_path, lambda member: True)
    assert len(found.names) + len(found.refused) > 440 and grown < 500
