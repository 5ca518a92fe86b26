# mypy: ignore-errors
"""Device code of prototype_logits and prototypes: whole rows of logits, one program each, in a fixed order."""

import triton
import triton.language as tl

from .blocks import LOG2E, LOWEST


@triton.jit
def load_logits(x, row, columns, K, inv_temperature):
    """logits / temperature of one row, [BLOCK] fp32; LOWEST outside."""
    found = tl.load(x + row.to(tl.int64) * K + columns, mask=columns < K, other=0.0).to(tl.float32)
    return tl.where(columns < K, found * inv_temperature, LOWEST)


@triton.jit
def normaliser_kernel(
    x,  # [V, N, K] logits
    bias,  # [V, K] fp32, only HAS_BIAS
    largest,  # [V, N] fp32 out: the highest x_k / temperature + bias_k
    sums,  # [V, N] fp32 out: sum of the exponentials relative to it
    N,
    K,
    inv_temperature,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """A row's normaliser in two parts; every lane keeps a maximum and a sum of its own until the end."""
    row = tl.program_id(0)
    highest = tl.full([BLOCK], LOWEST, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        s = load_logits(x, row, columns, K, inv_temperature)
        if HAS_BIAS:
            s += tl.load(bias + (row // N) * K + columns, mask=columns < K, other=0.0)
        previous = highest
        highest = tl.maximum(highest, s)
        e = tl.where(columns < K, tl.exp2((s - highest) * LOG2E), 0.0)
        total = total * tl.exp2((previous - highest) * LOG2E) + e
    over_all = tl.max(highest, 0)
    tl.store(largest + row, over_all)
    tl.store(sums + row, tl.sum(total * tl.exp2((highest - over_all) * LOG2E), 0))


@triton.jit
def loss_kernel(
    student,  # [S, N, K] logits
    teacher,  # [T, N, K] logits
    bias,  # [T, K] fp32, only HAS_BIAS
    largest_student,  # [S, N] fp32, as from normaliser_kernel
    sums_student,  # [S, N] fp32
    largest_teacher,  # [T, N] fp32
    sums_teacher,  # [T, N] fp32
    coef,  # [N] fp32, only WITH_GRAD
    loss,  # [S, N] fp32 out
    gradient,  # [S, N, K] out, only WITH_GRAD: of sum_n coef_n loss_n
    N,
    K,
    inv_student,
    inv_teacher,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
    SKIP_SAME: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    """One row of one view of the student against all views of the teacher: its loss and g, the target never stored."""
    n, view = tl.program_id(0), tl.program_id(1)
    row = view * N + n
    highest = tl.load(largest_student + row)
    total = tl.load(sums_student + row)
    num_targets = T + 0.0
    if SKIP_SAME:
        num_targets = tl.where(view < T, T - 1.0, T + 0.0)
    if WITH_GRAD:
        factor = tl.load(coef + n) * inv_student
    cross = tl.zeros([BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        target = tl.zeros([BLOCK], tl.float32)
        for t in range(T):
            y = load_logits(teacher, t * N + n, columns, K, inv_teacher)
            if HAS_BIAS:
                y += tl.load(bias + t * K + columns, mask=columns < K, other=0.0)
            other = t * N + n
            # In two parts: the logarithm of a normaliser, rounded to fp32, would lose digits of every p.
            p = tl.exp2((y - tl.load(largest_teacher + other)) * LOG2E) / tl.load(sums_teacher + other)
            if SKIP_SAME:
                p = tl.where(t == view, 0.0, p)
            target += tl.where(columns < K, p, 0.0)
        s = load_logits(student, row, columns, K, inv_student) - highest
        cross += tl.where(columns < K, target * s, 0.0)
        if WITH_GRAD:
            g = factor * (num_targets * (tl.exp2(s * LOG2E) / total) - target)
            cells = gradient + row.to(tl.int64) * K + columns
            tl.store(cells, g.to(gradient.dtype.element_ty), mask=columns < K)
    tl.store(loss + row, num_targets * tl.log(total) - tl.sum(cross, 0))
