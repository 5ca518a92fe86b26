"""Every op that has Triton kernels, as it is called, against its equation in float64 by the common rule."""

import pytest
import torch

from ssl_fast.ops.dispatch import OPS
from tests.ops.conftest import Checker
from tests.ops.triton.cases import CASES
from tests.ops.triton.literal import DTYPES

WITH_KERNELS = [name for name, case in CASES.items() if "triton" in OPS[case(False).op]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WITH_KERNELS)
def test_value_and_gradients_by_the_rule(name: str, dtype: torch.dtype) -> None:
    errors = CASES[name](False).check(Checker(), dtype, "cpu", "triton")
    assert errors.norm[0] < 0.02


def test_every_op_with_kernels_has_a_case() -> None:
    assert {CASES[name](False).op for name in WITH_KERNELS} == {op for op, there in OPS.items() if "triton" in there}
