"""Views on a GPU, of images that lie there: ours beside torchvision, kornia and DALI, where they are installed.

    python -m benchmarks.gpu.time_views --seconds 120

SimCLR's views at 32 px (of 32 x 32 arrays, no blur) and at 224 px (of pictures of 375 x 500), and SwAV's multi-crop.
Every provider makes normalised tensors with the paper's random operations: torchvision image by image, as its users run
it, the others by the batch. "ssl_fast" is the whole call, parameters drawn on the host; "kernels" are given them.
Providers take turns; milliseconds are p20, p50, p80 of a call, the device waited for. GB/s count each crop read once
and each view written once. `largest_levels`: largest difference from the engine on the CPU, in levels of 255.
The rows of a job join the CSV when it is done; jobs that are there already, of the same hardware and versions, are left
out. `--device cpu --small` tries the same code out anywhere.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data.contenders import installed, kernel
from benchmarks.gpu.book import Book, options, parsed, working
from ssl_fast.data.augment import augment
from ssl_fast.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from ssl_fast.data.engine_fused import FusedEngine
from ssl_fast.data.engine_fused_gpu import FusedGpuEngine
from ssl_fast.data.view_presets import simclr, swav
from ssl_fast.data.views import COLUMN, View, draw

Step = Callable[[], int]  # makes views once, and says how many
# Job: height, width of the images, how many; size, strength and blur of SimCLR's views, or None: SwAV's.
Job = tuple[int, int, int, tuple[int, float, float] | None]
JOBS: dict[str, Job] = {
    "simclr 32 px": (32, 32, 1024, (32, 0.5, 0.0)),
    "simclr 224 px": (375, 500, 256, (224, 1.0, 0.5)),
    "swav 2 x 224 + 6 x 96 px": (375, 500, 64, None),
}
SMALL: dict[str, Job] = {"simclr 32 px": (32, 32, 4, (32, 0.5, 0.5)), "swav": (40, 50, 2, None)}
PACKAGES = ("torchvision", "kornia", "nvidia-dali-cuda120", "nvidia-dali-cuda130")
SLOW = 16  # images that torchvision is given: it takes them one by one


def pictures(num: int, height: int, width: int, device: str) -> Tensor:  # [N, H, W, 3] uint8
    generator = torch.Generator().manual_seed(0)
    shapes = torch.nn.functional.interpolate(torch.rand(num, 3, 6, 8, generator=generator), (height, width))
    noise = torch.rand(num, 3, height, width, generator=generator)
    return ((0.8 * shapes + 0.2 * noise) * 255).byte().permute(0, 2, 3, 1).contiguous().to(device)


def views_of(job: Job) -> list[View]:
    if job[3] is None:
        return swav()
    size, strength, blur = job[3]
    views = simclr(size, strength)
    for view in views:
        view.blur = blur
    return views


def table_of(views: list[View], images: Tensor) -> Tensor:  # [N, V, P]
    return draw(views, 0, 0, np.arange(len(images)), np.tile(images.shape[1:3], (len(images), 1)))


def whole_call(job: Job, images: Tensor) -> Step:
    views, epoch = views_of(job), iter(range(1 << 30))
    return lambda: sum(map(len, augment(images, views, key=(0, next(epoch), range(len(images))))))


def engine(views: list[View], images: Tensor, dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Table -> views, by the engine of the images' device."""
    if images.is_cuda:
        on_gpu = FusedGpuEngine(views, 3, images.device, dtype)
        return lambda table: on_gpu(images, table)
    on_cpu = FusedEngine(views, 3, dtype)
    return lambda table: on_cpu(images.numpy(), table)


def kernels(dtype: torch.dtype) -> Callable[[Job, Tensor], Step]:
    def make(job: Job, images: Tensor) -> Step:
        views = views_of(job)
        table, apply = table_of(views, images), engine(views, images, dtype)
        return lambda: sum(map(len, apply(table)))

    return make


def torchvision(job: Job, images: Tensor) -> Step:
    from torchvision.transforms import v2

    size, s, blur = job[3] or (224, 1.0, 0.5)
    operations: list[Any] = [
        v2.RandomResizedCrop(size, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], 0.8),
        v2.RandomGrayscale(0.2),
    ]
    operations += [v2.RandomApply([v2.GaussianBlur(kernel(size), (0.1, 2.0))], blur)] if blur else []
    operations += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    transform, planes = v2.Compose(operations), images[:SLOW].permute(0, 3, 1, 2).contiguous()
    return lambda: sum(1 for plane in planes for _ in range(2) if transform(plane) is not None)


def transforms(size: int, s: float, blur: float, device: torch.device) -> Callable[[Tensor], Tensor]:
    """SimCLR's view by kornia: [N, 3, H, W] in [0, 1] -> [N, 3, S, S], normalised."""
    import kornia.augmentation as K

    operations: list[Any] = [
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8),
        K.RandomGrayscale(p=0.2),
    ]
    operations += [K.RandomGaussianBlur((kernel(size),) * 2, (0.1, 2.0), p=blur)] if blur else []
    normalize = K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))
    return torch.nn.Sequential(*operations, normalize).to(device)


