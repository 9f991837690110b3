"""Stream frames through a SigLIP tower with a Cacher, and prune the tokens that come out.

One frame at a time, as a camera delivers them. For each frame: whether it was a refresh, how much
of it was recomputed, how close the features stay to the dense tower's, and what the Pruner kept.

Run: python examples/stream_features.py [VIDEO] [--model NAME_OR_PATH] [--frames N]

VIDEO is a file, a folder of images, a camera number or an rtsp:// address; without it, the sample
clip is streamed. Without --model the tower is a small one with random weights, which shows the
mechanism and says nothing about accuracy. Needs pip install 'stc-kernels[video]'.
"""

from __future__ import annotations

import argparse
from importlib.resources import as_file, files

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from stc_stream import CacherConfig, PrunerConfig, TokenPruner, attach_cacher
from stc_stream.video import open_video


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("video", nargs="?", help="default: the sample clip")
    parser.add_argument("--model", help="a SigLIP model: a folder, or a name on the hub")
    parser.add_argument("--frames", type=int, help="stop after so many")
    options = parser.parse_args()

    tower = load(options.model)
    pruner = TokenPruner(PrunerConfig.paper(keep_ratio=0.25))
    sample = files("stc_stream").joinpath("data/sample.mp4")
    with (
        torch.inference_mode(),
        as_file(sample) as clip,
        open_video(options.video or clip, frames=options.frames) as frames,
        attach_cacher(tower, CacherConfig(update_ratio=0.25, refresh_interval=4)) as cacher,
    ):
        for frame in frames:
            pixels = pixel_values(frame.image, tower.config.image_size)
            with cacher.record() as recording:
                features = tower(pixels).last_hidden_state  # [1, T, C]
            with cacher.paused():
                dense = tower(pixels).last_hidden_state
            # In a video LLM the projector and the pooling come between the two.
            pruned = pruner(features)

            first = recording.layers[0]
            kind = "refresh  " if first.refreshed.item() else "selective"
            closeness = functional.cosine_similarity(features, dense, dim=-1).mean()
            print(
                f"frame {frame.index:3} {kind} recomputed {int(first.recomputed.sum()):4} of "
                f"{features.shape[1]} tokens, cosine to dense {closeness:.4f}, "
                f"kept {pruned.tokens.shape[1]}"
            )
        stats = cacher.stats
    print(
        f"{stats.frames} frames, {stats.refreshes} of them refreshes; {stats.tokens_recomputed} "
        f"tokens recomputed, {stats.tokens_reused} reused; {stats.bytes / 1e6:.1f} MB of "
        f"references for {stats.streams} stream"
    )


def load(model: str | None) -> SiglipVisionModel:
    """Return the vision tower of a SigLIP model, or a small one with random weights."""
    if model is not None:
        return SiglipVisionModel.from_pretrained(model).eval()
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=224,
        patch_size=16,
    )
    return SiglipVisionModel(config).eval()


def pixel_values(image: NDArray[np.uint8], side: int) -> Tensor:
    """Return SigLIP's input, float32 [1, 3, side, side] in -1..1, of a picture, [H, W, 3]."""
    picture = torch.from_numpy(image).permute(2, 0, 1)[None]
    square = functional.interpolate(picture, (side, side), mode="bicubic", antialias=True)
    return square.float() / 127.5 - 1


if __name__ == "__main__":
    main()
