import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.decode import Limits, decode, image_size, read_bytes

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
    for image in (unit - 0.5, unit * 300, unit * 1.1):
        with pytest.raises(UnreadableError, match=r"floating-point pixels from .* expected \[0, 1\] or \[0, 255\]"):
            decode(encoded(Image.fromarray(image), "TIFF"), 3, LIMITS)
    signed = decode(encoded(Image.fromarray(2 * unit - 1), "TIFF"), 1, replace(LIMITS, white=1.0))
    assert signed[0, 1:128].max() == 0 and signed[0, -1, 0] == 255


def test_deep_pixels_are_read_by_data_white_and_never_silently_black():
    dim = Image.fromarray(np.tile(np.arange(100, dtype=np.uint16), (4, 1)))
    with pytest.raises(UnreadableError, match=r"pixels from 0 to 99 all become 0: set data.white"):
        decode(encoded(dim, "TIFF"), 1, LIMITS)
    pixels = decode(encoded(dim, "TIFF"), 1, replace(LIMITS, white=99))
    assert pixels.min() == 0 and pixels.max() == 255
    assert decode(encoded(Image.new("I;16", (4, 4)), "TIFF"), 1, LIMITS).max() == 0  # black it was


def test_a_shape_drawn_in_the_alpha_channel_alone_is_seen():
    layers = np.zeros((8, 8, 4), dtype=np.uint8)
    layers[2:6, 2:6, 3] = 255
    for ink, ground in ((0, 255), (255, 0)):
        layers[..., :3] = ink
        for image in (Image.fromarray(layers), Image.fromarray(layers).convert("LA")):
            for channels in (1, 3):
                pixels = decode(encoded(image), channels, LIMITS)
                assert (pixels[2:6, 2:6] == ink).all() and (pixels[0] == ground).all()


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
    large = encoded(Image.new("1", (2000, 2000)))
    for look in (lambda content: decode(content, 3, LIMITS), lambda content: image_size(content, LIMITS)):
        with pytest.raises(UnreadableError, match=r"many more pixels than 1048576 \(data.max_pixels\)"):
            look(bomb)
        with pytest.raises(UnreadableError, match=r"2000 x 2000 pixels, expected 1 to 1048576 \(data.max_pixels\)"):
            look(large)
    (tmp_path / "file").write_bytes(b"x" * (LIMITS.max_bytes + 1))
    with pytest.raises(UnreadableError, match=r"1048577 bytes, expected 1 to 1048576"):
        read_bytes(tmp_path / "file", LIMITS)
    with pytest.raises(UnreadableError, match=r"not a regular file"):
        read_bytes(tmp_path, LIMITS)
    with pytest.raises(UnreadableError, match=r"FileNotFoundError"):
        read_bytes(tmp_path / "none", LIMITS)


def test_a_limit_above_pillows_own_is_heeded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert image_size(bomb, replace(LIMITS, max_pixels=400_000_000)) == (20_000, 20_000)


def test_only_image_formats_are_opened():
    content = encoded(Image.fromarray(ramp()), "EPS")
    with pytest.raises(UnreadableError, match=r"cannot identify the content as JPEG, PNG, "):
        decode(content, 3, LIMITS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_arrays_and_tiffs_of_many_bands(dtype, channels):
    bands = np.random.default_rng(0).integers(0, 256, (6, 7, channels), dtype=np.uint8)
    deep = {np.uint8: bands, np.uint16: bands.astype(np.uint16) * 257, np.float32: bands.astype(np.float32) / 255}[
        dtype
    ]
    file = io.BytesIO()
    np.save(file, deep)
    assert np.array_equal(decode(file.getvalue(), channels, LIMITS), bands)
    assert image_size(file.getvalue(), LIMITS, channels) == (6, 7)
    if channels in (2, 5):
        tifffile = pytest.importorskip("tifffile")
        for planar in ("contig", "separate"):
            file = io.BytesIO()
            pixels = deep if planar == "contig" else np.moveaxis(deep, 2, 0)
            tifffile.imwrite(file, np.ascontiguousarray(pixels), photometric="minisblack", planarconfig=planar)
            assert np.array_equal(decode(file.getvalue(), channels, LIMITS), bands)
            assert image_size(file.getvalue(), LIMITS, channels) == (6, 7)


def test_channels_must_be_the_files_own_but_for_grey_and_rgb():
    def array(pixels):
        file = io.BytesIO()
        np.save(file, pixels)
        return file.getvalue()

    grey = np.arange(42, dtype=np.uint8).reshape(6, 7)
    assert np.array_equal(decode(array(grey), 3, LIMITS), np.repeat(grey[..., None], 3, axis=2))
    assert decode(array(ramp()), 1, LIMITS).shape == (30, 40, 1)
    assert decode(encoded(Image.fromarray(ramp()).convert("RGBA")), 4, LIMITS)[..., 3].min() == 255
    with pytest.raises(UnreadableError, match="3 channels, expected 5"):
        decode(encoded(Image.fromarray(ramp())), 5, LIMITS)
    with pytest.raises(UnreadableError, match=r"expected numbers \[H, W\] or \[H, W, C\]"):
        decode(array(np.array([None, None])), 3, LIMITS)
    with pytest.raises(UnreadableError, match=r"bytes of pixels, expected 42"):
        decode(array(grey)[:-1], 1, LIMITS)
    with pytest.raises(UnreadableError, match=r"2000 x 2000 pixels, expected .*data.max_pixels"):
        decode(array(np.zeros((2000, 2000), dtype=np.uint8)), 1, LIMITS)
