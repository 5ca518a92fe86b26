"""SimCLR's views by each package, as its users write them: make(job, images, threads) -> a step that makes views.

A step goes once over all images and returns the number of views made. What a package lacks is left out: `names`.
"""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_fast.data.augment import augment
from ssl_fast.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from ssl_fast.data.view_presets import simclr

Step = Callable[[], int]


def settings(job: str) -> tuple[int, float, float]:
    """Side of the views, strength of the jitter, probability of the blur."""
    return (32, 0.5, 0.0) if job == "32 px" else (224, 1.0, 0.5)


def kernel(size: int) -> int:
    return size // 10 | 1


def ssl_fast(job: str, images: Any, threads: int) -> Step:
    size, strength, blur = settings(job)
    views = simclr(size, strength)
    for view in views:
        view.blur = blur
    epoch = iter(range(1 << 30))
    out = None  # written again each time, as a loader does

    def step() -> int:
        nonlocal out
        out = augment(images, views, key=(0, next(epoch), range(len(images))), out=out)
        return sum(map(len, out))

    return step


def per_image(images: list[Any], transform: Callable[[Any], Any]) -> Step:
    def step() -> int:
        for image in images:
            transform(image)
            transform(image)
        return 2 * len(images)

    return step


def lightly(job: str, images: Any, threads: int) -> Step:
    from PIL import Image

    transform = lightly_transform(job)
    pictures = [Image.fromarray(image) for image in some(job, images)]

    def step() -> int:
        return sum(len(transform(picture)) for picture in pictures)

    return step


def lightly_transform(job: str) -> Any:
    from lightly.transforms import SimCLRTransform

    size, strength, blur = settings(job)
    return SimCLRTransform(input_size=size, cj_strength=strength, gaussian_blur=blur)


def torchvision(job: str, images: Any, threads: int) -> Step:
    from torchvision.transforms import v2

    size, s, blur = settings(job)
    operations = [
        v2.RandomResizedCrop(size, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], 0.8),
        v2.RandomGrayscale(0.2),
    ]
    operations += [v2.RandomApply([v2.GaussianBlur(kernel(size), (0.1, 2.0))], blur)] if blur else []
    operations += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    tensors = [torch.from_numpy(image).permute(2, 0, 1).contiguous() for image in some(job, images)]
    return per_image(tensors, v2.Compose(operations))


def albumentations(job: str, images: Any, threads: int) -> Step:
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2

    cv2.setNumThreads(1)
    size, s, blur = settings(job)
    span = (max(0.0, 1 - 0.8 * s), 1 + 0.8 * s)
    operations: list[Any] = [
        A.RandomResizedCrop(size=(size, size), scale=(0.08, 1.0)),
        A.HorizontalFlip(p=0.5),
        A.ColorJitter(brightness=span, contrast=span, saturation=span, hue=(-0.2 * s, 0.2 * s), p=0.8),
        A.ToGray(p=0.2),
    ]
    operations += [A.GaussianBlur(blur_limit=(kernel(size),) * 2, sigma_limit=(0.1, 2.0), p=blur)] if blur else []
    compose = A.Compose([*operations, A.Normalize(IMAGENET_MEAN, IMAGENET_STD), ToTensorV2()])
    return per_image(list(some(job, images, 64)), lambda image: compose(image=image)["image"])


def opencv(job: str, images: Any, threads: int) -> Step:
    import cv2

    cv2.setNumThreads(1)
    size, s, blur = settings(job)
    random = np.random.default_rng(0)
    levels = np.arange(256, dtype=np.float32)[None, :, None] / 255
    normalised = ((levels - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)  # [1, 256, 3]

    def brightness(x: Any) -> Any:
        return cv2.convertScaleAbs(x, alpha=random.uniform(max(0, 1 - 0.8 * s), 1 + 0.8 * s))

    def contrast(x: Any) -> Any:
        factor = random.uniform(max(0, 1 - 0.8 * s), 1 + 0.8 * s)
        grey = cv2.mean(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY))[0]
        table = np.clip(np.arange(256) * factor + grey * (1 - factor), 0, 255).astype(np.uint8)
        return cv2.LUT(x, table)

    def saturation(x: Any) -> Any:
        factor = random.uniform(max(0, 1 - 0.8 * s), 1 + 0.8 * s)
        grey = cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return cv2.addWeighted(x, factor, grey, 1 - factor, 0)

    def hue(x: Any) -> Any:
        hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
        turned = ((np.arange(256) + random.uniform(-0.2, 0.2) * s * 180) % 180).astype(np.uint8)
        hsv[..., 0] = cv2.LUT(np.ascontiguousarray(hsv[..., 0]), turned)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

    def transform(image: np.ndarray) -> torch.Tensor:
        top, left, height, width = random_box(random, *image.shape[:2])
        crop = image[top : top + height, left : left + width]
        shrinks = height * width > size * size
        x = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        x = cv2.flip(x, 1) if random.random() < 0.5 else x
        if random.random() < 0.8:
            for i in random.permutation(4):
                x = (brightness, contrast, saturation, hue)[i](x)
        if random.random() < 0.2:
            x = cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if random.random() < blur:
            x = cv2.GaussianBlur(x, (kernel(size),) * 2, random.uniform(0.1, 2.0))
        return torch.from_numpy(cv2.LUT(x, normalised)).permute(2, 0, 1)

    return per_image(list(some(job, images, 64)), transform)


