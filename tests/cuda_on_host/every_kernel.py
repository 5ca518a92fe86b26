"""Every CUDA kernel once on the host, for the sanitizers: python -m tests.cuda_on_host.every_kernel MODULE"""

import sys
from pathlib import Path

import torch

from tests import every_kernel
from tests.cuda_on_host.use import loaded, on_host


def main() -> None:
    count = 0
    with on_host(loaded(Path(sys.argv[1]))):
        calls = every_kernel.Calls("cuda")
        for dtype in every_kernel.DTYPES:
            found = list(every_kernel.steps("cpu", dtype, "cuda"))
            found += every_kernel.views("cpu", dtype, "cuda") if dtype != torch.float64 else []
            assert all(x.isfinite().all() for x in found), dtype
            count += len(found)
    assert not calls.missing, f"not called: {', '.join(sorted(calls.missing))}"
    print(f"{count} tensors, all finite")


if __name__ == "__main__":
    main()
