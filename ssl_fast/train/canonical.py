"""One text for the same values: JSON that every reader takes, and configs compared and hashed leaf by leaf."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

_ABSENT = "absent"


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become null; 0-dim tensors and NumPy numbers become numbers.

    Raises:
        ValueError: the value holds something that JSON has no word for.
    """
    return json.dumps(_simple(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _simple(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _simple(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_simple(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return _simple(value.item())
    raise ValueError(f"{value!r} is a {type(value).__name__}, expected numbers, strings, lists and dicts")


def hash_of(value: Any) -> str:
    """SHA-256 of plain values; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> JSON text of each leaf."""
    if not isinstance(config, dict) or not config:
        return {prefix: json.dumps(config)}
    leaves: dict[str, str] = {}
    for key, item in config.items():
        leaves.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return leaves


def kept(leaves: dict[str, str], ignore: Sequence[str]) -> dict[str, str]:
    """The leaves without those named in ``ignore``, or below a key named there."""
    return {
        key: text
        for key, text in leaves.items()
        if not any(key == name or key.startswith(f"{name}.") for name in ignore)
    }


def differences(old: dict[str, str], new: dict[str, str], limit: int = 10) -> str:
    """The keys that differ; an empty string when none does.

    Example:
        >>> differences({"epochs": "10", "seed": "0"}, {"epochs": "20", "seed": "0", "lr": "0.3"})
        'epochs: 10 -> 20, lr: absent -> 0.3'
    """
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = [f"{key}: {old.get(key, _ABSENT)} -> {new.get(key, _ABSENT)}" for key in changed[:limit]]
    if len(changed) > limit:
        shown.append(f"and {len(changed) - limit} more")
    return ", ".join(shown)
