# mypy: ignore-errors
"""`topk_gather` in Triton, and the choice of tokens that other kernels end with."""

import triton
import triton.language as tl

from stc_kernels.ops.gather_tokens.kernel import copy_rows

# No key of a score: behind all that are.
NO_KEY = tl.constexpr(0xFFFFFFFF)


@triton.jit
def selection_key(b_score, LARGEST: tl.constexpr):
    """Return scores as uint32 that order them, the soonest chosen lowest.

    A score that is not finite counts as −∞; −0 ties with 0.
    """
    b_bits = b_score.to(tl.uint32, bitcast=True)
    b_bits = tl.where((b_bits & 0x7F800000) == 0x7F800000, 0xFF800000, b_bits)
    b_bits = tl.where(b_bits == 0x80000000, 0, b_bits)
    b_key = tl.where(b_bits >= 0x80000000, b_bits ^ 0xFFFFFFFF, b_bits | 0x80000000)
    if LARGEST:
        b_key = b_key ^ 0xFFFFFFFF
    return b_key.to(tl.uint32)


@triton.jit
def kth_lowest(b_key, k):
    """Return the k-th lowest key, two bits a step, from the highest.

    A step counts the keys below three candidates at once: counts of 21 bits in one int64 sum.
    """
    found = tl.full([], 0, tl.uint32)
    digit = tl.full([], 1 << 30, tl.uint32)
    for _ in range(16):
        b_below = (b_key < found + digit).to(tl.int64)
        b_below += (b_key < found + digit * 2).to(tl.int64) << 21
        b_below += (b_key < found + digit * 3).to(tl.int64) << 42
        below = tl.sum(b_below, 0)
        steps = ((below & 0x1FFFFF) < k).to(tl.uint32)
        steps += (((below >> 21) & 0x1FFFFF) < k).to(tl.uint32)
        steps += ((below >> 42) < k).to(tl.uint32)
        found += digit * steps
        digit = digit >> 2
    return found


@triton.jit
def placed(b_key, last, less_before, tied_before, wanted_ties):
    """Return which of these keys are chosen, and the place of each among all that are.

    `last` is the k-th lowest key of all; `less_before` and `tied_before` count the keys below it
    and equal to it in front of these; of the equal ones the first `wanted_ties` are chosen.
    """
    b_less = b_key < last
    b_tied = b_key == last
    b_counts = tl.cumsum(b_less.to(tl.int64) + (b_tied.to(tl.int64) << 32), 0)
    b_n_less = less_before + (b_counts & 0x7FFFFFFF).to(tl.int32)
    b_n_tied = tied_before + (b_counts >> 32).to(tl.int32)
    b_chosen = b_less | (b_tied & (b_n_tied <= wanted_ties))
    b_place = b_n_less + tl.minimum(b_n_tied, wanted_ties) - 1
    return b_chosen, b_place


@triton.jit
def write_choice(
    b_score,  # [BLOCK_TOKENS] float32, all scores of a frame
    p_index,  # [F, k] int64
    p_slot,  # [F, T] int32
    frame,
    tokens,
    k,
    LARGEST: tl.constexpr,
    HAS_SLOT: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Write a frame's choice of k tokens, ascending, and each token's place in it or −1."""
    o_t = tl.arange(0, BLOCK_TOKENS)
    m_t = o_t < tokens
    b_key = tl.where(m_t, selection_key(b_score, LARGEST), NO_KEY)
    last = kth_lowest(b_key, k)
    wanted_ties = k - tl.sum((b_key < last).to(tl.int32), 0)
    b_chosen, b_place = placed(b_key, last, 0, 0, wanted_ties)
    tl.store(p_index + frame * k + b_place, o_t.to(tl.int64), mask=b_chosen)
    if HAS_SLOT:
        b_slot = tl.where(b_chosen, b_place, -1)
        tl.store(p_slot + frame * tokens + o_t, b_slot, mask=m_t)


@triton.jit(do_not_specialize=["k"])
def topk_gather_kernel(
    p_tokens,  # [F, T, D]
    p_scores,  # [F, T] float32
    p_kept,  # [F, k, D]
    p_index,  # [F, k] int64
    tokens,
    channels,
    k,
    stride_f,
    stride_t,
    stride_scores_f,
    stride_scores_t,
    LARGEST: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Keep the k tokens of highest (or lowest) score of each frame, in order of position.

    A program looks at BLOCK_T tokens of one frame and copies those that are chosen. All programs
    of a frame find the k-th score for themselves, which costs less than a second launch.
    """
    n_blocks = tl.cdiv(tokens, BLOCK_T)
    frame = (tl.program_id(0) // n_blocks).to(tl.int64)
    start = (tl.program_id(0) % n_blocks) * BLOCK_T
    p_score = p_scores + frame * stride_scores_f
    o_all = tl.arange(0, BLOCK_TOKENS)
    m_all = o_all < tokens
    b_score = tl.load(p_score + o_all.to(tl.int64) * stride_scores_t, mask=m_all, other=0.0)
    b_key = tl.where(m_all, selection_key(b_score, LARGEST), NO_KEY)
    last = kth_lowest(b_key, k)
    b_less = (b_key < last).to(tl.int32)
    wanted_ties = k - tl.sum(b_less, 0)
    less_before = tl.sum(tl.where(o_all < start, b_less, 0), 0)
    tied_before = tl.sum(((b_key == last) & (o_all < start)).to(tl.int32), 0)

    o_t = start + tl.arange(0, BLOCK_T)
    m_t = o_t < tokens
    o_wide = o_t.to(tl.int64)
    b_own_score = tl.load(p_score + o_wide * stride_scores_t, mask=m_t, other=0.0)
    b_own = tl.where(m_t, selection_key(b_own_score, LARGEST), NO_KEY)
    b_chosen, b_place = placed(b_own, last, less_before, tied_before, wanted_ties)
    tl.store(p_index + frame * k + b_place, o_wide, mask=b_chosen)
    copy_rows(
        p_tokens,
        p_kept,
        frame * stride_f + o_wide * stride_t,
        (frame * k + b_place) * channels,
        b_chosen,
        b_chosen,
        channels,
        BLOCK_C,
    )
