"""642 odd or malformed image files: each is decoded right or quarantined with its reason; none crashes or hangs."""

import csv
import io
import json
import resource
import tarfile
import time

import numpy as np
import pytest
import torch

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.datasets import open_dataset
from ssl_fast.data.datasets.image_csv import ImageCSV
from ssl_fast.data.decode import EXTENSIONS, Limits, decode
from ssl_fast.data.scan import scan

DEFAULTS = ImageCSV.Config()
LIMITS = Limits(DEFAULTS.max_bytes, DEFAULTS.max_pixels)
TAKEN = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Damage behind the pixels that Pillow reports when it looks for EXIF, and deep pixels that would all become one level.
REFUSED = {
    "made/big_9000x9000_rgb_black.png": "data.max_pixels",
    "pillow/10ct_32bit_128.tiff": "floating-point pixels from -3.14",
    "pillow/12in16bit.tif": "all become 0: set data.white",
    "pillow/apng/chunk_no_fctl.png": "SyntaxError",
    "pillow/broken_data_stream.png": "OSError",
    "pillow/truncated_end_chunk.png": "OSError",
}
# Where torchvision is no judge: it knows no orientation in WEBP and XMP, and composes transparent GIFs.
NO_JUDGE = ("orientation_", "xmp_tags", "imagemagick", "first_frame_transparency", "transparent_dispose", "gbr.png")


@pytest.fixture(scope="module")
def pack(shared_data, tmp_path_factory):
    """(the folder, {file: what Pillow did with it})."""
    folder = tmp_path_factory.mktemp("pack")
    with tarfile.open(shared_data / "robustness.tar") as archive:
        archive.extractall(folder, filter="data")
    lines = (folder / "robustness/manifest.jsonl").read_text().splitlines()
    return folder / "robustness", {entry["file"]: entry for entry in map(json.loads, lines)}


@pytest.fixture(scope="module")
def pictures(pack):
    """({file: pixels} of those that are decoded, {file: reason} of the others), each within two seconds."""
    root, manifest = pack
    good, refused = {}, {}
    for name in manifest:
        began = time.perf_counter()
        try:
            good[name] = decode((root / name).read_bytes(), 3, LIMITS)
        except UnreadableError as refusal:
            refused[name] = str(refusal)
        assert time.perf_counter() - began < 2, name
    return good, refused


def test_all_that_pillow_decodes_is_taken_but_for_other_formats_and_sizes(pack, pictures, capfd):
    _, manifest = pack
    good, refused = pictures
    assert len(manifest) == 642 and len(good) + len(refused) == 642
    assert all(manifest[name]["result"] == "ok" for name in good)
    lost = {name for name in refused if manifest[name]["result"] == "ok" and manifest[name]["format"] in TAKEN}
    assert lost == set(REFUSED)
    for name, reason in refused.items():
        assert REFUSED.get(name, "") in reason and "\n" not in reason and " at 0x" not in reason
        if name not in REFUSED and manifest[name]["result"] == "ok":
            assert "cannot identify the content as JPEG" in reason


