# mypy: ignore-errors
"""Device code shared by the Triton kernels: rounding, norms, similarity tiles, and the normalisation of rows.

Shapes: N rows of D numbers, stored as z [padded N, PLANES * CHUNKS * BLOCK_D] with zeros in the padding, so that tile
loads need no mask. Numbers are kept as the sum of PLANES bfloat16 numbers (two hold the 11 bits of fp16, three the 24
of fp32), so that every product is a bfloat16 product of the tensor cores, with the range of fp32:
a b = a0 b0 + (a1 b0 + a0 b1) + (a2 b0 + a1 b1 + a0 b2).
UPCAST is set in the interpreter only: its bfloat16 dot product and rounding are wrong.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)  # a finite stand-in for minus infinity: differences of two stay defined


@triton.jit
def round_bf16(x, UPCAST: tl.constexpr):
    """Cast fp32 to bfloat16, to nearest even (the interpreter's own cast truncates)."""
    if UPCAST:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x.to(tl.bfloat16)


@triton.jit
def dot(a, b, acc, UPCAST: tl.constexpr):
    """acc + a @ b with fp32 accumulation."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def dot_planes(a0, a1, a2, b0, b1, b2, acc, A_PLANES: tl.constexpr, B_PLANES: tl.constexpr, UPCAST: tl.constexpr):
    """acc + (a0 + a1 + a2) @ (b0 + b1 + b2), small terms first, those below the last plane left out."""
    if A_PLANES == 3:
        acc = dot(a2, b0, acc, UPCAST)
        if B_PLANES == 3:
            acc = dot(a1, b1, acc, UPCAST)
    if B_PLANES == 3:
        acc = dot(a0, b2, acc, UPCAST)
    if A_PLANES >= 2:
        acc = dot(a1, b0, acc, UPCAST)
    if B_PLANES >= 2:
        acc = dot(a0, b1, acc, UPCAST)
    return dot(a0, b0, acc, UPCAST)


@triton.jit
def split(x, PLANES: tl.constexpr, UPCAST: tl.constexpr):
    """fp32 x as a sum of PLANES bfloat16 numbers; planes not asked for repeat the last one and are not read."""
    x0 = round_bf16(x, UPCAST)
    x1 = x0
    x2 = x0
    if PLANES >= 2:
        rest = x - x0.to(tl.float32)
        x1 = round_bf16(rest, UPCAST)
        if PLANES == 3:
            x2 = round_bf16(rest - x1.to(tl.float32), UPCAST)
    return x0, x1, x2


@triton.jit
def softplus(x):
    """log(1 + e^x), relatively exact where it is tiny: log1p(u) = 2 atanh(u / (2 + u)), a series for u <= 1."""
    u = tl.exp2(-tl.abs(x) * LOG2E)
    t = u / (2.0 + u)
    t2 = t * t
    series = 1.0 / 11.0 + t2 * (1.0 / 13.0 + t2 / 15.0)
    series = 1.0 / 5.0 + t2 * (1.0 / 7.0 + t2 * (1.0 / 9.0 + t2 * series))
    return tl.maximum(x, 0.0) + 2.0 * t * (1.0 + t2 * (1.0 / 3.0 + t2 * series))


@triton.jit
def load_scalar(value, IS_TENSOR: tl.constexpr):
    """A number given by the host, or read from device memory."""
    if IS_TENSOR:
        return tl.load(value).to(tl.float32)
    else:
        return value


@triton.jit
def load_tile(z, start, column, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """z[start : start + ROWS, column : column + BLOCK_D], from a buffer padded far enough to need no mask."""
    base = z + tl.cast(start, tl.int64) * WIDTH + column
    return tl.load(base + tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, BLOCK_D)[None, :])


@triton.jit
def load_planes(z, start, chunk, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, CHUNKS: tl.constexpr, PLANES: tl.constexpr):
    """The planes of one chunk of ROWS rows, each [ROWS, BLOCK_D]; planes that do not exist repeat the last one."""
    plane: tl.constexpr = BLOCK_D * CHUNKS
    x0 = load_tile(z, start, chunk * BLOCK_D, PLANES * plane, ROWS, BLOCK_D)
    x1 = x0
    x2 = x0
    if PLANES >= 2:
        x1 = load_tile(z, start, plane + chunk * BLOCK_D, PLANES * plane, ROWS, BLOCK_D)
    if PLANES == 3:
        x2 = load_tile(z, start, 2 * plane + chunk * BLOCK_D, PLANES * plane, ROWS, BLOCK_D)
    return x0, x1, x2


@triton.jit
def load_unit_rows(x, rows, valid, D: tl.constexpr, BLOCK_D: tl.constexpr, EPS: tl.constexpr, NORMALIZE: tl.constexpr):
    """Rows of x [*, D] divided by their norm, in fp32, with the norms (clamped at EPS; 1 without NORMALIZE)."""
    columns = tl.arange(0, BLOCK_D)
    pointers = x + rows.to(tl.int64)[:, None] * D + columns[None, :]
    z = tl.load(pointers, mask=valid[:, None] & (columns < D)[None, :], other=0.0).to(tl.float32)
    norm = tl.full([z.shape[0]], 1.0, tl.float32)
    if NORMALIZE:
        norm = tl.maximum(tl.sqrt(tl.sum(z * z, 1)), EPS)
        z = z / norm[:, None]
    return z, norm


@triton.jit
def normalize_backward(dz, z, norm, EPS: tl.constexpr, NORMALIZE: tl.constexpr):
    """(dx, <z, dz>) for z = x / |x|; a clamped norm is a constant, so its rows are not projected."""
    zdz = tl.sum(z * dz, 1)
    if NORMALIZE:
        along = tl.where(norm > EPS, zdz, 0.0)
        dz = (dz - z * along[:, None]) / norm[:, None]
    return dz, zdz


@triton.jit
def normalize_kernel(
    x,  # [N, D] raw embeddings
    positive,  # [N] int64: the row of each row's positive; only WITH_COSINE
    z,  # [padded N, PLANES * WIDTH] bf16 out: unit rows, zeros in the padding
    cosine,  # [N] fp32 out: <z_i, z_positive(i)>; only WITH_COSINE
    N,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PLANES: tl.constexpr,
    EPS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    WITH_COSINE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Unit rows and the cosine of each row with its positive, statistics in fp32."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = rows < N
    unit, _ = load_unit_rows(x, rows, valid, D, BLOCK_D, EPS, NORMALIZE)
    columns = tl.arange(0, BLOCK_D)
    pointers = z + rows.to(tl.int64)[:, None] * (PLANES * WIDTH) + columns[None, :]
    plane0, plane1, plane2 = split(unit, PLANES, UPCAST)
    tl.store(pointers, plane0, mask=(columns < WIDTH)[None, :])
    if PLANES >= 2:
        tl.store(pointers + WIDTH, plane1, mask=(columns < WIDTH)[None, :])
    if PLANES == 3:
        tl.store(pointers + 2 * WIDTH, plane2, mask=(columns < WIDTH)[None, :])
    if WITH_COSINE:
        partners = tl.load(positive + rows, mask=valid, other=0)
        other, _ = load_unit_rows(x, partners, valid, D, BLOCK_D, EPS, NORMALIZE)
        tl.store(cosine + rows, tl.sum(unit * other, 1), mask=valid)
