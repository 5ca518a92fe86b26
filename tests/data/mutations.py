"""Random damage to good JPEG, PNG and WEBP files: what the decoder does with it, and our C++ code with what it decodes.

As a script (`python -m tests.data.mutations NUM MODULE`) it loads the C++ module from the path MODULE, built with
AddressSanitizer, and makes views of every mutation that decodes, and of images of odd sizes. NUM = 0 is the control: it
has the code read past the end of an image, which must not go unseen.
"""

import importlib.util
import io
import sys
import time
from collections import Counter

import numpy as np
from PIL import Image

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.decode import Limits, decode

LIMITS = Limits(max_bytes=1 << 20, max_pixels=1 << 20)
KINDS = ("JPEG", "PNG", "WEBP")
LONGEST = 2.0  # seconds that a file of some kilobytes may take


def good_files(random):
    """(kind, content) of small pictures: RGB, grey, progressive, palette, lossless, with alpha."""
    pixels = np.kron(random.integers(0, 256, (6, 7, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
    picture = Image.fromarray(pixels)
    for kind, image, options in (
        ("JPEG", picture, {}),
        ("JPEG", picture, {"progressive": True, "quality": 95}),
        ("JPEG", picture.convert("L"), {}),
        ("JPEG", picture.convert("CMYK"), {}),
        ("PNG", picture, {}),
        ("PNG", picture.quantize(16), {}),
        ("PNG", picture.convert("LA"), {}),
        ("PNG", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
        ("WEBP", picture, {}),
        ("WEBP", picture.convert("RGBA"), {"lossless": True}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield kind, file.getvalue()


def mutations(num, seed):
    """`num` of (kind, damage, content): cut short, bits flipped, bytes lost, put in, or copied over others."""
    random = np.random.default_rng(seed)
    files = list(good_files(random))
    for i in range(num):
        kind, content = files[i % len(files)]
        damage = ("cut", "flipped", "lost", "inserted", "copied")[i // len(files) % 5]
        data = np.frombuffer(content, dtype=np.uint8).copy()
        first, second = np.sort(random.integers(0, len(data), 2))
        if damage == "flipped":
            data[random.integers(0, len(data), 8)] ^= 1 << random.integers(0, 8, 8, dtype=np.uint8)
        elif damage == "copied":
            span = min(second - first + 1, 64)
            data[first : first + span] = data[len(data) - span :]
        pieces = {
            "cut": [data[:first]],
            "lost": [data[:first], data[min(first + 16, second) :]],
            "inserted": [data[:first], random.integers(0, 256, 16, dtype=np.uint8), data[first:]],
        }
        yield kind, damage, b"".join(piece.tobytes() for piece in pieces.get(damage, [data]))


def fuzz(num, seed, use=lambda pixels: None):
    """Counts of (kind, damage, whether it decodes); every picture is as its header says, every refusal has a reason."""
    verdicts = Counter()
    for kind, damage, content in mutations(num, seed):
        began = time.perf_counter()
        try:
            pixels = decode(content, 3, LIMITS)
            assert pixels.ndim == 3 and pixels.shape[2] == 3 and 0 < pixels.size <= 3 * LIMITS.max_pixels
            use(pixels)
        except UnreadableError as refusal:
            assert str(refusal) and "\n" not in str(refusal)
            pixels = None
        verdicts[kind, damage, pixels is not None] += 1
        assert time.perf_counter() - began < LONGEST, (kind, damage)
    return verdicts


def load(path):
    """Puts the module at `path` in the place of `ssl_fast._cpu`."""
    spec = importlib.util.spec_from_file_location("ssl_fast._cpu", path)
    sys.modules["ssl_fast._cpu"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def read_past_the_end():
    from ssl_fast.data import engine_fused
    from ssl_fast.data.views import View, draw

    extents_of = engine_fused.extents_of
    engine_fused.extents_of = lambda images: extents_of(images) * 8
    view = View(size=32, crop_scale=(1.0, 1.0))
    engine_fused.FusedEngine([view], 3)([np.zeros((8, 8, 3), np.uint8)], draw([view], 0, 0, [0], [[64, 64]]))


def main():
    num, path = int(sys.argv[1]), sys.argv[2]
    load(path)
    if num == 0:
        read_past_the_end()
        return
    from ssl_fast.data.augment import augment
    from ssl_fast.data.views import View

    colour = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "jitter": 0.8, "grayscale": 0.2}
    views = [
        View("odd", size=31, blur=0.5, solarize=0.2, interpolation="bicubic", **colour),
        View("one", size=1, crop_scale=(0.01, 1.0), **colour),
        View("large", size=65, blur=1.0, blur_sigma=(0.1, 9.0), **colour),
    ]
    seen = 0

    def use(pixels):
        nonlocal seen
        seen += 1
        for out in augment([pixels], views, key=(0, seen, [seen])):
            assert out.isfinite().all()

    print(dict(fuzz(num, 1, use)))
    random = np.random.default_rng(0)
    plain = [View("plain", size=size, blur=1.0, mean=(0.5,), std=(0.5,)) for size in (1, 2, 3, 17, 64)]
    for height, width in [(1, 1), (1, 500), (500, 1), (2, 3), (5000, 2), (7, 63), (64, 64), (65, 127)]:
        for channels in (1, 2, 3, 5):
            pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
            augment([pixels], plain, key=(0, 0, [0]))
            augment(np.stack([pixels] * 3), plain, key=(0, 1, range(3)))
    print("views made of", seen, "mutations")


if __name__ == "__main__":
    main()