def random_box(random: Any, height: int, width: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop's box; the whole image when ten draws do not fit."""
    for _ in range(10):
        area, ratio = random.uniform(0.08, 1.0) * height * width, np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    return 0, 0, height, width


def kornia(job: str, images: Any, threads: int) -> Step:
    import kornia.augmentation as K

    size, s, blur = settings(job)
    operations: list[Any] = [
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8),
        K.RandomGrayscale(p=0.2),
    ]
    operations += [K.RandomGaussianBlur((kernel(size),) * 2, (0.1, 2.0), p=blur)] if blur else []
    operations += [K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))]
    transform = torch.nn.Sequential(*operations)
    batch = torch.from_numpy(np.stack(some(job, images))).permute(0, 3, 1, 2).contiguous()

    def step() -> int:
        return sum(len(transform(batch.float() / 255)) for _ in range(2))

    return step


def dali(job: str, images: Any, threads: int) -> Step:
    from benchmarks.data.dali_views import build

    chosen = list(some(job, images))
    pipeline = build(chosen, *settings(job), kernel(settings(job)[0]), threads)

    def step() -> int:
        return sum(len(output) for output in pipeline.run())

    return step


def control(job: str, images: Any, threads: int) -> Step:
    """Arithmetic in the cache: what a thread more is worth on this machine."""
    a = torch.rand(96, 96)

    def step() -> int:
        for _ in range(2000):
            torch.mm(a, a)
        return 2000

    return step


def some(job: str, images: Any, num: int = 16) -> Any:
    """Fewer images for the slower packages: a round takes about as long for each."""
    return images[: 4 * num] if job == "32 px" else images[:num]


def save_jpegs(photographs: list[np.ndarray], folder: Path) -> None:
    from PIL import Image

    for i, image in enumerate(photographs):
        (folder / "photographs").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / "photographs" / f"{i:03}.jpg", quality=90)


def ssl_fast_files(job: str, folder: Any, threads: int) -> Step:
    from ssl_fast.data.datasets.image_folder import ImageFolder
    from ssl_fast.data.loader import Loader, LoaderConfig

    dataset = ImageFolder(ImageFolder.Config(root=str(folder), test_fraction=0.0), "train")
    config = LoaderConfig("fused", workers=0 if threads == 1 else threads, start_method="thread")
    options = {"batch_size": 16, "seed": 0, "shuffle": True, "drop_last": False}
    loader = Loader(dataset, simclr(), config, **options)  # type: ignore[arg-type]
    epoch = iter(range(1 << 30))
    return lambda: sum(sum(map(len, batch.views)) for batch in loader.epoch(next(epoch)))


def lightly_files(job: str, folder: Any, threads: int) -> Step:
    from lightly.data import LightlyDataset
    from torch.utils.data import DataLoader

    dataset = LightlyDataset(str(folder), transform=lightly_transform(job))
    workers: dict[str, Any] = {"num_workers": threads, "persistent_workers": True} if threads > 1 else {}
    loader = DataLoader(dataset, batch_size=16, shuffle=True, **workers)

    def batches() -> Iterator[int]:
        for views, _, _ in loader:
            yield sum(map(len, views))

    return lambda: sum(batches())


def dali_files(job: str, folder: Any, threads: int) -> Step:
    from benchmarks.data.dali_views import build_from_files

    size, s, blur = settings(job)
    pipeline = build_from_files(str(folder), 16, size, s, blur, kernel(size), threads)
    (num,) = pipeline.epoch_size().values()  # of its one reader

    def step() -> int:
        return sum(len(output) for _ in range(num // 16) for output in pipeline.run())

    return step


# job -> name -> (make, whether a step uses the threads it is given, the module it needs)
Contenders = dict[str, tuple[Callable[[str, Any, int], Step], bool, str]]
FROM_PIXELS: Contenders = {
    "ssl_fast": (ssl_fast, True, "ssl_fast"),
    "lightly": (lightly, False, "lightly"),
    "torchvision v2": (torchvision, False, "torchvision"),
    "albumentations": (albumentations, False, "albumentations"),
    "opencv": (opencv, False, "cv2"),
    "kornia": (kornia, True, "kornia"),
    "dali": (dali, True, "nvidia.dali"),
    "control": (control, False, "torch"),
}
FROM_FILES: Contenders = {
    "ssl_fast": (ssl_fast_files, True, "ssl_fast"),
    "lightly": (lightly_files, True, "lightly"),
    "dali": (dali_files, True, "nvidia.dali"),
    "control": (control, False, "torch"),
}


def contenders(job: str) -> Contenders:
    """Those that are installed."""
    all_of_them = FROM_FILES if job.startswith("JPEG") else FROM_PIXELS
    return {name: entry for name, entry in all_of_them.items() if installed(entry[2])}


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