def kornia(job: Job, images: Tensor) -> Step:
    transform = transforms(*(job[3] or (224, 1.0, 0.5)), images.device)
    planes = images.permute(0, 3, 1, 2).contiguous()
    return lambda: sum(len(transform(planes.float() / 255)) for _ in range(2))


def dali(job: Job, images: Tensor) -> Step:
    from benchmarks.data.dali_views import build

    size, strength, blur = job[3] or (224, 1.0, 0.5)
    parts = list(images) if images.is_cuda else list(images.numpy())
    pipeline = build(parts, size, strength, blur, kernel(size), 4, images.device.index)
    return lambda: sum(len(output) for output in pipeline.run())


# name -> (what makes the step, the package it needs, the dtype of its views, whether it has multi-crop)
PROVIDERS: dict[str, tuple[Callable[[Job, Tensor], Step], str, torch.dtype, bool]] = {
    "ssl_fast": (whole_call, "ssl_fast", torch.float32, True),
    "ssl_fast kernels": (kernels(torch.float32), "ssl_fast", torch.float32, True),
    "ssl_fast kernels bf16": (kernels(torch.bfloat16), "ssl_fast", torch.bfloat16, True),
    "torchvision": (torchvision, "torchvision", torch.float32, False),
    "kornia": (kornia, "kornia", torch.float32, False),
    "dali": (dali, "nvidia.dali", torch.float32, False),
}


def steps(job: Job, images: Tensor) -> dict[str, Step]:
    """Of the providers that are installed and work here; one that fails is named, and left out."""
    found = {}
    for name, (make, package, _, multi_crop) in PROVIDERS.items():
        if not installed(package) or (job[3] is None and not multi_crop):
            continue
        step = working(name, partial(tried, make, job, images))
        if step is not None:
            found[name] = step
    return found


def tried(make: Callable[[Job, Tensor], Step], job: Job, images: Tensor) -> Step:
    step = make(job, images)
    step()
    return step


def milliseconds(step: Step, device: str) -> tuple[float, int]:
    """Of one call, the device waited for; and the views it made."""
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    made = step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) * 1e3, made


def rows(name: str, job: Job, device: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One of each provider."""
    height, width, num, _ = job
    images = pictures(num, height, width, device)
    taking_part, begun = steps(job, images), time.perf_counter()
    times: dict[str, list[tuple[float, int]]] = {provider: [] for provider in taking_part}
    for turn in range(rounds):
        for provider, step in taking_part.items():
            times[provider].append(milliseconds(step, device))
        if turn >= 2 and time.perf_counter() - begun > seconds:
            break
    found = []
    for provider, measured in times.items():
        p20, p50, p80 = np.quantile([t for t, _ in measured], (0.2, 0.5, 0.8)).tolist()
        made, dtype = measured[0][1], PROVIDERS[provider][2]
        row = {"job": name, "provider": provider, "device": device, "dtype": str(dtype).removeprefix("torch.")}
        row |= {"images": num, "views": made, "p20_ms": f"{p20:.4g}", "p50_ms": f"{p50:.4g}", "p80_ms": f"{p80:.4g}"}
        ours = provider.startswith("ssl_fast")
        row["views_per_second"] = f"{made / p50 * 1e3:.4g}"
        row["gb_per_second"] = f"{bytes_of(job, images, dtype) / p50 / 1e6:.4g}" if ours else ""
        row["largest_levels"] = f"{largest_levels(job, images, dtype):.3g}" if ours else ""
        found.append(row)
    return found


def bytes_of(job: Job, images: Tensor, dtype: torch.dtype) -> int:
    """That must be moved: each crop read once, each view written once."""
    views = views_of(job)
    table = table_of(views, images)
    crops = 3 * int((table[..., COLUMN["height"]] * table[..., COLUMN["width"]]).sum())
    return crops + sum(3 * view.size**2 * len(images) * dtype.itemsize for view in views)


def largest_levels(job: Job, images: Tensor, dtype: torch.dtype) -> float:
    """Of a few images: from the CPU's engine in fp32."""
    views, few = views_of(job), images[:8]
    table = table_of(views, few)
    exact = engine(views, few.cpu(), torch.float32)(table)
    largest = 0.0
    for view, x, y in zip(views, engine(views, few, dtype)(table), exact, strict=True):
        std = torch.tensor(view.std).view(1, -1, 1, 1)
        largest = max(largest, float(((x.float().cpu() - y).abs() * std * 255).max()))
    return largest


def main(arguments: list[str] | None = None) -> None:
    args = parsed(options(__doc__, "gpu_views", 120), arguments)
    book = Book(args.output, PACKAGES, args.seconds, args.again)
    jobs = SMALL if args.small else JOBS
    for name, job in jobs.items():
        if book.opens(name):
            rounds, seconds = 2 if args.small else 50, args.seconds / len(jobs)
            found = working(name, partial(rows, name, job, args.device, rounds, seconds))
            if found:
                print(*found, sep="\n", flush=True)
                book.close(name, found)


if __name__ == "__main__":
    main()
