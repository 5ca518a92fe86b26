"""Which kernels torch may take on a GPU: the fastest, or those that give the same bits in every run."""

import os

import torch


def choose_kernels(device: torch.device, deterministic: bool) -> None:
    """Settings of the process, for later trainings in it too, made before the first step.

    On a CPU there is nothing to choose: runs are equal there.

    Args:
        device: of the training.
        deterministic: take torch's deterministic kernels; it warns of an operation that has none. Otherwise cuDNN
            tries its convolutions out at the first steps and keeps the fastest, which may differ between two runs.
            Where the caller has told torch to be deterministic already, that stays.
    """
    if device.type != "cuda":
        return
    if deterministic and not torch.are_deterministic_algorithms_enabled():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to repeat itself
        torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn = torch.backends.cudnn
    cudnn.benchmark = not (torch.are_deterministic_algorithms_enabled() or cudnn.deterministic)
