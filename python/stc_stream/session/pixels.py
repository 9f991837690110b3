"""Frames to a tower's pixels, as transformers' video processors make them, without torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MODES = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class PixelSettings:
    """What a stock processor does with a frame: resize, rescale, normalise.

    Attributes:
        height, width: of the result, in pixels.
        resample: 2 (bilinear) or 3 (bicubic), PIL's numbers.
        scale: what a pixel value is multiplied by.
        mean, std: of the three colours, after scaling.
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
        resample = settings.get("resample")
        resample = 3 if resample is None else int(resample)
        if resample not in _MODES:
            raise ValueError(f"processor must resample by 2 or 3 (bicubic), but has {resample}")
        for step, wanted in (("do_resize", True), ("do_rescale", True), ("do_normalize", True)):
            if settings.get(step, wanted) is False:
                raise ValueError(f"processor must have {step}, but it is switched off")
        if settings.get("do_center_crop"):
            raise ValueError("processor must not crop frames, but has do_center_crop")
        return cls(
            int(height),
            int(width),
            resample,
            float(settings.get("rescale_factor", 1 / 255)),
            tuple(settings["image_mean"]),
            tuple(settings["image_std"]),
        )

    def __call__(self, frames: Tensor) -> Tensor:
        """Return what the stock processor makes of uint8 frames [F, H, W, 3], float32 [F, 3, h, w].

        On the CPU exactly that; on a GPU frames are resized in floating point and rounded, as
        torchvision does there.
        """
        images = self._resized(frames.permute(0, 3, 1, 2)).float()
        # In the stock processor's order, so that the result is the same to the last bit.
        mean = torch.tensor(self.mean, device=images.device) * (1.0 / self.scale)
        std = torch.tensor(self.std, device=images.device) * (1.0 / self.scale)
        return images.sub_(mean[:, None, None]).div_(std[:, None, None])

    def _resized(self, images: Tensor) -> Tensor:
        return self._scaled(images, (self.height, self.width))

    def _scaled(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        if images.shape[2:] == size:
            return images
        mode = _MODES[self.resample]
        if images.device.type == "cpu":
            return F.interpolate(images, size, mode=mode, antialias=True)
        resized = F.interpolate(images.float(), size, mode=mode, antialias=True)
        return resized.clamp_(0, 255).round_().to(torch.uint8)


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

    def _resized(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if height < width:
            resized = self._scaled(images, (self.shorter, int(self.shorter * width / height)))
        else:
            resized = self._scaled(images, (int(self.shorter * height / width), self.shorter))
        down, across = self.height - resized.shape[2], self.width - resized.shape[3]
        if down > 0 or across > 0:
            sides = [max(across, 0) // 2, (max(across, 0) + 1) // 2]
            sides += [max(down, 0) // 2, (max(down, 0) + 1) // 2]
            resized = F.pad(resized, sides)
        top = (resized.shape[2] - self.height) // 2
        left = (resized.shape[3] - self.width) // 2
        return resized[:, :, top : top + self.height, left : left + self.width]


def read_pixels(settings: Mapping[str, Any]) -> PixelSettings:
    """Read a processor's attributes, or its JSON file.

    Raises:
        ValueError: a setting that is not known here.
    """
    size = settings.get("size") or {}
    # Not `in`: a processor's sizes have all names, of which some are None.
    shorter, longer = size.get("shortest_edge"), size.get("longest_edge")
    if settings.get("do_center_crop") and shorter and not longer:
        return CroppedPixelSettings.read(settings)
    return PixelSettings.read(settings)
