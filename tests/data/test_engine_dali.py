import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_fast.data.datasets.image_folder import ImageFolder
from ssl_fast.data.engine_dali import DaliSource
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None,
    reason="nvidia-dali is not installed (pip install ssl_fast[dali])",
)

PLAIN = {"mean": (0.0,), "std": (1.0,)}
VIEWS = (
    View(size=32, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grayscale=0.2, blur=0.5, **PLAIN),
    View(size=48, interpolation="bicubic", **PLAIN),
)


@pytest.fixture
def folder(tmp_path):
    """Smooth pictures of many sizes: colour JPEG and PNG, grey, palette, 16 bits, and one with a turned EXIF."""
    random = np.random.default_rng(0)
    for i in range(20):
        coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        image = coarse.resize((60 + 3 * i, 80 - 2 * i), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 4 else 1
        if i == 7:
            image = image.convert("P")
        if i == 8:
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        if i == 9:
            image = image.convert("L")
        jpeg = i % 2 == 0 and image.mode in ("RGB", "L")
        image.save(tmp_path / f"{i:02}.{'jpg' if jpeg else 'png'}", exif=exif, **({"quality": 95} if jpeg else {}))
    return tmp_path


def open_folder(folder, **options):
    return ImageFolder(ImageFolder.Config(root=str(folder), test_fraction=0.0, **options), "train")


def loader(dataset, engine, views=VIEWS, **options):
    options = {"batch_size": 6, "seed": 0, "shuffle": True, "drop_last": False} | options
    return Loader(dataset, views, LoaderConfig(engine=engine, workers=0), **options)


def gray(views):
    return tuple(View(size=v.size, interpolation=v.interpolation, brightness=0.4, jitter=0.5, **PLAIN) for v in views)


def compare(ours, theirs):
    assert torch.equal(ours.index, theirs.index)
    for a, b in zip(ours.views, theirs.views, strict=True):
        error = (a.cpu() - b).abs()
        assert error.mean() < 1.5 / 255 and error.mean(dim=(1, 2, 3)).max() < 4 / 255
        assert a.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("color", [True, False])
def test_views_equal_the_reference_engines(folder, color):
    dataset = open_folder(folder, color=color)
    views = VIEWS if color else gray(VIEWS)
    for ours, theirs in zip(
        loader(dataset, "dali", views).epoch(1), loader(dataset, "torchvision", views).epoch(1), strict=True
    ):
        compare(ours, theirs)


def test_an_epoch_left_early_and_a_resumed_one(folder):
    source = loader(open_folder(folder), "dali")
    whole = list(source.epoch(0))
    assert [len(b) for b in whole] == [6, 6, 6, 2]
    next(source.epoch(2))
    (last,) = source.epoch(0, start=3)
    assert all(torch.equal(a, b) for a, b in zip(last.views, whole[3].views, strict=True))
    assert source.engine == "dali" and source.reason == "asked for" and source.workers == 0


RESUMED = """
import hashlib, sys
from ssl_fast.data.datasets.image_folder import ImageFolder
from ssl_fast.data.engine_dali import DaliSource
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View

folder, start, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dataset = ImageFolder(ImageFolder.Config(root=folder, test_fraction=0.0), "train")
views = (View(size=32, brightness=0.4, hue=0.1, jitter=0.8, blur=0.5), View(size=16, interpolation="bicubic"))
options = {"batch_size": 6, "seed": 5, "shuffle": True, "drop_last": False, "rank": rank, "world_size": 2}
loader = Loader(dataset, views, LoaderConfig(engine="dali"), **options)
for batch in [*loader.epoch(1, start), *loader.epoch(2)]:
    print(batch.index.tolist(), hashlib.sha256(b"".join(v.numpy().tobytes() for v in batch.views)).hexdigest())
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_goes_on_sees_what_an_unbroken_one_does(folder, rank):
    """The state of a DALI run is (seed, epoch, step), as with the other engines: nothing of the pipeline is saved."""

    def lines(start):
        command = [sys.executable, "-c", RESUMED, folder, str(start), str(rank)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    whole = lines(0)
    assert len(whole) == 8 and len(set(whole)) == 8
    assert lines(2) == whole[2:] and lines(3) == whole[3:]


def test_a_policy_is_refused(folder):
    views = (View(size=16, policy="randaugment"),)
    with pytest.raises(ValueError, match="dali cannot be used: policy=randaugment needs the torchvision engine"):
        loader(open_folder(folder), "dali", views)
    with pytest.raises(ValueError, match="policy: expected '' for the dali engine"):
        DaliSource(open_folder(folder), views, 4, torch.device("cpu"))


def test_a_file_that_breaks_after_the_scan_is_replaced(folder):
    dataset = open_folder(folder)
    dataset.captions = [[str(i), str(100 + i)] for i in range(len(dataset))]
    dataset.tokenize = lambda texts: np.array([[int(text)] for text in texts])
    (folder / "10.jpg").write_bytes((folder / "10.jpg").read_bytes()[:700])
    (folder / "13.png").unlink()
    ours, theirs = (list(loader(dataset, engine).epoch(0)) for engine in ("dali", "torchvision"))
    for a, b in zip(ours, theirs, strict=True):
        compare(a, b)
        assert torch.equal(a.extras["tokens"], b.extras["tokens"])
        assert torch.equal(a.extras["tokens"][:, 0] % 100, a.index)
    assert {"10.jpg", "13.png"} <= set(dataset.quarantine.files())


def test_real_photographs(shared_data, tmp_path):
    import tarfile

    with tarfile.open(shared_data / "photos-hymenoptera.tar") as archive:
        chosen = [m for m in archive.getmembers() if m.name.endswith(".jpg") and "/val/" in m.name][::6]
        for member in chosen:
            (tmp_path / member.name.rsplit("/", 1)[1]).write_bytes(archive.extractfile(member).read())
    dataset = open_folder(tmp_path)
    for ours, theirs in zip(loader(dataset, "dali").epoch(0), loader(dataset, "torchvision").epoch(0), strict=True):
        compare(ours, theirs)


@pytest.mark.gpu
def test_gpu_decoding(folder):
    dataset = open_folder(folder)
    source = loader(dataset, "auto", device="cuda")
    assert source.engine == "dali"
    for ours, theirs in zip(source.epoch(0), loader(dataset, "torchvision").epoch(0), strict=True):
        assert all(view.is_cuda for view in ours.views)
        compare(ours.to("cpu"), theirs)
