"""The tiles, one row per (kernel, planes, width of the embedding): block_m, block_n, warps, stages per architecture.

Chosen as the largest tile of each row that compiles without register spills within the shared memory of its
architecture (Triton 3.9); no speed was measured. tests/ops/triton/test_compile.py compiles them all.
"""

# Shared memory one CTA may take, bytes. "sm86" stands for every part with less than 163 KB (8.6, 8.9, 12.x).
SHARED_MEMORY = {"sm80": 163 * 1024, "sm86": 99 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024}

INTERPRETER = (64, 32, 4, 1)

# fmt: off
# "one" or "several" bfloat16 planes; "chunked": the embedding is walked in chunks of 128.
TABLE: dict[tuple[str, str, int | str], tuple[tuple[int, int, int, int], ...]] = {
    # (kernel, planes, width)          sm80               sm86               sm90               sm100
    ("triangle", "one", 64): ((64, 128, 8, 4), (64, 128, 8, 4), (64, 128, 8, 4), (64, 128, 8, 4)),
    ("triangle", "one", 128): ((64, 128, 8, 4), (64, 128, 8, 4), (64, 128, 8, 4), (64, 128, 8, 4)),
    ("triangle", "one", 256): ((64, 128, 8, 4), (64, 128, 8, 2), (64, 128, 8, 4), (64, 128, 8, 4)),
    ("triangle", "one", "chunked"): ((64, 128, 8, 4), (64, 128, 8, 3), (64, 128, 8, 4), (64, 128, 8, 4)),
    ("triangle", "several", 64): ((64, 32, 4, 3), (64, 32, 4, 3), (128, 64, 8, 3), (128, 64, 8, 3)),
    ("triangle", "several", 128): ((32, 64, 8, 2), (32, 64, 8, 2), (64, 32, 4, 3), (64, 64, 8, 1)),
    ("triangle", "several", "chunked"): ((32, 64, 8, 2), (32, 64, 8, 2), (64, 64, 8, 2), (64, 32, 4, 3)),
    ("row_sum", "one", 64): ((128, 128, 8, 3), (128, 128, 8, 3), (128, 128, 8, 3), (128, 128, 8, 3)),
    ("row_sum", "one", 128): ((128, 128, 8, 3), (128, 128, 8, 3), (128, 128, 8, 3), (128, 128, 8, 3)),
    ("row_sum", "one", 256): ((128, 128, 8, 2), (128, 64, 8, 2), (128, 128, 8, 2), (128, 128, 8, 2)),
    ("row_sum", "one", "chunked"): ((128, 128, 8, 3), (128, 128, 8, 2), (128, 128, 8, 3), (128, 128, 8, 3)),
    ("row_sum", "several", 64): ((128, 64, 8, 2), (64, 64, 8, 2), (128, 128, 8, 3), (128, 128, 8, 3)),
    ("row_sum", "several", 128): ((64, 32, 4, 2), (64, 32, 4, 2), (128, 64, 8, 2), (128, 64, 8, 2)),
    ("row_sum", "several", "chunked"): ((64, 32, 4, 2), (64, 32, 4, 2), (64, 64, 8, 2), (64, 64, 4, 2)),
    ("backward", "one", 64): ((128, 128, 8, 3), (128, 128, 8, 3), (128, 128, 8, 3), (128, 128, 8, 3)),
    ("backward", "one", 128): ((128, 64, 8, 3), (128, 64, 8, 3), (128, 128, 8, 3), (128, 128, 8, 3)),
    ("backward", "one", 256): ((64, 128, 8, 2), (64, 64, 4, 2), (128, 64, 8, 3), (64, 128, 8, 2)),
    ("backward", "one", "chunked"): ((128, 64, 8, 3), (128, 64, 8, 3), (128, 64, 8, 3), (128, 64, 8, 3)),
    ("backward", "several", 64): ((64, 32, 4, 2), (64, 32, 4, 2), (128, 64, 8, 3), (128, 64, 8, 3)),
    ("backward", "several", 128): ((32, 16, 4, 2), (32, 16, 4, 2), (128, 64, 8, 2), (128, 64, 8, 2)),
    ("backward", "several", "chunked"): ((32, 16, 4, 2), (32, 16, 4, 2), (64, 64, 8, 2), (64, 64, 8, 2)),
    ("queue", "one", 64): ((128, 128, 8, 3), (128, 128, 8, 3), (128, 128, 8, 3), (128, 128, 8, 3)),
    ("queue", "one", 128): ((128, 128, 8, 3), (128, 128, 8, 2), (128, 128, 8, 3), (128, 128, 8, 3)),
    ("queue", "one", 256): ((128, 64, 8, 3), (64, 64, 4, 2), (128, 64, 8, 3), (64, 128, 8, 2)),
    ("queue", "one", "chunked"): ((128, 64, 8, 3), (128, 64, 8, 3), (128, 128, 8, 3), (128, 128, 8, 3)),
    ("queue", "several", 64): ((64, 32, 4, 2), (64, 32, 4, 2), (128, 128, 8, 3), (128, 128, 8, 3)),
    ("queue", "several", 128): ((32, 16, 4, 2), (64, 32, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2)),
    ("queue", "several", "chunked"): ((32, 16, 4, 2), (32, 16, 4, 2), (64, 64, 8, 2), (64, 64, 8, 2)),
}
# fmt: on
