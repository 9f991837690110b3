# mypy: ignore-errors
"""`merge_tokens_norm` in Triton."""

import triton
import triton.language as tl

from stc_kernels.ops.layer_norm_gather.kernel import norm_rows
from stc_kernels.ops.merge_tokens.kernel import merged_rows, row_sources


@triton.jit(do_not_specialize=["references", "chosen"])
def merge_tokens_norm_kernel(
    p_updated,  # [F, k, C]
    p_cached,  # [R, T, C]
    p_residual,  # [F, T, C]
    p_slot,  # [F, T] int32
    p_reference_index,  # [F] int64
    p_weight,  # [C]
    p_bias,  # [C]
    p_merged,  # [F, T, C]
    p_normed,  # [F, T, C]
    eps,
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
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge tokens and norm every row: the end of a selective layer with the next one's first norm.

    A program writes BLOCK_T whole rows of one frame; BLOCK_C covers the channels. See
    `merge_tokens_kernel` and `norm_rows` for the formulas.
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
    o_c = tl.arange(0, BLOCK_C)
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
    o_out = ((frame * tokens + o_t) * channels)[:, None] + o_c[None, :]
    m = m_t[:, None] & m_c[None, :]
    tl.store(p_merged + o_out, b_row, mask=m)
    b_normed = norm_rows(b_row.to(tl.float32), p_weight, p_bias, eps, channels, HAS_BIAS, BLOCK_C)
    tl.store(p_normed + o_out, b_normed.to(p_normed.dtype.element_ty), mask=m)
