"""What Qwen's video LLMs have in common: frames of any size, two of them a temporal patch.

Positions have three axes, time, row and column; text has the same number on all three.
"""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stc_stream.session.models.model import VideoModel
from stc_stream.session.numbering import Numbering, Place, Positions, TemporalPatch
from stc_stream.session.pixels import DynamicPixelSettings, Pixels, SharedPixelSettings

_NOISE = 1e-6
"""Seconds are sums and quotients: what is this little below a whole step is one."""


class QwenVL(VideoModel):
    """A model of transformers with a tower that is called with grids of patches."""

    axes = 3
    pixels: type[DynamicPixelSettings] = DynamicPixelSettings
    video_arguments = (
        "pixel_values_videos",
        "video_grid_thw",
        "second_per_grid_ts",
        "mm_token_type_ids",
    )

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        vision = model.config.vision_config
        self.tower = model.model.visual
        self.frames_per_patch = vision.temporal_patch_size
        self._patch = vision.patch_size
        self._merge = vision.spatial_merge_size

    def misfit(self, pixels: Pixels) -> str | None:
        """Refuse other patches."""
        wanted = (self._patch, self._merge, self.frames_per_patch)
        if not isinstance(pixels, DynamicPixelSettings):
            return "it brings frames to one size, but the model takes frames of any size"
        if type(pixels) is not self.pixels:
            of = {DynamicPixelSettings: "a frame", SharedPixelSettings: "a whole video"}
            return (
                f"it limits the pixels of {of[type(pixels)]}, but the model's those of "
                f"{of[self.pixels]}"
            )
        made = (pixels.patch, pixels.merge, pixels.temporal_patch)
        if made == wanted:
            return None
        return (
            f"its patches are of {made[0]} pixels, {made[1]} × {made[1]} a token and {made[2]} "
            f"frames deep, but the model's of {wanted[0]}, {wanted[1]} × {wanted[1]} and "
            f"{wanted[2]}"
        )

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return how many tokens' sides fit."""
        side = self._patch * self._merge
        return size[0] // side, size[1] // side

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the tokens of temporal patches, [P, T, D]."""
        patches, grid = self._patched(pixels)
        output = self.model.model.get_video_features(patches, grid, return_dict=True)
        tokens = torch.cat(tuple(output.pooler_output))
        return tokens.view(len(pixels) // self.frames_per_patch, -1, tokens.shape[1])

    def after_video(self) -> Tensor:
        """Return nothing: what closes a video is text of the prompt."""
        return self.embed([])

    @abstractmethod
    def numbering(self, positions: Positions) -> Numbering:
        """Return what numbers the tokens of frames."""

    def videos(self, given: Mapping[str, Any]) -> list[Tensor]:
        """Return the videos, each [F, 3, H, W], an odd last frame repeated.

        Raises:
            ValueError: there is no `video_grid_thw`, or it does not name all patches.
        """
        patches, grids = given["pixel_values_videos"], given.get("video_grid_thw")
        if not isinstance(grids, Tensor) or int(grids.prod(dim=1).sum()) != len(patches):
            raise ValueError(
                "video_grid_thw must name the patches of pixel_values_videos, "
                f"{len(patches)}, but is {grids}"
            )
        sizes = grids.tolist()
        return [
            self._unpatched(own, *size)
            for own, size in zip(
                patches.split([math.prod(size) for size in sizes]), sizes, strict=True
            )
        ]

    def prompt_positions(self, ids: Tensor, mask: Tensor, given: Mapping[str, Any]) -> Tensor:
        """Return what the model itself gives to prompts with whole videos, int64 [3, B, S]."""
        seconds = given.get("second_per_grid_ts")
        return self._rope_index(ids, mask, given["video_grid_thw"], seconds)

    def _rope_index(
        self, ids: Tensor, mask: Tensor, grids: Tensor, seconds: Sequence[float] | Tensor | None
    ) -> Tensor:
        rope_index = self.model.model.get_rope_index
        # The arguments' names and their order differ between versions.
        known = inspect.signature(rope_index).parameters
        given = {
            "mm_token_type_ids": 2 * (ids == self.video_token).int(),
            "video_grid_thw": grids.to(ids.device),
            "attention_mask": mask,
            "second_per_grid_ts": seconds,
        }
        positions: Tensor = rope_index(
            input_ids=ids, **{name: value for name, value in given.items() if name in known}
        )[0]
        return positions

    def _patched(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels in patches, [P · h · w, C], as the tower takes them, and their grid."""
        frames, colours, height, width = pixels.shape
        patch, merge, deep = self._patch, self._merge, self.frames_per_patch
        time, rows, columns = frames // deep, height // patch, width // patch
        parts = pixels.reshape(
            time, deep, colours, rows // merge, merge, patch, columns // merge, merge, patch
        )
        patches = parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(time * rows * columns, -1)
        return patches, torch.tensor([[time, rows, columns]], device=pixels.device)

    def _unpatched(self, patches: Tensor, time: int, rows: int, columns: int) -> Tensor:
        """Return the frames of patches, [F, 3, H, W]; undoes `_patched`."""
        patch, merge, deep = self._patch, self._merge, self.frames_per_patch
        parts = patches.reshape(
            time, rows // merge, columns // merge, merge, merge, -1, deep, patch, patch
        )
        frames = parts.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
        return frames.reshape(time * deep, -1, rows * patch, columns * patch)


