# mypy: ignore-errors
"""`patch_similarity` in Triton."""

import triton
import triton.language as tl

COSINE = tl.constexpr(0)
DOT = tl.constexpr(1)
L1 = tl.constexpr(2)
L2 = tl.constexpr(3)
NORM_FLOOR = tl.constexpr(1e-8)


@triton.jit
def row_similarity(
    p_a,
    p_b,
    o_a,  # [BLOCK_T] int64, offsets of rows
    o_b,  # [BLOCK_T] int64
    m_t,  # [BLOCK_T], rows that are there
    channels,
    METRIC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Return the similarity of BLOCK_T pairs of rows, float32 [BLOCK_T].

    cosine a·b / (max(‖a‖, 1e-8) · max(‖b‖, 1e-8)), dot a·b, l1 −Σ|a − b|, l2 −‖a − b‖₂
    (arXiv 2512.00891, section on STC-Cacher). Tiles [BLOCK_T, BLOCK_C], summed over the channels
    elementwise and across once at the end.
    """
    b_sum = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    if METRIC == COSINE:
        b_sum_aa = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
        b_sum_bb = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for start in range(0, channels, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        m = m_t[:, None] & (o_c < channels)[None, :]
        b_a = tl.load(p_a + o_a[:, None] + o_c[None, :], mask=m, other=0.0).to(tl.float32)
        b_b = tl.load(p_b + o_b[:, None] + o_c[None, :], mask=m, other=0.0).to(tl.float32)
        if METRIC == COSINE:
            b_sum += b_a * b_b
            b_sum_aa += b_a * b_a
            b_sum_bb += b_b * b_b
        elif METRIC == DOT:
            b_sum += b_a * b_b
        elif METRIC == L1:
            b_sum += tl.abs(b_a - b_b)
        else:
            b_sum += (b_a - b_b) * (b_a - b_b)
    b_similarity = tl.sum(b_sum, 1)
    if METRIC == COSINE:
        b_similarity = cosine(b_similarity, tl.sum(b_sum_aa, 1), tl.sum(b_sum_bb, 1))
    elif METRIC == L1:
        b_similarity = -b_similarity
    elif METRIC == L2:
        b_similarity = -tl.sqrt_rn(b_similarity)
    return b_similarity


@triton.jit
def cosine(dot, square_a, square_b):
    """Return cos(a, b) from a·b, ‖a‖² and ‖b‖²; NaN where a norm is not finite."""
    floor_a = tl.maximum(tl.sqrt_rn(square_a), NORM_FLOOR)
    floor_b = tl.maximum(tl.sqrt_rn(square_b), NORM_FLOOR)
    b_cosine = tl.div_rn(dot, floor_a * floor_b)
    # One after the other: square_b may be one number for many of square_a.
    b_cosine = tl.where(square_a < float("inf"), b_cosine, float("nan"))
    return tl.where(square_b < float("inf"), b_cosine, float("nan"))


@triton.jit
def paired_reference(p_reference_index, frame, references, tokens, HAS_INDEX: tl.constexpr):
    """Return which reference a frame is held against, int64, and how many tokens it has.

    None, where `reference_index` names one that is not there.
    """
    held = frame
    held_tokens = tokens
    if HAS_INDEX:
        held = tl.load(p_reference_index + frame)
        held_tokens = tl.where((held >= 0) & (held < references), tokens, 0)
    return held, held_tokens


@triton.jit(do_not_specialize=["references"])
def patch_similarity_kernel(
    p_current,  # [F, T, C]
    p_reference,  # [R, T, C]
    p_reference_index,  # [F] int64
    p_out,  # [F, T] float32
    tokens,
    channels,
    references,
    stride_current_f,
    stride_current_t,
    stride_reference_r,
    stride_reference_t,
    METRIC: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the similarity of each token to the reference token at its place.

    A program takes BLOCK_T tokens of one frame. See `row_similarity` for the formula. A reference
    that `reference_index` names and that is not there gives NaN.
    """
    n_blocks = tl.cdiv(tokens, BLOCK_T)
    frame = (tl.program_id(0) // n_blocks).to(tl.int64)
    o_t = (tl.program_id(0) % n_blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    held, held_tokens = paired_reference(p_reference_index, frame, references, tokens, HAS_INDEX)
    m_held = o_t < held_tokens
    o_wide = o_t.to(tl.int64)
    b_similarity = row_similarity(
        p_current,
        p_reference,
        frame * stride_current_f + o_wide * stride_current_t,
        held * stride_reference_r + o_wide * stride_reference_t,
        m_held,
        channels,
        METRIC,
        BLOCK_T,
        BLOCK_C,
    )
    b_similarity = tl.where(m_held, b_similarity, float("nan"))
    tl.store(p_out + frame * tokens + o_t, b_similarity, mask=o_t < tokens)
