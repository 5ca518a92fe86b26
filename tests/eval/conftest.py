"""A small data set in memory: bright and dark pictures, so that classes are learnable and labels can be checked."""

from typing import Any

import numpy as np
import pytest

from ssl_fast.data.dataset import Dataset


class Pictures(Dataset):
    """Bright (class 1) and dark (class 0) noise, uint8 [N, H, W, C]."""

    channels = 3
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, num: int = 40, size: int = 12, seed: int = 0, broken: tuple[int, ...] = ()) -> None:
        self.classes = ["dark", "bright"]
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

    def fetch(self, index: Any) -> Any:
        good = np.array([i if i not in self._broken else (i + 1) % len(self) for i in index])
        return (self._pixels[good] if self.arrays is not None else [self._pixels[i] for i in good]), good

    def fingerprint(self) -> str:
        return f"pictures-{len(self)}"


@pytest.fixture
def pictures() -> type[Pictures]:
    return Pictures
