"""SimCLR's two views as a DALI pipeline on the CPU or a GPU, in DALI's own operators."""

from typing import Any

from nvidia.dali import fn, pipeline_def, types

from ssl_fast.data.dataset import IMAGENET_MEAN, IMAGENET_STD


def _view(x: Any, size: int, s: float, blur: float, window: int) -> Any:
    x = fn.random_resized_crop(x, size=size, random_area=[0.08, 1.0], antialias=True)
    if fn.random.coin_flip(probability=0.8, dtype=types.BOOL):
        low, high = max(0.0, 1 - 0.8 * s), 1 + 0.8 * s
        x = fn.color_twist(
            x,
            brightness=fn.random.uniform(range=[low, high]),
            contrast=fn.random.uniform(range=[low, high]),
            saturation=fn.random.uniform(range=[low, high]),
            hue=fn.random.uniform(range=[-72 * s, 72 * s]),
        )
    if fn.random.coin_flip(probability=0.2, dtype=types.BOOL):
        x = fn.hsv(x, saturation=0.0)
    if blur > 0 and fn.random.coin_flip(probability=blur, dtype=types.BOOL):
        x = fn.gaussian_blur(x, sigma=fn.random.uniform(range=[0.1, 2.0]), window_size=window)
    mean, std = ([255 * number for number in numbers] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    mirror = fn.random.coin_flip()
    return fn.crop_mirror_normalize(x, mean=mean, std=std, mirror=mirror, output_layout="CHW", dtype=types.FLOAT)


@pipeline_def(enable_conditionals=True)
def _of_pixels(images: list[Any], on_gpu: bool, size: int, s: float, blur: float, window: int) -> Any:
    place = "gpu" if on_gpu else "cpu"
    source = fn.external_source(source=lambda: images, layout="HWC", batch=True, device=place)
    return _view(source, size, s, blur, window), _view(source, size, s, blur, window)


@pipeline_def(enable_conditionals=True)
def _of_files(folder: str, size: int, s: float, blur: float, window: int) -> Any:
    contents, _ = fn.readers.file(file_root=folder, random_shuffle=True)
    images = fn.decoders.image(contents)
    return _view(images, size, s, blur, window), _view(images, size, s, blur, window)


def build(
    images: list[Any], size: int, s: float, blur: float, window: int, threads: int, gpu: int | None = None
) -> Any:
    """Of arrays on the CPU, or of tensors on GPU number `gpu`.

    Nothing is made ahead: it would be made while others are timed.
    """
    options = {"batch_size": len(images), "num_threads": threads, "device_id": gpu, "seed": 0}
    on_gpu = gpu is not None
    pipeline = _of_pixels(images, on_gpu, size, s, blur, window, exec_async=False, exec_pipelined=False, **options)
    pipeline.build()
    return pipeline


def build_from_files(folder: str, batch_size: int, size: int, s: float, blur: float, window: int, threads: int) -> Any:
    """Of the JPEG files in the folders of `folder`, decoded on the CPU."""
    options = {"batch_size": batch_size, "num_threads": threads, "device_id": None, "seed": 0}
    pipeline = _of_files(folder, size, s, blur, window, exec_async=False, exec_pipelined=False, **options)
    pipeline.build()
    return pipeline