def test_pictures_are_those_of_another_decoder(pack, pictures, capfd):
    import torchvision
    from torchvision.io import ImageReadMode, decode_image

    if tuple(map(int, torchvision.__version__.split(".")[:2])) < (0, 29):
        pytest.skip("torchvision 0.26 crashes on one of these files")
    root, manifest = pack
    compared = 0
    for name, pixels in pictures[0].items():
        if manifest[name]["format"] not in ("JPEG", "MPO", "PNG", "WEBP", "GIF") or any(n in name for n in NO_JUDGE):
            continue
        content = torch.frombuffer(bytearray((root / name).read_bytes()), dtype=torch.uint8)
        try:
            theirs = decode_image(content, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        except RuntimeError:  # it refuses six odd GIFs and WEBPs
            continue
        theirs = (theirs if theirs.ndim == 3 else theirs[0]).permute(1, 2, 0).numpy().astype(np.float64)
        theirs = theirs / 257 if pixels.max() <= 255 < theirs.max() or name.endswith("i_trns.png") else theirs
        assert theirs.shape == pixels.shape and np.abs(theirs - pixels).max() <= 3, name
        compared += 1
    assert compared > 230


def test_tiffs_are_those_of_another_decoder(pack, pictures, capfd):
    tifffile = pytest.importorskip("tifffile")
    root, manifest = pack
    compared = 0
    for name, pixels in pictures[0].items():
        if manifest[name]["format"] != "TIFF" or manifest[name]["exif_orientation"] not in (None, 1):
            continue
        try:
            page = tifffile.TiffFile(io.BytesIO((root / name).read_bytes())).pages[0]
            theirs = page.asarray().astype(np.float64)
        except Exception:  # compressions that need another package, and damaged directories
            continue
        if (
            page.photometric.name not in ("RGB", "MINISBLACK")
            or page.extrasamples
            or theirs.shape[:2] != pixels.shape[:2]
        ):
            continue
        theirs = theirs[..., None] if theirs.ndim == 2 else theirs[..., :3]
        theirs = theirs % 256 if page.bitspersample == 8 else theirs  # a photograph whose bytes are called signed
        most = {8: 255, 16: 32767 if page.dtype.kind == "i" else 65535, 32: 65535, 1: 1}[page.bitspersample]
        assert np.abs(theirs * (255 / most) - pixels).max() <= 1, name
        compared += 1
    assert compared > 20


def test_orientation_twelve_bits_lab_and_cmyk(pack, pictures, capfd):
    good = pictures[0]
    upright = good["pillow/hopper_orientation_2.webp"].astype(int)
    for turned in range(3, 9):
        other = good[f"pillow/hopper_orientation_{turned}.webp"]
        assert other.shape == upright.shape and np.abs(other - upright).mean() < 12
    first = good["made/exif_orientation_1.jpg"]
    assert np.array_equal(good["made/exif_orientation_77.jpg"], first)
    assert np.array_equal(good["made/exif_orientation_6.jpg"], np.rot90(good["made/exif_orientation_1.jpg"], -1))
    assert good["pillow/12bit.cropped.tif"].max() == round(30 * 255 / 4095)
    red, green = (good[f"pillow/lab-{name}.tif"].reshape(-1, 3).mean(axis=0) for name in ("red", "green"))
    assert red.argmax() == 0 and green.argmax() == 1
    assert np.abs(good["made/cmyk.jpg"].astype(int) - first).mean() < 12


def test_none_is_black_but_those_that_are(pack, pictures, capfd):
    """Blank pictures are the tests' own: of a few pixels, or blank in every decoder (compared above)."""
    blank = {name: pixels.shape[:2] for name, pixels in pictures[0].items() if pixels.min() == pixels.max()}
    large = {name for name, (height, width) in blank.items() if height * width > 100}
    assert large == {"pillow/apng/mode_palette_1bit_alpha.png", "pillow/truncated_exif_dpi.jpg"}


def test_a_table_of_all_of_them_leaves_a_record_of_the_bad_ones(pack, pictures, tmp_path, capfd):
    root, manifest = pack
    with open(tmp_path / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path"], *([name] for name in manifest)])
    record = tmp_path / "quarantine.jsonl"
    dataset = open_dataset(ImageCSV.Config(path=str(tmp_path / "table.csv"), root=str(root), quarantine=str(record)))
    for begin in range(0, len(dataset), 32):
        index = np.arange(begin, min(begin + 32, len(dataset)))
        images, found = dataset.fetch(index)
        for i, image, read in zip(index, images, found, strict=True):
            assert (read == i) == (dataset.names[i] in pictures[0])
            assert np.array_equal(image, pictures[0][dataset.names[read]])
    reasons = {entry["path"]: entry["reason"] for entry in map(json.loads, record.read_text().splitlines())}
    expected = dict(pictures[1])
    expected["made/zero_bytes.jpg"] = f"0 bytes, expected 1 to {LIMITS.max_bytes} (data.max_bytes)"
    assert reasons == expected


def test_a_scan_of_the_folder_takes_the_same_and_little_memory(pack, pictures, capfd):
    root, _ = pack
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = scan(root, LIMITS, full=True, threads=2)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 500
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS}
    assert set(found.names) == files & set(pictures[0])
    assert {name for name, _ in found.refused} == files - set(pictures[0])
