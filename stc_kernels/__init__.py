"""Kernels of Streaming Token Compression (arXiv 2512.00891) as torch ops.

The ops live in ``torch.ops.stc_kernels``; the functions of the same names here take the same
arguments and raise ``ValueError`` and ``TypeError`` where the raw ops raise ``RuntimeError``.
Importing this package imports torch, registers the ops with it, and starts no GPU context. For
NumPy arrays without torch there is `stc_numpy`.
"""

from stc_kernels import layers
from stc_kernels._library import build_info, load
from stc_kernels._registry import implementation
from stc_kernels._warmup import warmup
from stc_kernels.ops.anchor_scores import anchor_scores
from stc_kernels.ops.gather_tokens import gather_tokens
from stc_kernels.ops.layer_norm_gather import layer_norm_gather
from stc_kernels.ops.merge_tokens import merge_tokens
from stc_kernels.ops.merge_tokens_norm import merge_tokens_norm
from stc_kernels.ops.patch_similarity import patch_similarity
from stc_kernels.ops.prune_tokens import prune_tokens
from stc_kernels.ops.quiet_channels import quiet_channels
from stc_kernels.ops.select_dynamic import select_dynamic
from stc_kernels.ops.topk_gather import topk_gather

__version__ = "0.1.0"

__all__ = [
    "anchor_scores",
    "build_info",
    "gather_tokens",
    "implementation",
    "layer_norm_gather",
    "layers",
    "merge_tokens",
    "merge_tokens_norm",
    "patch_similarity",
    "prune_tokens",
    "quiet_channels",
    "select_dynamic",
    "topk_gather",
    "warmup",
]

load()
