"""Frames to a tower's pixels, as transformers' video processors make them, without torchvision."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MODES = {2: "bilinear", 3: "bicubic"}


class Pixels(ABC):
    """What a stock processor does with a frame: resize, rescale, normalise.

    Attributes:
        resample: 2 (bilinear) or 3 (bicubic), PIL's numbers.
        scale: what a pixel value is multiplied by.
        mean, std: of the three colours, after scaling.
    """

    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @abstractmethod
    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width to which a frame of this size is brought, in pixels.

        Raises:
            ValueError: a form that the stock processor refuses.
        """

    def __call__(self, frames: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return what the stock processor makes of uint8 frames [F, H, W, 3], float32 [F, 3, h, w].

        On the CPU exactly that; on a GPU frames are resized in floating point and rounded, as
        torchvision does there.

        Args:
            size: h and w; None: as these frames ask for.
        """
        size = size or self.size_of(*frames.shape[1:3])
        images = self._resized(frames.permute(0, 3, 1, 2), size).float()
        # In the stock processor's order, so that the result is the same to the last bit.
        mean = torch.tensor(self.mean, device=images.device) * (1.0 / self.scale)
        std = torch.tensor(self.std, device=images.device) * (1.0 / self.scale)
        return images.sub_(mean[:, None, None]).div_(std[:, None, None])

    def _resized(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        if images.shape[2:] == size:
            return images
        mode = _MODES[self.resample]
        if images.device.type == "cpu":
            return F.interpolate(images, size, mode=mode, antialias=True)
        resized = F.interpolate(images.float(), size, mode=mode, antialias=True)
        return resized.clamp_(0, 255).round_().to(torch.uint8)


@dataclass(frozen=True)
class PixelSettings(Pixels):
    """Frames are brought to one size.

    Attributes:
        height, width: of the result, in pixels.
        resample, scale, mean, std: as in `Pixels`.
    """

    height: int
    width: int
    resample: int = 3
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> PixelSettings:
        """Read a processor's attributes, or its JSON file.

        Raises:
            ValueError: a setting that is not known here.
        """
        size = settings.get("size") or {}
        height, width = size.get("height"), size.get("width")
        if not height or not width:
            raise ValueError(
                f"processor must resize frames to one height and width, but its size is {size}"
            )
        return cls(int(height), int(width), **_colours(settings))

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the one size."""
        return self.height, self.width


@dataclass(frozen=True)
class DynamicPixelSettings(Pixels):
    """Frames keep their form, as far as a grid of whole tokens allows: the rule of Qwen's models.

    Attributes:
        min_pixels, max_pixels: of a frame after resizing.
        patch: side of a patch, in pixels.
        merge: side of the square of patches that makes a token.
        temporal_patch: frames that make a temporal patch.
        resample, scale, mean, std: as in `Pixels`.
    """

    min_pixels: int
    max_pixels: int
    patch: int = 14
    merge: int = 2
    temporal_patch: int = 2
    resample: int = 3
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> DynamicPixelSettings:
        """Read a processor's attributes, or its JSON file.

        Raises:
            ValueError: a setting that is not known here.
        """
        size = settings.get("size") or {}
        fewest = settings.get("min_pixels") or size.get("shortest_edge")
        most = settings.get("max_pixels") or size.get("longest_edge")
        if not fewest or not most:
            raise ValueError(
                "processor must say the fewest and the most pixels of a frame, as min_pixels and "
                f"max_pixels or as shortest_edge and longest_edge of its size, but its size is "
                f"{size}"
            )
        return cls(
            int(fewest),
            int(most),
            int(settings["patch_size"]),
            int(settings["merge_size"]),
            int(settings["temporal_patch_size"]),
            **_colours(settings),
        )

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return multiples of a token's side, within the limits, in nearly the frame's form."""
        return self._within(height, width, self.min_pixels, self.max_pixels)

    def _within(
        self, height: int, width: int, fewest: int, most: int, frames: int = 1
    ) -> tuple[int, int]:
        """Return the size at which so many frames have pixels within limits together."""
        _check_form(height, width)
        side = self.patch * self.merge
        rows, columns = round(height / side), round(width / side)
        if frames * rows * columns * side * side > most:
            shrink = math.sqrt(frames * height * width / most)
            rows = max(1, math.floor(height / shrink / side))
            columns = max(1, math.floor(width / shrink / side))
        elif frames * rows * columns * side * side < fewest:
            grow = math.sqrt(fewest / (frames * height * width))
            rows, columns = math.ceil(height * grow / side), math.ceil(width * grow / side)
        return rows * side, columns * side


@dataclass(frozen=True)
class SharedPixelSettings(DynamicPixelSettings):
    """As `DynamicPixelSettings`, but all frames of a video share its pixels: Qwen3-VL's rule.

    Attributes:
        min_pixels, max_pixels: of all frames of a video together.
        frames: for how many frames the size is worked out, a multiple of `temporal_patch`: a
            stream does not know how many it will have.
        frame_tokens: the most of a frame, where the processor has `cap_pixels_per_frame`.
    """

    frames: int = 2
    frame_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % self.temporal_patch:
            raise ValueError(
                f"frames must be a multiple of {self.temporal_patch}, the frames of a temporal "
                f"patch, but is {self.frames}"
            )

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> SharedPixelSettings:
        """Read a processor's attributes, or its JSON file.

        Raises:
            ValueError: a setting that is not known here.
        """
        read = DynamicPixelSettings.read(settings)
        capped = settings.get("cap_pixels_per_frame")
        return cls(
            **vars(read),
            frames=read.temporal_patch,
            frame_tokens=int(settings.get("max_video_tokens") or 768) if capped else None,
        )

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return multiples of a token's side, within a video's limits, in nearly its form."""
        _check_form(height, width)
        side = self.patch * self.merge
        if height < side or width < side:
            grow = max(side / height, side / width)
            height, width = int(height * grow), int(width * grow)
        most = self.max_pixels
        if self.frame_tokens is not None:
            share = min(self.frame_tokens * side * side, self.max_pixels // self.frames)
            most = max(share, int(self.min_pixels * 1.05)) * self.frames
        return self._within(height, width, self.min_pixels, most, self.frames)


@dataclass(frozen=True)
class CroppedPixelSettings(PixelSettings):
    """Frames are brought to one shorter side, and cut to the middle: the rule of CLIP's models.

    Attributes:
        shorter: side to which the shorter one is brought, in pixels; what the result has beyond
            it is black.
    """

    shorter: int = field(kw_only=True)

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> CroppedPixelSettings:
        """Read a processor's attributes, or its JSON file.

        Raises:
            ValueError: a setting that is not known here.
        """
        crop = settings.get("crop_size")
        if isinstance(crop, int):
            crop = {"height": crop, "width": crop}
        whole = PixelSettings.read({**settings, "size": crop, "do_center_crop": False})
        return cls(**vars(whole), shorter=int(settings["size"]["shortest_edge"]))

    def _resized(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = images.shape[2:]
        if height < width:
            scaled = (self.shorter, int(self.shorter * width / height))
        else:
            scaled = (int(self.shorter * height / width), self.shorter)
        resized = super()._resized(images, scaled)
        down, across = size[0] - resized.shape[2], size[1] - resized.shape[3]
        if down > 0 or across > 0:
            sides = [max(across, 0) // 2, (max(across, 0) + 1) // 2]
            sides += [max(down, 0) // 2, (max(down, 0) + 1) // 2]
            resized = F.pad(resized, sides)
        top, left = (resized.shape[2] - size[0]) // 2, (resized.shape[3] - size[1]) // 2
        return resized[:, :, top : top + size[0], left : left + size[1]]


def read_pixels(settings: Mapping[str, Any]) -> Pixels:
    """Read a processor's attributes, or its JSON file.

    Raises:
        ValueError: a setting that is not known here.
    """
    if settings.get("video_processor_type") == "Qwen3VLVideoProcessor":
        return SharedPixelSettings.read(settings)
    if settings.get("merge_size"):
        return DynamicPixelSettings.read(settings)
    size = settings.get("size") or {}
    # Not `in`: a processor's sizes have all names, of which some are None.
    shorter, longer = size.get("shortest_edge"), size.get("longest_edge")
    if settings.get("do_center_crop") and shorter and not longer:
        return CroppedPixelSettings.read(settings)
    return PixelSettings.read(settings)


def _check_form(height: int, width: int) -> None:
    if max(height, width) > 200 * min(height, width):
        raise ValueError(
            "frames must be at most 200 times as long on one side as on the other, but are "
            f"{height} × {width} pixels"
        )


def _colours(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that say how pixels are resampled and scaled."""
    resample = settings.get("resample")
    resample = 3 if resample is None else int(resample)
    if resample not in _MODES:
        raise ValueError(f"processor must resample by 2 or 3 (bicubic), but has {resample}")
    for step, wanted in (("do_resize", True), ("do_rescale", True), ("do_normalize", True)):
        if settings.get(step, wanted) is False:
            raise ValueError(f"processor must have {step}, but it is switched off")
    if settings.get("do_center_crop"):
        raise ValueError("processor must not crop frames, but has do_center_crop")
    return {
        "resample": resample,
        "scale": float(settings.get("rescale_factor", 1 / 255)),
        "mean": tuple(settings["image_mean"]),
        "std": tuple(settings["image_std"]),
    }
