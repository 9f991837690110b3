# mypy: ignore-errors
"""`layer_norm_gather` in Triton."""

import triton
import triton.language as tl


@triton.jit
def norm_rows(
    b_row,  # [BLOCK_T, BLOCK_C] float32, anything outside the channels
    p_weight,  # [C]
    p_bias,  # [C]
    eps,
    channels,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Return (x − mean) / √(variance + eps) · weight + bias, float32 [BLOCK_T, BLOCK_C]."""
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    b_mean = tl.sum(tl.where(m_c[None, :], b_row, 0.0), 1) / channels
    b_about = tl.where(m_c[None, :], b_row - b_mean[:, None], 0.0)
    b_variance = tl.sum(b_about * b_about, 1) / channels
    b_scale = 1.0 / tl.sqrt_rn(b_variance + tl.cast(eps, tl.float32))
    b_weight = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_out = b_about * b_scale[:, None] * b_weight[None, :]
    if HAS_BIAS:
        b_out += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    return b_out


@triton.jit(do_not_specialize=["chosen"])
def layer_norm_gather_kernel(
    p_tokens,  # [F, T, C]
    p_index,  # [F, k] int64
    p_added,  # [F, k, C]
    p_weight,  # [C]
    p_bias,  # [C]
    p_gathered,  # [F, k, C]
    p_normed,  # [F, k, C]
    eps,
    tokens,
    channels,
    chosen,
    stride_f,
    stride_t,
    stride_index_f,
    stride_index_k,
    stride_added_f,
    stride_added_k,
    HAS_ADDED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gather tokens, add to them, and norm the sums (steps 4 and 5 of a selective layer).

    A program takes BLOCK_T whole rows of one frame; BLOCK_C covers the channels. The sum is rounded
    before it is normed. A token that is not there is NaN.
    """
    n_blocks = tl.cdiv(chosen, BLOCK_T)
    frame = (tl.program_id(0) // n_blocks).to(tl.int64)
    o_k = (tl.program_id(0) % n_blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_k = o_k < chosen
    o_wide = o_k.to(tl.int64)
    b_t = tl.load(p_index + frame * stride_index_f + o_wide * stride_index_k, mask=m_k, other=-1)
    there = (b_t >= 0) & (b_t < tokens)
    o_c = tl.arange(0, BLOCK_C)
    m_c = (o_c < channels)[None, :]
    o_row = frame * stride_f + b_t * stride_t
    b_row = tl.load(
        p_tokens + o_row[:, None] + o_c[None, :], mask=there[:, None] & m_c, other=float("nan")
    ).to(tl.float32)
    m = m_k[:, None] & m_c
    if HAS_ADDED:
        o_added = frame * stride_added_f + o_wide * stride_added_k
        b_row += tl.load(p_added + o_added[:, None] + o_c[None, :], mask=m, other=0.0).to(
            tl.float32
        )
    o_out = ((frame * chosen + o_k) * channels)[:, None] + o_c[None, :]
    b_gathered = b_row.to(p_gathered.dtype.element_ty)
    tl.store(p_gathered + o_out, b_gathered, mask=m)
    b_normed = norm_rows(
        b_gathered.to(tl.float32), p_weight, p_bias, eps, channels, HAS_BIAS, BLOCK_C
    )
    tl.store(p_normed + o_out, b_normed.to(p_normed.dtype.element_ty), mask=m)
