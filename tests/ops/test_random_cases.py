"""Random small cases of every op: 10,000 every night, and the first of them in each run of the tests."""

import pytest

from tests.ops.random_cases import failures


def assert_none(found: list[str]) -> None:
    assert not found, f"{len(found)} cases; each alone: python -m tests.ops.random_cases SEED\n" + "\n".join(found[:20])


def test_two_hundred_cases() -> None:
    assert_none(failures(range(200)))


@pytest.mark.nightly
@pytest.mark.parametrize("thousand", range(10))
def test_ten_thousand_cases(thousand: int) -> None:
    assert_none(failures(range(1000 * thousand, 1000 * (thousand + 1))))
