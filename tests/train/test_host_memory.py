"""What a training frees it takes again: no page is faulted in twice."""

import os
import subprocess
import sys

import pytest

from ssl_fast.train import host_memory

STEPS = """
import resource, runpy, sys
if sys.argv[2] == "kept":
    runpy.run_path(sys.argv[1])["keep_freed_memory"]()
def step():
    layers = [b"1" * 12_000_000 for _ in range(8)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
before = faults()
step()
print(faults() - before)
"""


def page_faults(how: str) -> int:
    """Of a step that makes and drops eight blocks of 12 MB, once the heap has grown to what it needs."""
    # glibc's own settings, without its adjusting them to what it sees.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", STEPS, host_memory.__file__, how]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=env)
    return int(run.stdout)


def test_a_step_faults_no_page_in_again() -> None:
    if not host_memory.keep_freed_memory():
        pytest.skip("this C library has no mallopt")
    assert page_faults("kept") < 500 < page_faults("by default")
