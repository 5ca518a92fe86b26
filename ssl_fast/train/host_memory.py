"""The memory of a training on a CPU: what a step frees is there for the next one, without asking the system again."""

import ctypes

# Of mallopt, in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Makes the C library keep what is freed, in blocks of up to a GiB, until the process ends.

    By default it gives activations back to the system after every step, and each of their pages is faulted in again:
    a step of a small ResNet takes a seventh longer (benchmarks/NOTES.md). The process then holds its highest need.

    Returns:
        Whether the C library has these settings; glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none that can be asked
        return False
    return bool(mallopt(MMAP_THRESHOLD, 2**30)) and bool(mallopt(TRIM_THRESHOLD, 2**31 - 1))
