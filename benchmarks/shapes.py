"""The sizes of real models, for benchmarks (algorithm.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

FRAMES = (1, 16, 64)
"""Frames a call: one as it comes, and batches of a stream or of several."""

LLM_WIDTHS = {"Qwen2-0.5B": 896, "Qwen2-1.5B": 1536, "Qwen2-7B": 3584}
"""Channels of the tokens that a pruner sees."""

PRUNER_TOKENS = 196
PRUNER_KEPT = 64
"""LLaVA-OneVision's tokens a frame after pooling (14 × 14); how many the released code keeps."""


@dataclass(frozen=True)
class TowerShape:
    """A vision tower's geometry.

    Attributes:
        name: the model.
        tokens: tokens a frame (T), a class token included where there is one.
        width: channels a token (C).
        heads: attention heads.
        mlp: width of the MLP's hidden layer (I).
        layers: layers of the whole tower (L).
        image: side of the image in pixels; 0 where it varies.
        patch: side of a patch in pixels.
    """

    name: str
    tokens: int
    width: int
    heads: int
    mlp: int
    layers: int
    image: int
    patch: int

    def updated(self, ratio: float) -> int:
        """Return the tokens recomputed on a selective frame (k)."""
        return max(1, int(self.tokens * ratio))

    def selective_share(self, ratio: float) -> float:
        """Return a selective frame's share of a dense frame's arithmetic; its inverse is the cap.

        Multiplications a token: C² each for Q, K, V and the output, 2·C·I for the MLP and 2·T·C
        for attention; a selective frame does K for all tokens and the rest for k of them.
        """
        projection = self.width**2
        rest = 3 * projection + 2 * self.width * self.mlp + 2 * self.tokens * self.width
        return (projection + rest * self.updated(ratio) / self.tokens) / (projection + rest)

    def cycle_share(self, ratio: float, refresh_interval: int) -> float:
        """Return the same for a refresh frame and the selective ones that follow it."""
        selective = self.selective_share(ratio)
        return (1 + (refresh_interval - 1) * selective) / refresh_interval


SIGLIP_SO400M = TowerShape("SigLIP-so400m-384", 729, 1152, 16, 4304, 27, 384, 14)
SIGLIP_BASE = TowerShape("SigLIP-base-384", 576, 768, 12, 3072, 12, 384, 16)
CLIP_L = TowerShape("CLIP-L-336", 577, 1024, 16, 4096, 24, 336, 14)
QWEN2_VL = TowerShape("Qwen2-VL", 1024, 1280, 16, 5120, 32, 0, 14)
TOWERS = (SIGLIP_SO400M, SIGLIP_BASE, CLIP_L, QWEN2_VL)
