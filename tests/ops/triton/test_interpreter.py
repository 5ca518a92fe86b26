"""Runs the tests of interpreted/ in a process of their own: a kernel is interpreted or compiled for a whole process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("when", ["not nightly", pytest.param("nightly", marks=pytest.mark.nightly)])
def test_interpreted(when: str) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "pytest", str(FOLDER), "-m", when, "-p", "no:cacheprovider", "--tb=short"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FOLDER.parents[3])
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and " skipped" not in run.stdout, run.stdout[-2000:]
