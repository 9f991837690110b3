# mypy: ignore-errors
"""`select_dynamic` in Triton."""

import triton
import triton.language as tl

from stc_kernels.ops.patch_similarity.kernel import paired_reference, row_similarity
from stc_kernels.ops.topk_gather.kernel import write_choice


@triton.jit
def is_last_of_frame(p_counters, frame, n_blocks):
    """Return whether all other programs of the frame have been here: their stores are visible.

    The last one sets the counter back to zero, for the kernel that comes next.
    """
    # The counter is released by one thread, for the stores of all.
    tl.debug_barrier()
    last = tl.atomic_add(p_counters + frame, 1, sem="acq_rel") == n_blocks - 1
    if last:
        tl.store(p_counters + frame, 0)
    return last


@triton.jit(do_not_specialize=["references", "k"])
def select_dynamic_kernel(
    p_current,  # [F, T, C]
    p_reference,  # [R, T, C]
    p_reference_index,  # [F] int64
    p_similarity,  # [F, T] float32, scratch
    p_counters,  # [F] int32, zero before and after
    p_index,  # [F, k] int64
    p_slot,  # [F, T] int32
    tokens,
    channels,
    k,
    references,
    stride_current_f,
    stride_current_t,
    stride_reference_r,
    stride_reference_t,
    METRIC: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Choose the k least similar tokens of each frame (arXiv 2512.00891, section on STC-Cacher).

    A program computes BLOCK_T similarities of one frame (`row_similarity`) into scratch; the last
    to finish a frame chooses among all of them, held in registers [BLOCK_TOKENS].
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
    tl.store(p_similarity + frame * tokens + o_t, b_similarity, mask=o_t < tokens)
    if is_last_of_frame(p_counters, frame, n_blocks):
        choose_tokens(p_similarity, p_index, p_slot, frame, tokens, k, BLOCK_TOKENS)


@triton.jit
def choose_tokens(p_similarity, p_index, p_slot, frame, tokens, k, BLOCK_TOKENS: tl.constexpr):
    """Choose the k least similar tokens of a frame whose similarities are in scratch."""
    o_all = tl.arange(0, BLOCK_TOKENS)
    b_all = tl.load(
        p_similarity + frame * tokens + o_all,
        mask=o_all < tokens,
        other=0.0,
        cache_modifier=".cg",
    )
    write_choice(b_all, p_index, p_slot, frame, tokens, k, False, True, BLOCK_TOKENS)


@triton.jit(do_not_specialize=["k"])
def choose_tokens_kernel(
    p_similarity,  # [F, T] float32
    p_index,  # [F, k] int64
    p_slot,  # [F, T] int32
    tokens,
    k,
    BLOCK_TOKENS: tl.constexpr,
):
    """Choose as `select_dynamic_kernel` does, in a launch of its own; a program takes a frame."""
    frame = tl.program_id(0).to(tl.int64)
    choose_tokens(p_similarity, p_index, p_slot, frame, tokens, k, BLOCK_TOKENS)
