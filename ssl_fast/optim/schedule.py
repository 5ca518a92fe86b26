"""Learning rate and momentum as pure functions of the step: nothing to save, nothing to restore."""

import math

REFERENCE_BATCH = 256


def warmup_cosine(step: int, total: int, warmup: int, base: float, final: float = 0.0) -> float:
    """Learning rate of one step: a linear warm-up, then half a cosine without restarts.

    With w = ``warmup`` and T = ``total``:

        step < w:   base * (step + 1) / (w + 1)
        otherwise:  final + (base - final) * (1 + cos(pi * (step - w) / (T - w))) / 2

    The first step already moves (no step is spent at a rate of zero) and ``base`` is reached at step w.

    Args:
        step: index of the optimiser step, 0 to ``total``.
        total: number of optimiser steps of the run.
        warmup: number of warm-up steps, 0 to ``total``.
        base: the highest rate.
        final: the rate that the cosine ends at.

    Raises:
        ValueError: step or warmup lies outside 0..total.

    Example:
        >>> [round(warmup_cosine(step, 4, 2, 3.0), 3) for step in range(5)]
        [1.0, 2.0, 3.0, 1.5, 0.0]

    Reference: Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5 (cosine); Goyal et al. 2017, arXiv:1706.02677,
    section 2.2 (warm-up); Chen et al. 2020, arXiv:2002.05709, section 2.2 (both, for contrastive learning).
    """
    if total < 1 or not 0 <= step <= total:
        raise ValueError(f"step must lie in 0..total with total at least 1, got step {step} of {total}")
    if not 0 <= warmup <= total:
        raise ValueError(f"warmup must lie in 0..{total} (the number of steps), got {warmup}")
    if step < warmup:
        return base * (step + 1) / (warmup + 1)
    if warmup == total:
        return base
    return final + (base - final) * _half_cosine((step - warmup) / (total - warmup))


def cosine_momentum(progress: float, base: float) -> float:
    """Momentum of an EMA teacher, rising from ``base`` to 1.

        1 - (1 - base) * (cos(pi * progress) + 1) / 2

    Args:
        progress: share of the run's steps that are done, 0 to 1.
        base: momentum of the first step, 0 to 1.

    Raises:
        ValueError: progress or base lies outside 0..1.

    Example:
        >>> [round(cosine_momentum(progress, 0.99), 4) for progress in (0.0, 0.5, 1.0)]
        [0.99, 0.995, 1.0]

    Reference: Grill et al. 2020, arXiv:2006.07733, section 3.2.
    """
    if not (0.0 <= base <= 1.0 and 0.0 <= progress <= 1.0):
        raise ValueError(f"progress and base must lie in 0..1, got {progress} and {base}")
    return 1.0 - (1.0 - base) * _half_cosine(progress)


def scaled_lr(base: float, batch_size: int, rule: str = "linear") -> float:
    """Learning rate for a batch size, from one that was tuned for 256 samples.

        linear: base * N / 256        sqrt: base * sqrt(N / 256)        none: base

    SimCLR's two recipes are ``scaled_lr(0.3, N, "linear")`` and ``scaled_lr(1.2, N, "sqrt")``; the latter is the
    paper's 0.075 * sqrt(N). Both give 4.8 at 4,096.

    Args:
        base: the rate at 256 samples.
        batch_size: N, the global batch in samples (images, not views).
        rule: ``linear``, ``sqrt`` or ``none``.

    Raises:
        ValueError: batch_size is not positive, or the rule has another name.

    Example:
        >>> scaled_lr(0.3, 4096), round(scaled_lr(1.2, 4096, "sqrt"), 6)
        (4.8, 4.8)

    Reference: Goyal et al. 2017, arXiv:1706.02677, section 2.1; Chen et al. 2020, arXiv:2002.05709, section 2.2 and
    appendix B.1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    ratio = batch_size / REFERENCE_BATCH
    factors = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}
    if rule not in factors:
        raise ValueError(f"rule must be one of {', '.join(factors)}, got {rule!r}")
    return base * factors[rule]


def _half_cosine(fraction: float) -> float:
    return (1.0 + math.cos(math.pi * fraction)) / 2.0
