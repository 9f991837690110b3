# mypy: ignore-errors
"""`quiet_channels` in Triton."""

import triton
import triton.language as tl

from stc_kernels.ops.select_dynamic.kernel import is_last_of_frame


@triton.jit(do_not_specialize=["rows"])
def channel_variance_kernel(
    p_tokens,  # [F, T, D]
    p_sums,  # [chunks, 2, D] float64, scratch
    p_counters,  # [blocks of channels] int32, zero before and after
    p_variance,  # [D] float32
    rows,
    tokens,
    channels,
    stride_f,
    stride_t,
    ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the biased variance of each channel over all rows, ∞ where it is not finite.

    (Σd² − (Σd)²/n) / n in float64 about the first row's value, d = z − z₀, so that a large mean
    cancels nothing. A program sums ROWS rows of BLOCK_C channels into scratch, in tiles
    [BLOCK_T, BLOCK_C]; the last for a block of channels adds the chunks up.
    """
    n_blocks = tl.cdiv(channels, BLOCK_C)
    block = tl.program_id(0) % n_blocks
    chunk = (tl.program_id(0) // n_blocks).to(tl.int64)
    sum_chunk(
        p_tokens,
        p_sums,
        block,
        chunk,
        rows,
        tokens,
        channels,
        stride_f,
        stride_t,
        ROWS,
        BLOCK_T,
        BLOCK_C,
    )
    chunks = tl.num_programs(0) // n_blocks
    if is_last_of_frame(p_counters, block, chunks):
        add_chunks(p_sums, p_variance, block, chunks, rows, channels, BLOCK_T, BLOCK_C)


@triton.jit
def sum_chunk(
    p_tokens,
    p_sums,
    block,
    chunk,
    rows,
    tokens,
    channels,
    stride_f,
    stride_t,
    ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write Σd and Σd² of a block of channels over a chunk of rows."""
    o_c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    first = chunk * ROWS
    b_origin = tl.load(p_tokens + o_c, mask=o_c < tl.where(rows > 0, channels, 0), other=0.0)
    b_origin = b_origin.to(tl.float64)
    b_sum = tl.zeros([BLOCK_T, BLOCK_C], tl.float64)
    b_square = tl.zeros([BLOCK_T, BLOCK_C], tl.float64)
    for start in range(0, ROWS, BLOCK_T):
        o_row = first + start + tl.arange(0, BLOCK_T)
        m = (o_row < rows)[:, None] & m_c[None, :]
        o_z = (o_row // tokens) * stride_f + (o_row % tokens) * stride_t
        b_z = tl.load(p_tokens + o_z[:, None] + o_c[None, :], mask=m, other=0.0).to(tl.float64)
        b_about = tl.where(m, b_z - b_origin[None, :], 0.0)
        b_sum += b_about
        b_square += b_about * b_about
    p_own = p_sums + chunk * 2 * channels + o_c
    tl.store(p_own, tl.sum(b_sum, 0), mask=m_c)
    tl.store(p_own + channels, tl.sum(b_square, 0), mask=m_c)


@triton.jit
def add_chunks(
    p_sums, p_variance, block, chunks, rows, channels, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write the variance of a block of channels from the sums over each chunk of rows."""
    o_c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    b_sums = tl.zeros([BLOCK_T, BLOCK_C], tl.float64)
    b_squares = tl.zeros([BLOCK_T, BLOCK_C], tl.float64)
    for start in range(0, chunks, BLOCK_T):
        o_chunk = start + tl.arange(0, BLOCK_T)
        m = (o_chunk < chunks)[:, None] & m_c[None, :]
        o_sum = (o_chunk.to(tl.int64) * 2 * channels)[:, None] + o_c[None, :]
        b_sums += tl.load(p_sums + o_sum, mask=m, other=0.0, cache_modifier=".cg")
        b_squares += tl.load(p_sums + channels + o_sum, mask=m, other=0.0, cache_modifier=".cg")
    b_total = tl.sum(b_sums, 0)
    count = tl.cast(rows, tl.float64)
    b_variance = (tl.sum(b_squares, 0) - b_total * b_total / count) / count
    b_variance = tl.where(b_variance < 0.0, 0.0, b_variance).to(tl.float32)
    finite = b_variance < float("inf")
    tl.store(p_variance + o_c, tl.where(finite, b_variance, float("inf")), mask=m_c)


@triton.jit(do_not_specialize=["rows"])
def channel_sums_kernel(
    p_tokens,  # [F, T, D]
    p_sums,  # [chunks, 2, D] float64
    rows,
    tokens,
    channels,
    stride_f,
    stride_t,
    ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum as `channel_variance_kernel` does, and leave the rest to `add_chunks_kernel`."""
    n_blocks = tl.cdiv(channels, BLOCK_C)
    block = tl.program_id(0) % n_blocks
    chunk = (tl.program_id(0) // n_blocks).to(tl.int64)
    sum_chunk(
        p_tokens,
        p_sums,
        block,
        chunk,
        rows,
        tokens,
        channels,
        stride_f,
        stride_t,
        ROWS,
        BLOCK_T,
        BLOCK_C,
    )


@triton.jit(do_not_specialize=["rows", "chunks"])
def add_chunks_kernel(
    p_sums,  # [chunks, 2, D] float64
    p_variance,  # [D] float32
    rows,
    chunks,
    channels,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the variance of each channel; a program takes BLOCK_C channels."""
    add_chunks(p_sums, p_variance, tl.program_id(0), chunks, rows, channels, BLOCK_T, BLOCK_C)


@triton.jit(do_not_specialize=["keep"])
def rank_channels_kernel(
    p_variance,  # [D] float32
    p_out,  # [keep] int64
    channels,
    keep,
    BLOCK: tl.constexpr,
    BLOCK_OTHERS: tl.constexpr,
):
    """Write each channel to its rank by variance, ties to the lower channel, if it is below keep.

    A program ranks BLOCK channels: it counts those before them in tiles [BLOCK, BLOCK_OTHERS].
    """
    o_c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_c = o_c < channels
    b_own = tl.load(p_variance + o_c, mask=m_c, other=0.0)
    b_before = tl.zeros([BLOCK, BLOCK_OTHERS], tl.int32)
    for start in range(0, channels, BLOCK_OTHERS):
        o_other = start + tl.arange(0, BLOCK_OTHERS)
        m_other = (o_other < channels)[None, :]
        b_other = tl.load(p_variance + o_other, mask=o_other < channels, other=0.0)
        quieter = b_other[None, :] < b_own[:, None]
        tied = (b_other[None, :] == b_own[:, None]) & (o_other[None, :] < o_c[:, None])
        b_before += (m_other & (quieter | tied)).to(tl.int32)
    b_rank = tl.sum(b_before, 1)
    tl.store(p_out + b_rank, o_c.to(tl.int64), mask=m_c & (b_rank < keep))
