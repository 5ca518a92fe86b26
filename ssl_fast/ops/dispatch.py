"""Which implementation of an op runs: ask for one, or let `auto` take the fastest that is usable.

An implementation is a module `ssl_fast.ops.<impl>.<op>`, imported on first use. Its `unavailable(*tensors)` says why it
cannot take these tensors, or None.
"""

from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

# The implementations of each op, in the order in which `auto` tries those of the tensors' device.
OPS = {
    "nt_xent": ("triton", "cpp", "reference"),
    "supcon": ("triton", "cpp", "reference"),
    "dcl": ("triton", "cpp", "reference"),
    "info_nce": ("triton", "cpp", "reference"),
    "byol": ("triton", "cpp", "reference"),
    "vicreg": ("cpp", "reference"),
    "barlow_twins": ("cpp", "reference"),
    "knn_topk": ("cpp", "reference"),
    "prototypes": ("triton", "cpp", "reference"),
    "prototype_logits": ("triton", "cpp", "reference"),
    "koleo": ("cpp", "reference"),
    "sinkhorn": ("triton", "cpp", "reference"),
    "margin_softmax": ("triton", "cpp", "reference"),
    "clip_loss": ("triton", "cpp", "reference"),
    "siglip_loss": ("triton", "cpp", "reference"),
    "multi_tensor": ("cuda", "cpp", "reference"),
    "gradients": ("cuda", "cpp", "reference"),
    "sam": ("cuda", "cpp", "reference"),
    "lamb": ("cuda", "cpp", "reference"),
}
_MODULES = {"supcon": "nt_xent", "dcl": "nt_xent"}  # ops that run on the kernels of another
_DEVICES = {"cuda": ("cuda",), "triton": ("cuda",), "cpp": ("cpu",)}
_taken: dict[str, str] = {}


@cache
def _load(op: str, impl: str) -> ModuleType | str:
    """The implementation's module, or why it cannot be imported."""
    name = f"ssl_fast.ops.{impl}.{_MODULES.get(op, op)}"
    try:
        return import_module(name)
    except ImportError as error:
        return f"{name} cannot be imported ({error})"


def _usable(op: str, impl: str, tensors: tuple[Tensor, ...]) -> ModuleType | str:
    """The implementation's module, or why it cannot take these tensors."""
    module = _load(op, impl)
    if isinstance(module, str):
        return module
    reason: str | None = module.unavailable(*tensors)
    return module if reason is None else reason


def choose(op: str, impl: str, *tensors: Tensor) -> ModuleType:
    """The module that runs `op` on these tensors.

    Args:
        op: the op's name, "nt_xent".
        impl: "auto", or one implementation by name.
        tensors: what the op is called with; the first one's device decides what `auto` tries.

    Raises:
        ValueError: there is no implementation of that name.
        RuntimeError: the implementation asked for is not usable here; the message says why.
    """
    if impl == "auto":
        # is_cpu is quicker than the name of a device
        for name in _candidates(op, "cpu" if not tensors or tensors[0].is_cpu else tensors[0].device.type):
            module = _load(op, name)
            if not isinstance(module, str) and module.unavailable(*tensors) is None:
                _taken[op] = name
                return module
    check_impl(op, impl)
    found = _usable(op, impl, tensors)
    if isinstance(found, str):
        raise RuntimeError(f"impl={impl!r} of {op} is not available: {found}")
    _taken[op] = impl
    return found


@cache
def _candidates(op: str, device: str) -> tuple[str, ...]:
    """What `auto` tries for tensors of this device. The reference is plain torch: it runs anywhere."""
    return tuple(impl for impl in OPS[op] if device in _DEVICES.get(impl, (device,)))


def check_impl(op: str, impl: str) -> None:
    """Raises ValueError unless `impl` is "auto" or the name of an implementation of this op."""
    if impl != "auto" and impl not in OPS[op]:
        raise ValueError(f"impl of {op} must be 'auto' or one of {', '.join(OPS[op])}, got {impl!r}")


def backends() -> dict[str, dict[str, str]]:
    """Per op: "available" or the reason why not for every implementation, and under "taken" the one that ran last.

    Example:
        >>> from ssl_fast import backends
        >>> backends()["nt_xent"]["reference"]
        'available'
    """
    table = {}
    for op, implementations in OPS.items():
        found = {impl: _usable(op, impl, ()) for impl in implementations}
        table[op] = {impl: reason if isinstance(reason, str) else "available" for impl, reason in found.items()}
        table[op]["taken"] = _taken.get(op, "none yet")
    return table
