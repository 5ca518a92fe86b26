"""The interpreter puts its own functions into Triton's language anew at every call of a jitted helper: once will do.

By itself it spends a third of these tests' time on that, and takes them out again for code that is not interpreted, of
which this process has none.
"""

from types import SimpleNamespace
from typing import Any

from triton.runtime import interpreter

_patch = interpreter._patch_lang
_patched: set[str] = set()


def _patch_once(function: Any) -> SimpleNamespace:
    if function.__module__ not in _patched:
        _patch(function)
        _patched.add(function.__module__)
    return SimpleNamespace(restore=lambda: None)


interpreter._patch_lang = _patch_once
