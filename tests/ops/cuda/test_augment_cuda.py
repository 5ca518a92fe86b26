"""The CUDA kernels of augmented views: what the compiler makes of them. What they compute: tests/data."""

from pathlib import Path

import pytest

from tests.ops.cuda.test_optimizer_steps_cuda import assert_in_registers, compiled

KERNELS = {"weigh_kernel": 1, "resize_kernel": 2, "finish_kernel": 6}


def test_views_keep_everything_in_registers(tmp_path: Path) -> None:
    """Where they need the most."""
    assert_in_registers(compiled("augment", tmp_path, ("80",)), KERNELS, 1)


@pytest.mark.nightly
def test_views_keep_everything_in_registers_on_every_architecture(tmp_path: Path) -> None:
    assert_in_registers(compiled("augment", tmp_path, ("80", "90a", "100")), KERNELS, 3)
