"""`pytest benchmarks`: sizes that take minutes, or with --full those of the committed results."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the sizes of the scripts in benchmarks/ops")