@dataclass(frozen=True)
class Clock:
    """How the installed transformers counts time in a video of Qwen2-VL and Qwen2.5-VL.

    Attributes:
        tokens_per_second: steps of a second; None: a temporal patch is a step.
        whole_seconds: whether a temporal patch takes whole seconds only, rounded down.
        text_behind_time: whether text behind a video goes on behind its last step, or, as later
            versions have it, behind its rows and columns alone.
    """

    tokens_per_second: float | None
    whole_seconds: bool
    text_behind_time: bool

    @classmethod
    def of(cls, model: QwenVL, start_token: int, tokens_per_second: float | None) -> Clock:
        """Try it on a video of three temporal patches of a token each, a second and a half long."""
        merge = model._merge
        text = next(token for token in range(3) if token not in (start_token, model.video_token))
        ids = torch.tensor([[start_token, *[model.video_token] * 3, text]])
        grids = torch.tensor([[3, merge, merge]])
        places = model._rope_index(ids, torch.ones_like(ids), grids, [1.5])[0, 0].tolist()
        last, behind = places[3] - places[1], places[4] - places[1]
        whole = tokens_per_second is not None and last == 2 * tokens_per_second
        return cls(tokens_per_second, whole, behind == last + 1)

    def steps(self, place: Place, patch: TemporalPatch) -> int:
        """Return the steps from the video's start to its next temporal patch."""
        if place.start is None:
            return 0
        if self.tokens_per_second is None:
            return place.steps + 1
        # Times that were not given may be later than the next one that is.
        seconds = max(patch.times[0], place.seconds)
        if self.whole_seconds:
            took = math.floor(seconds - place.seconds + _NOISE)
            return place.steps + int(took * self.tokens_per_second)
        return math.floor((seconds - place.began) * self.tokens_per_second + _NOISE)


class KeptInTime(Numbering):
    """A token has its time, row and column in the video, whatever is dropped.

    Args:
        clock: how time is counted.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def positions(self, place: Place, patch: TemporalPatch, index: Tensor) -> Tensor:
        """Return time, row and column, [3, k]."""
        start = place.text if place.start is None else place.start
        steps = torch.full_like(index, self._clock.steps(place, patch))
        return start + torch.stack([steps, index // patch.columns, index % patch.columns])

    def after(self, place: Place, patch: TemporalPatch, kept: int) -> Place:
        """Return the place behind the video so far: text goes on where it did, or later."""
        start = place.text if place.start is None else place.start
        steps = self._clock.steps(place, patch)
        text = start + max(patch.rows, patch.columns)
        reach = max(text, start + steps + 1)
        began = patch.times[0] if place.start is None else place.began
        seconds = patch.times[0] if place.start is None else max(patch.times[0], place.seconds)
        if self._clock.text_behind_time:
            text = reach
        return Place(text, reach, start, steps, began, seconds)


class ContiguousInTime(KeptInTime):
    """As `KeptInTime`, but temporal patches of which nothing is kept take no time."""

    def after(self, place: Place, patch: TemporalPatch, kept: int) -> Place:
        """Return the place behind the video so far."""
        if kept:
            return super().after(place, patch, kept)
        if place.start is None:
            return place
        seconds = max(patch.times[0], place.seconds)
        return replace(place, began=place.began + seconds - place.seconds, seconds=seconds)
