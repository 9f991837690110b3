# mypy: ignore-errors
"""`anchor_scores` and the first part of `prune_tokens` in Triton."""

import triton
import triton.language as tl

from stc_kernels.ops.gather_tokens.kernel import copy_rows
from stc_kernels.ops.patch_similarity.kernel import NORM_FLOOR, cosine
from stc_kernels.ops.select_dynamic.kernel import is_last_of_frame
from stc_kernels.ops.topk_gather.kernel import write_choice

# What a program sums of each token over its channels, in this order in scratch.
TO_MEAN = tl.constexpr(0)
TO_TEMPORAL = tl.constexpr(1)
SQUARE = tl.constexpr(2)
QUANTITIES = tl.constexpr(3)


@triton.jit
def scored_channels(
    p_channels, o_c, channels, width, HAS_CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Return where the scored channels o_c are in a token, int32 [BLOCK_C], and which are there."""
    o_z = o_c
    m_z = o_c < channels
    if HAS_CHANNELS:
        b_channel = tl.load(p_channels + o_c, mask=m_z, other=0)
        m_z = m_z & (b_channel >= 0) & (b_channel < width)
        o_z = b_channel.to(tl.int32)
    return o_z, m_z


@triton.jit
def unit_scale(square):
    """Return 1 / max(‖z‖, 1e-8) from ‖z‖²."""
    return 1.0 / tl.maximum(tl.sqrt_rn(square), NORM_FLOOR)


@triton.jit
def load_tokens(p_frame, o_t, m_t, o_z, m_z, m_c, stride_t):
    """Return tokens, float32 [BLOCK_T, BLOCK_C]: 0 where masked, NaN for a channel not there."""
    p_row = p_frame + o_t.to(tl.int64) * stride_t
    b_z = tl.load(p_row[:, None] + o_z[None, :], mask=m_t[:, None] & m_z[None, :], other=0.0).to(
        tl.float32
    )
    return tl.where((m_c & (m_z == 0))[None, :], float("nan"), b_z)


@triton.jit
def column_block(
    p_frame,  # [T, D], one frame
    p_channels,  # [c] int64
    p_temporal,  # [c], this frame's temporal anchor
    p_square,  # [T] float32, ‖z‖² of this frame's tokens
    p_sums,  # [QUANTITIES, blocks, T] float32
    p_anchor_sums,  # [2, blocks] float32
    block,
    n_blocks,
    tokens,
    channels,
    width,
    stride_t,
    KNOWN: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    HAS_TEMPORAL: tl.constexpr,
    HAS_CHANNELS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write what BLOCK_C channels add to each token's products with the anchors.

    A first pass over the frame's tokens, in tiles [BLOCK_T, BLOCK_C], gives these channels of their
    mean (of z, or of ẑ = z/‖z‖ for the gaussian strategy), the spatial anchor; a second, from the
    cache, z · mean, z · temporal anchor and ‖z‖². With KNOWN squares, tokens whose square is not
    finite are left out of the mean; without, all are taken to be finite.
    """
    o_c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    o_z, m_z = scored_channels(p_channels, o_c, channels, width, HAS_CHANNELS, BLOCK_C)
    b_total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    b_finite = tl.zeros([BLOCK_T], tl.int32)
    for start in range(0, tokens, BLOCK_T):
        o_t = start + tl.arange(0, BLOCK_T)
        m_t = o_t < tokens
        if KNOWN:
            b_square = tl.load(p_square + o_t, mask=m_t, other=float("inf"), cache_modifier=".cg")
            m_t = b_square < float("inf")
            b_finite += m_t.to(tl.int32)
        b_z = load_tokens(p_frame, o_t, m_t, o_z, m_z, m_c, stride_t)
        if GAUSSIAN:
            b_z = b_z * tl.where(m_t, unit_scale(b_square), 0.0)[:, None]
        b_total += b_z
    count = tokens
    if KNOWN:
        count = tl.maximum(tl.sum(b_finite, 0), 1)
    b_mean = tl.sum(b_total, 0) / count
    tl.store(p_anchor_sums + block, tl.sum(b_mean * b_mean, 0))
    if HAS_TEMPORAL:
        b_temporal = tl.load(p_temporal + o_c, mask=m_c, other=0.0).to(tl.float32)
        # ∞ says that the square of a finite anchor overflows, NaN that the anchor is not finite.
        b_square = tl.where(
            tl.abs(b_temporal) < float("inf"), b_temporal * b_temporal, float("nan")
        )
        tl.store(p_anchor_sums + n_blocks + block, tl.sum(b_square, 0))
    for start in range(0, tokens, BLOCK_T):
        o_t = start + tl.arange(0, BLOCK_T)
        m_t = o_t < tokens
        b_z = load_tokens(p_frame, o_t, m_t, o_z, m_z, m_c, stride_t)
        o_sum = block * tokens + o_t
        to_mean = tl.sum(b_z * b_mean[None, :], 1)
        tl.store(p_sums + TO_MEAN * n_blocks * tokens + o_sum, to_mean, mask=m_t)
        if HAS_TEMPORAL:
            to_temporal = tl.sum(b_z * b_temporal[None, :], 1)
            tl.store(p_sums + TO_TEMPORAL * n_blocks * tokens + o_sum, to_temporal, mask=m_t)
        if not KNOWN:
            square = tl.sum(b_z * b_z, 1)
            tl.store(p_sums + SQUARE * n_blocks * tokens + o_sum, square, mask=m_t)


@triton.jit
def over_blocks(p_sum, n_blocks, tokens, BLOCK_B: tl.constexpr, BLOCK_TOKENS: tl.constexpr):
    """Return the sum over all blocks of channels, [BLOCK_TOKENS]; p_sum is [blocks, T]."""
    o_t = tl.arange(0, BLOCK_TOKENS)
    b_sum = tl.zeros([BLOCK_B, BLOCK_TOKENS], tl.float32)
    for start in range(0, n_blocks, BLOCK_B):
        o_b = start + tl.arange(0, BLOCK_B)
        m = (o_b < n_blocks)[:, None] & (o_t < tokens)[None, :]
        o = (o_b * tokens)[:, None] + o_t[None, :]
        b_sum += tl.load(p_sum + o, mask=m, other=0.0, cache_modifier=".cg")
    return tl.sum(b_sum, 0)


@triton.jit
def anchor_square(p_sum, n_blocks, BLOCK: tl.constexpr):
    """Return ‖anchor‖² from what each block of channels adds to it."""
    b_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n_blocks, BLOCK):
        o_b = start + tl.arange(0, BLOCK)
        b_sum += tl.load(p_sum + o_b, mask=o_b < n_blocks, other=0.0, cache_modifier=".cg")
    return tl.sum(b_sum, 0)


