"""A small data set in memory: bright and dark pictures, so that classes are learnable and labels can be checked."""

from typing import Any

import numpy as np
import pytest


class Pictures:
    """Bright (class 1) and dark (class 0) noise, uint8 [N, H, W, C]."""

    channels = 3
    classes = ("dark", "bright")
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, num: int = 40, size: int = 12, seed: int = 0, broken: tuple[int, ...] = ()) -> None:
        generator = np.random.default_rng(seed)
        self.labels: Any = generator.integers(2, size=num)
        pixels = generator.integers(0, 120, size=(num, size, size, 3)) + 120 * self.labels[:, None, None, None]
        self.arrays: Any = None if broken else pixels.astype(np.uint8)
        self.names: Any = [f"picture{i}.png" for i in range(num)]
        self._pixels, self._broken = pixels.astype(np.uint8), broken

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, i: int) -> Any:
        if i in self._broken:
            raise OSError(f"picture{i}.png: truncated")
        return self._pixels[i]

    def fingerprint(self) -> str:
        return f"pictures-{len(self)}"


@pytest.fixture
def pictures() -> type[Pictures]:
    return Pictures
