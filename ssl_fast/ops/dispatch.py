"""Which implementation of an op runs: ask for one, or let `auto` take the fastest that is usable and say why not the others.

An implementation is a module `ssl_fast.ops.<impl>.<op>` with `unavailable(*tensors) -> str | None`. It is imported on first use.
"""

from functools import lru_cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

IMPLEMENTATIONS = ("triton", "cpp", "reference")
_OPS = ("nt_xent", "info_nce")
# What `auto` tries, in order. The reference is plain torch and always there.
_AUTO = {"cpu": ("cpp", "reference"), "cuda": ("triton", "reference")}
_taken: dict[str, str] = {}


@lru_cache(maxsize=None)
def _load(op: str, impl: str) -> ModuleType | str:
    """The implementation's module, or why it cannot be imported."""
    name = f"ssl_fast.ops.{impl}.{op}"
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
        for name in _AUTO.get(tensors[0].device.type, ("reference",)):
            found = _usable(op, name, tensors)
            if not isinstance(found, str):
                _taken[op] = name
                return found
    check_impl(impl)
    found = _usable(op, impl, tensors)
    if isinstance(found, str):
        raise RuntimeError(f"impl={impl!r} of {op} is not available: {found}")
    _taken[op] = impl
    return found


def check_impl(impl: str) -> None:
    """Raises ValueError unless `impl` is "auto" or the name of an implementation."""
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be 'auto' or one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")


def backends() -> dict[str, dict[str, str]]:
    """Per op: "available" or the reason why not for every implementation, and under "taken" the one that ran last.

    Example:
        >>> from ssl_fast import backends
        >>> backends()["nt_xent"]["reference"]
        'available'
    """
    table = {}
    for op in _OPS:
        found = {impl: _usable(op, impl, ()) for impl in IMPLEMENTATIONS}
        table[op] = {impl: reason if isinstance(reason, str) else "available" for impl, reason in found.items()}
        table[op]["taken"] = _taken.get(op, "none yet")
    return table
