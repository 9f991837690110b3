# mypy: ignore-errors
"""`merge_tokens` in Triton."""

import triton
import triton.language as tl

from stc_kernels.ops.patch_similarity.kernel import paired_reference


@triton.jit
def merged_rows(
    p_updated,
    p_cached,
    p_residual,
    o_updated,  # [BLOCK_T] int64, offsets of rows
    o_cached,  # [BLOCK_T] int64
    o_residual,  # [BLOCK_T] int64
    m_updated,  # [BLOCK_T], rows that were computed
    m_cached,  # [BLOCK_T], rows that are reused
    o_c,  # [BLOCK_C]
    m_c,  # [BLOCK_C]
    HAS_RESIDUAL: tl.constexpr,
):
    """Return merged rows in their own dtype, [BLOCK_T, BLOCK_C]; each is read from one place.

    A row that is nowhere, and what is outside the channels, is NaN.
    """
    m_updated = m_updated[:, None] & m_c[None, :]
    m_cached = m_cached[:, None] & m_c[None, :]
    b_updated = tl.load(
        p_updated + o_updated[:, None] + o_c[None, :], mask=m_updated, other=float("nan")
    )
    b_row = tl.load(p_cached + o_cached[:, None] + o_c[None, :], mask=m_cached, other=0.0)
    if HAS_RESIDUAL:
        b_residual = tl.load(
            p_residual + o_residual[:, None] + o_c[None, :], mask=m_cached, other=0.0
        )
        b_row = (b_row.to(tl.float32) + b_residual.to(tl.float32)).to(b_row.dtype)
    return tl.where(m_cached, b_row, b_updated)


@triton.jit
def row_sources(
    p_slot,
    p_reference_index,
    frame,
    o_t,
    tokens,
    chosen,
    references,
    stride_updated_f,
    stride_updated_k,
    stride_cached_r,
    stride_cached_t,
    stride_residual_f,
    stride_residual_t,
    stride_slot_f,
    stride_slot_t,
    HAS_INDEX: tl.constexpr,
):
    """Return where each row comes from: three offsets and two masks, as `merged_rows` wants."""
    o_wide = o_t.to(tl.int64)
    m_t = o_t < tokens
    b_slot = tl.load(p_slot + frame * stride_slot_f + o_wide * stride_slot_t, mask=m_t, other=-1)
    held, held_tokens = paired_reference(p_reference_index, frame, references, tokens, HAS_INDEX)
    m_updated = m_t & (b_slot >= 0) & (b_slot < chosen)
    m_cached = (o_t < held_tokens) & (b_slot < 0)
    o_updated = frame * stride_updated_f + b_slot.to(tl.int64) * stride_updated_k
    o_cached = held * stride_cached_r + o_wide * stride_cached_t
    o_residual = frame * stride_residual_f + o_wide * stride_residual_t
    return o_updated, o_cached, o_residual, m_updated, m_cached


@triton.jit(do_not_specialize=["references", "chosen"])
def merge_tokens_kernel(
    p_updated,  # [F, k, C]
    p_cached,  # [R, T, C]
    p_residual,  # [F, T, C]
    p_slot,  # [F, T] int32
    p_reference_index,  # [F] int64
    p_out,  # [F, T, C]
    tokens,
    channels,
    chosen,
    references,
    stride_updated_f,
    stride_updated_k,
    stride_cached_r,
    stride_cached_t,
    stride_residual_f,
    stride_residual_t,
    stride_slot_f,
    stride_slot_t,
    HAS_INDEX: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Put recomputed tokens and reused ones together (step 4 of a selective layer).

    out = updated[slot] where slot ≥ 0, else cached + residual, added in float32 and rounded once.
    A program writes BLOCK_T rows of one frame. A row whose slot or reference is not there is NaN.
    """
    n_blocks = tl.cdiv(tokens, BLOCK_T)
    frame = (tl.program_id(0) // n_blocks).to(tl.int64)
    o_t = (tl.program_id(0) % n_blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = o_t < tokens
    o_updated, o_cached, o_residual, m_updated, m_cached = row_sources(
        p_slot,
        p_reference_index,
        frame,
        o_t,
        tokens,
        chosen,
        references,
        stride_updated_f,
        stride_updated_k,
        stride_cached_r,
        stride_cached_t,
        stride_residual_f,
        stride_residual_t,
        stride_slot_f,
        stride_slot_t,
        HAS_INDEX,
    )
    o_out = (frame * tokens + o_t) * channels
    for start in range(0, channels, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        m_c = o_c < channels
        b_row = merged_rows(
            p_updated,
            p_cached,
            p_residual,
            o_updated,
            o_cached,
            o_residual,
            m_updated,
            m_cached,
            o_c,
            m_c,
            HAS_RESIDUAL,
        )
        tl.store(p_out + o_out[:, None] + o_c[None, :], b_row, mask=m_t[:, None] & m_c[None, :])
