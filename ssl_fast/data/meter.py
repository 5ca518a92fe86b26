"""Where the loader's time goes, whether training waits for it, and what to do about that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

BOUND = 0.1  # share of a step that is spent waiting for data, from which on training is called data-bound
_PARTS = ("decode", "augment", "tokenize", "copy")


def describe(
    seconds: Mapping[str, float],  # "waited", and of _PARTS what is known
) -> str:
    """The split in words: "waited 1.2 s for data (decode 62%, augment 38%)"."""
    known = {part: seconds[part] for part in _PARTS if seconds.get(part, 0.0) > 0}
    whole = sum(known.values())
    split = ", ".join(f"{part} {spent / whole:.0%}" for part, spent in known.items())
    return f"waited {seconds.get('waited', 0.0):.1f} s for data" + (f" ({split})" if split else "")


def verdict(share: float, remedies: list[str]) -> str:
    """ "data-bound: 31% of the step; try data.workers=8 or data.engine=fused"; "" when data are no hindrance."""
    if share < BOUND:
        return ""
    advice = f"try {' or '.join(remedies)}" if remedies else "all cores are at work: try more of them, or smaller views"
    return f"data-bound: {share:.0%} of the step; {advice}"


def remedies(loader: Any, seconds: Mapping[str, float]) -> list[str]:
    """Settings that would make this loader faster, the most effective first.

    Args:
        loader: a `Loader`.
        seconds: what it spent since the last time, by part.
    """
    from ssl_fast.data import engine_fused

    found = []
    if loader.engine == "torchvision" and engine_fused.unavailable() is None:
        found.append("data.engine=fused")
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if loader.engine != "dali" and 0 <= loader.workers < cores and loader.workers < len(loader):
        found.append(f"data.workers={cores}")
    if seconds.get("decode", 0.0) > seconds.get("augment", 0.0):
        found += [f"data.{name}=true" for name in loader.dataset.faster_decoding]
    return found