@triton.jit
def closeness(unit_square, center_square, dot):
    """Return Σ exp(−‖ẑ − c‖² / 2a) over a in {1/8, 1/4, 1/2, 1, 2}; ‖ẑ − c‖² = ẑ² + c² − 2 ẑ·c."""
    distance = unit_square + center_square - 2.0 * dot
    distance = tl.where(distance < 0.0, 0.0, distance)
    close = tl.exp(-4.0 * distance) + tl.exp(-2.0 * distance) + tl.exp(-distance)
    return close + tl.exp(-0.5 * distance) + tl.exp(-0.25 * distance)


@triton.jit
def novelty(
    b_square,  # [BLOCK_TOKENS], ‖z‖²
    b_to_mean,  # [BLOCK_TOKENS], z · spatial anchor
    b_to_temporal,  # [BLOCK_TOKENS], z · temporal anchor
    mean_square,
    temporal_square,
    alpha,
    rest,
    GAUSSIAN: tl.constexpr,
    HAS_TEMPORAL: tl.constexpr,
):
    """Return the novelty of each token (arXiv 2512.00891, section on STC-Pruner); NaN for garbage.

    dual_anchor: α (1 − cos(z, temporal)) + (1 − α) (1 − cos(z, spatial)), the latter alone without
    a past; gaussian: minus the closeness of ẑ to the mean of ẑ and to temporal/‖temporal‖.
    """
    if GAUSSIAN:
        b_scale = unit_scale(b_square)
        b_unit = b_square * b_scale * b_scale
        b_novelty = -closeness(b_unit, mean_square, b_to_mean * b_scale)
        if HAS_TEMPORAL:
            scale = unit_scale(temporal_square)
            # Of a finite anchor whose square overflows, c/∞ = 0 is left.
            overflows = temporal_square == float("inf")
            square = tl.where(overflows, 0.0, temporal_square * scale * scale)
            b_dot = tl.where(overflows, 0.0, b_to_temporal * b_scale * scale)
            b_novelty -= closeness(b_unit, square, b_dot)
    else:
        b_novelty = 1.0 - cosine(b_to_mean, b_square, mean_square)
        if HAS_TEMPORAL:
            b_past = 1.0 - cosine(b_to_temporal, b_square, temporal_square)
            b_novelty = alpha * b_past + rest * b_novelty
    return tl.where(b_square < float("inf"), b_novelty, float("nan"))


