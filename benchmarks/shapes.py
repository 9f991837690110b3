"""What the ops are timed at: real models' sizes (algorithm.md, section 4) and frames a call."""

from __future__ import annotations

from stc_stream.towers.sizes import LLM_WIDTHS, MODEL_SIZES

__all__ = ["DEFAULT_TOWER", "FRAMES", "LLM_WIDTHS", "PRUNER_KEPT", "PRUNER_TOKENS", "TOWERS"]

FRAMES = (1, 16, 64)
"""Frames a call: one as it comes, and batches of a stream or of several."""

PRUNER_TOKENS = 196
PRUNER_KEPT = 64
"""LLaVA-OneVision's tokens a frame after pooling (14 × 14); how many the released code keeps."""

TOWERS = {
    "SigLIP-so400m-384": MODEL_SIZES["siglip-so400m"],
    "SigLIP-base-384": MODEL_SIZES["siglip-base"],
    "CLIP-L-336": MODEL_SIZES["clip-l"],
    "Qwen2-VL": MODEL_SIZES["qwen2-vl"],
}
"""Vision towers, by the names that results are kept under."""

DEFAULT_TOWER = "SigLIP-so400m-384"
"""The one that is timed without `--full`."""
