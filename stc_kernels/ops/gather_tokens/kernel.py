# mypy: ignore-errors
"""`gather_tokens` in Triton."""

import triton
import triton.language as tl


@triton.jit
def copy_rows(
    p_from,
    p_to,
    o_from,  # [BLOCK_T] int64, offsets of rows
    o_to,  # [BLOCK_T] int64
    m_from,  # [BLOCK_T], rows to read
    m_to,  # [BLOCK_T], rows to write
    channels,
    BLOCK_C: tl.constexpr,
):
    """Copy rows in tiles [BLOCK_T, BLOCK_C]; NaN where a row is written that can't be read."""
    for start in range(0, channels, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        m_c = (o_c < channels)[None, :]
        b_row = tl.load(
            p_from + o_from[:, None] + o_c[None, :], mask=m_from[:, None] & m_c, other=float("nan")
        )
        tl.store(p_to + o_to[:, None] + o_c[None, :], b_row, mask=m_to[:, None] & m_c)


@triton.jit(do_not_specialize=["chosen"])
def gather_tokens_kernel(
    p_tokens,  # [F, T, C]
    p_index,  # [F, k] int64
    p_out,  # [F, k, C]
    tokens,
    channels,
    chosen,
    stride_f,
    stride_t,
    stride_index_f,
    stride_index_k,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Copy the tokens that an index names; a program copies BLOCK_T of one frame.

    A token that is not there is NaN: looking at the index first would stall the device.
    """
    n_blocks = tl.cdiv(chosen, BLOCK_T)
    frame = (tl.program_id(0) // n_blocks).to(tl.int64)
    o_k = (tl.program_id(0) % n_blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_k = o_k < chosen
    o_index = frame * stride_index_f + o_k.to(tl.int64) * stride_index_k
    b_t = tl.load(p_index + o_index, mask=m_k, other=-1)
    copy_rows(
        p_tokens,
        p_out,
        frame * stride_f + b_t * stride_t,
        (frame * chosen + o_k) * channels,
        (b_t >= 0) & (b_t < tokens),
        m_k,
        channels,
        BLOCK_C,
    )