@triton.jit
def token_squares_kernel(
    p_tokens,  # [F, T, D]
    p_channels,  # [c] int64
    p_square,  # [F, T] float32
    tokens,
    channels,
    width,
    stride_f,
    stride_t,
    HAS_CHANNELS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write ‖z‖² over the scored channels of each token; a program takes BLOCK_T of one frame."""
    n_blocks = tl.cdiv(tokens, BLOCK_T)
    frame = (tl.program_id(0) // n_blocks).to(tl.int64)
    o_t = (tl.program_id(0) % n_blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = o_t < tokens
    b_square = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for start in range(0, channels, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        o_z, m_z = scored_channels(p_channels, o_c, channels, width, HAS_CHANNELS, BLOCK_C)
        b_z = load_tokens(p_tokens + frame * stride_f, o_t, m_t, o_z, m_z, o_c < channels, stride_t)
        b_square += b_z * b_z
    tl.store(p_square + frame * tokens + o_t, tl.sum(b_square, 1), mask=m_t)


@triton.jit(do_not_specialize=["k"])
def anchor_kernel(
    p_tokens,  # [F, T, D]
    p_channels,  # [c] int64
    p_temporal,  # [F, c] or [c]
    p_square,  # [F, T] float32; known before if GAUSSIAN, else scratch
    p_sums,  # [F, QUANTITIES, blocks, T] float32, scratch
    p_anchor_sums,  # [F, 2, blocks] float32, scratch
    p_counters,  # [F] int32, zero before and after
    p_scores,  # [F, T] float32
    p_index,  # [F, k] int64
    p_kept,  # [F, k, D]
    alpha,
    rest,
    k,
    tokens,
    channels,
    width,
    stride_f,
    stride_t,
    stride_temporal_f,
    GAUSSIAN: tl.constexpr,
    HAS_TEMPORAL: tl.constexpr,
    HAS_CHANNELS: tl.constexpr,
    CHOOSE: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
    GATHER_T: tl.constexpr,
    GATHER_C: tl.constexpr,
):
    """Score the tokens of each frame, and with CHOOSE choose k of them, with GATHER copy those.

    A program takes BLOCK_C scored channels of all tokens of one frame (`column_block`), so that a
    frame is read from memory once and one frame alone fills a GPU. The last program to finish a
    frame adds the blocks up (tiles [BLOCK_B, BLOCK_TOKENS]), scores (`novelty`) and chooses.
    """
    n_blocks = tl.cdiv(channels, BLOCK_C)
    frame = (tl.program_id(0) // n_blocks).to(tl.int64)
    block = tl.program_id(0) % n_blocks
    p_frame = p_tokens + frame * stride_f
    p_past = p_temporal + frame * stride_temporal_f
    p_frame_square = p_square + frame * tokens
    p_frame_sums = p_sums + frame * QUANTITIES * n_blocks * tokens
    p_frame_anchors = p_anchor_sums + frame * 2 * n_blocks
    column_block(
        p_frame,
        p_channels,
        p_past,
        p_frame_square,
        p_frame_sums,
        p_frame_anchors,
        block,
        n_blocks,
        tokens,
        channels,
        width,
        stride_t,
        GAUSSIAN,
        GAUSSIAN,
        HAS_TEMPORAL,
        HAS_CHANNELS,
        BLOCK_T,
        BLOCK_C,
    )
    if is_last_of_frame(p_counters, frame, n_blocks):
        finish_frame(
            p_tokens,
            p_channels,
            p_temporal,
            p_square,
            p_sums,
            p_anchor_sums,
            p_scores,
            p_index,
            p_kept,
            frame,
            alpha,
            rest,
            k,
            tokens,
            channels,
            width,
            stride_f,
            stride_t,
            stride_temporal_f,
            GAUSSIAN,
            HAS_TEMPORAL,
            HAS_CHANNELS,
            CHOOSE,
            GATHER,
            BLOCK_TOKENS,
            BLOCK_T,
            BLOCK_C,
            BLOCK_B,
            GATHER_T,
            GATHER_C,
        )


@triton.jit
def finish_frame(
    p_tokens,
    p_channels,
    p_temporal,
    p_square,
    p_sums,
    p_anchor_sums,
    p_scores,
    p_index,
    p_kept,
    frame,
    alpha,
    rest,
    k,
    tokens,
    channels,
    width,
    stride_f,
    stride_t,
    stride_temporal_f,
    GAUSSIAN: tl.constexpr,
    HAS_TEMPORAL: tl.constexpr,
    HAS_CHANNELS: tl.constexpr,
    CHOOSE: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
    GATHER_T: tl.constexpr,
    GATHER_C: tl.constexpr,
):
    """Add the blocks of a frame up, score its tokens, choose and copy (see `anchor_kernel`)."""
    n_blocks = tl.cdiv(channels, BLOCK_C)
    p_frame = p_tokens + frame * stride_f
    p_past = p_temporal + frame * stride_temporal_f
    p_frame_square = p_square + frame * tokens
    p_frame_sums = p_sums + frame * QUANTITIES * n_blocks * tokens
    p_frame_anchors = p_anchor_sums + frame * 2 * n_blocks
    o_t = tl.arange(0, BLOCK_TOKENS)
    m_t = o_t < tokens
    if GAUSSIAN:
        b_square = tl.load(p_frame_square + o_t, mask=m_t, other=0.0)
    else:
        p_squares = p_frame_sums + SQUARE * n_blocks * tokens
        b_square = over_blocks(p_squares, n_blocks, tokens, BLOCK_B, BLOCK_TOKENS)
        garbage = tl.sum((b_square < float("inf")).to(tl.int32), 0) < BLOCK_TOKENS
        if garbage:
            # The mean took tokens in that it must not: once more, now that they are known.
            tl.store(p_frame_square + o_t, b_square, mask=m_t)
            tl.debug_barrier()
            for again in range(n_blocks):
                column_block(
                    p_frame,
                    p_channels,
                    p_past,
                    p_frame_square,
                    p_frame_sums,
                    p_frame_anchors,
                    again,
                    n_blocks,
                    tokens,
                    channels,
                    width,
                    stride_t,
                    True,
                    False,
                    False,
                    HAS_CHANNELS,
                    BLOCK_T,
                    BLOCK_C,
                )
            tl.debug_barrier()
            # Read again rather than kept, so that the loop has the registers.
            b_square = tl.load(p_frame_square + o_t, mask=m_t, other=0.0)
    p_to_mean = p_frame_sums + TO_MEAN * n_blocks * tokens
    b_to_mean = over_blocks(p_to_mean, n_blocks, tokens, BLOCK_B, BLOCK_TOKENS)
    mean_square = anchor_square(p_frame_anchors, n_blocks, 128)
    b_to_temporal = b_to_mean
    temporal_square = mean_square
    if HAS_TEMPORAL:
        p_to_temporal = p_frame_sums + TO_TEMPORAL * n_blocks * tokens
        b_to_temporal = over_blocks(p_to_temporal, n_blocks, tokens, BLOCK_B, BLOCK_TOKENS)
        temporal_square = anchor_square(p_frame_anchors + n_blocks, n_blocks, 128)
    b_score = novelty(
        b_square,
        b_to_mean,
        b_to_temporal,
        mean_square,
        temporal_square,
        tl.cast(alpha, tl.float32),
        tl.cast(rest, tl.float32),
        GAUSSIAN,
        HAS_TEMPORAL,
    )
    if CHOOSE:
        write_choice(b_score, p_index, p_index, frame, tokens, k, True, False, BLOCK_TOKENS)
    else:
        tl.store(p_scores + frame * tokens + o_t, b_score, mask=m_t)
    if GATHER:
        tl.debug_barrier()
        for start in range(0, k, GATHER_T):
            o_k = start + tl.arange(0, GATHER_T)
            m_k = o_k < k
            b_t = tl.load(p_index + frame * k + o_k, mask=m_k, other=0)
            copy_rows(
                p_frame,
                p_kept,
                b_t * stride_t,
                (frame * k + o_k) * width,
                m_k,
                m_k,
                width,
                GATHER_C,
            )


@triton.jit
def column_blocks_kernel(
    p_tokens,  # [F, T, D]
    p_channels,  # [c] int64
    p_temporal,  # [F, c] or [c]
    p_square,  # [F, T] float32; known before if GAUSSIAN, else scratch
    p_sums,  # [F, QUANTITIES, blocks, T] float32, scratch
    p_anchor_sums,  # [F, 2, blocks] float32, scratch
    tokens,
    channels,
    width,
    stride_f,
    stride_t,
    stride_temporal_f,
    GAUSSIAN: tl.constexpr,
    HAS_TEMPORAL: tl.constexpr,
    HAS_CHANNELS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum as `anchor_kernel` does, and leave the rest to `finish_frames_kernel`."""
    n_blocks = tl.cdiv(channels, BLOCK_C)
    frame = (tl.program_id(0) // n_blocks).to(tl.int64)
    block = tl.program_id(0) % n_blocks
    p_frame = p_tokens + frame * stride_f
    p_past = p_temporal + frame * stride_temporal_f
    p_frame_square = p_square + frame * tokens
    p_frame_sums = p_sums + frame * QUANTITIES * n_blocks * tokens
    p_frame_anchors = p_anchor_sums + frame * 2 * n_blocks
    column_block(
        p_frame,
        p_channels,
        p_past,
        p_frame_square,
        p_frame_sums,
        p_frame_anchors,
        block,
        n_blocks,
        tokens,
        channels,
        width,
        stride_t,
        GAUSSIAN,
        GAUSSIAN,
        HAS_TEMPORAL,
        HAS_CHANNELS,
        BLOCK_T,
        BLOCK_C,
    )


@triton.jit(do_not_specialize=["k"])
def finish_frames_kernel(
    p_tokens,  # [F, T, D]
    p_channels,  # [c] int64
    p_temporal,  # [F, c] or [c]
    p_square,  # [F, T] float32; known before if GAUSSIAN, else scratch
    p_sums,  # [F, QUANTITIES, blocks, T] float32, scratch
    p_anchor_sums,  # [F, 2, blocks] float32, scratch
    p_scores,  # [F, T] float32
    p_index,  # [F, k] int64
    p_kept,  # [F, k, D]
    alpha,
    rest,
    k,
    tokens,
    channels,
    width,
    stride_f,
    stride_t,
    stride_temporal_f,
    GAUSSIAN: tl.constexpr,
    HAS_TEMPORAL: tl.constexpr,
    HAS_CHANNELS: tl.constexpr,
    CHOOSE: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
    GATHER_T: tl.constexpr,
    GATHER_C: tl.constexpr,
):
    """Score and choose as `anchor_kernel` does, in a launch of its own; a program takes a frame."""
    frame = tl.program_id(0).to(tl.int64)
    finish_frame(
        p_tokens,
        p_channels,
        p_temporal,
        p_square,
        p_sums,
        p_anchor_sums,
        p_scores,
        p_index,
        p_kept,
        frame,
        alpha,
        rest,
        k,
        tokens,
        channels,
        width,
        stride_f,
        stride_t,
        stride_temporal_f,
        GAUSSIAN,
        HAS_TEMPORAL,
        HAS_CHANNELS,
        CHOOSE,
        GATHER,
        BLOCK_TOKENS,
        BLOCK_T,
        BLOCK_C,
        BLOCK_B,
        GATHER_T,
        GATHER_C,
    )
