"""A vision tower to stream with: built with random weights, or loaded with transformers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionModel,
)

from stc_stream.towers import read_tower
from stc_stream.towers.sizes import MODEL_SIZES, SEED, Packing

VISION_TYPES: dict[str, Any] = {
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_SECONDS = 5.0
EXAMPLE = "google/siglip-base-patch16-384"
_MIDDLE = (0.5, 0.5, 0.5)


class ModelError(Exception):
    """A model that cannot be loaded or streamed with; one line, with the remedy."""


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A tower and how to make its input of a picture.

    Attributes:
        module: the tower; its output has ``last_hidden_state``, [B, T, C] or packed [B · T, C].
        name: what to call it in a table.
        pretrained: whether its weights were loaded; if not, they are random.
        image_size: side of its square input, in pixels.
        patch: side of a patch, in pixels.
        width: channels of a token (C).
        layers: how many it has.
        mean: of the three colours, for normalisation.
        std: likewise.
        device: where it runs.
        dtype: what it computes in.
        prefix_tokens: tokens before the patches in its output (a class token).
        packing: how it wants its frames packed; None: as a batch of pictures.
    """

    module: nn.Module
    name: str
    pretrained: bool
    image_size: int
    patch: int
    width: int
    layers: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device
    dtype: torch.dtype
    prefix_tokens: int = 0
    packing: Packing | None = None

    @property
    def weights(self) -> str:
        """Where the weights come from, in words."""
        return "pretrained weights" if self.pretrained else f"random weights (seed {SEED})"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size // self.patch, self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Patches of a frame, each a token (T without prefix)."""
        return self.grid[0] * self.grid[1]

    def square(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a picture, uint8 [H, W, 3], as the square the tower sees, [size, size, 3].

        The whole picture is squeezed into it (bicubic), as SigLIP's own preprocessing does.
        """
        picture = torch.from_numpy(image).permute(2, 0, 1)[None]
        size = (self.image_size, self.image_size)
        resized = F.interpolate(picture, size, mode="bicubic", antialias=True)
        square: NDArray[np.uint8] = resized[0].permute(1, 2, 0).contiguous().numpy()
        return square

    def pixel_values(self, square: NDArray[np.uint8]) -> Tensor:
        """Return the tower's input, [1, 3, size, size], of what `square` returned."""
        pixels = torch.from_numpy(square).to(self.device).permute(2, 0, 1).float() / 255
        mean = torch.tensor(self.mean, device=self.device)[:, None, None]
        std = torch.tensor(self.std, device=self.device)[:, None, None]
        return ((pixels - mean) / std)[None].to(self.dtype)

    def inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return what the module is called with for frames, [F, 3, size, size]."""
        if self.packing is None:
            return {"pixel_values": pixels}
        rows, columns = self.grid
        patches = _patches(pixels, self.grid, self.patch, self.packing)
        grid = torch.tensor([[1, rows, columns]], device=pixels.device)
        return {"hidden_states": patches, "grid_thw": grid.expand(len(pixels), -1).contiguous()}

    def batch(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Tensor]:
        """Return what the module is called with for pictures, uint8 [H, W, 3] each."""
        return self.inputs(torch.cat([self.pixel_values(self.square(image)) for image in images]))

    def patches_of(self, tokens: Tensor) -> Tensor:
        """Return tokens of the module's output, or of a layer's, as [F, T, C] without prefix."""
        frames = tokens if self.packing is None else tokens.unflatten(0, (-1, self.tokens))
        patches: Tensor = frames[:, self.prefix_tokens :]
        return patches


def build_tower(
    name: str, *, layers: int | None = None, device: str = "auto", dtype: str = "auto"
) -> VisionModel:
    """Build a tower of a real model's sizes with random weights of a fixed seed.

    Args:
        name: one of `MODEL_SIZES`.
        layers: how many of its first layers to build; None: all.
        device, dtype: as in `load_tower`.

    Raises:
        ValueError: another name, number of layers, device or dtype.
    """
    if name not in MODEL_SIZES:
        raise ValueError(f"tower must be one of {', '.join(MODEL_SIZES)}, but is {name!r}")
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    sizes = MODEL_SIZES[name]
    module = sizes.build(layers)
    return VisionModel(
        module=module.to(device=where, dtype=kind),
        name=sizes.title,
        pretrained=False,
        image_size=sizes.image_size,
        patch=sizes.patch,
        width=sizes.width,
        layers=sizes.layers if layers is None else layers,
        mean=_MIDDLE,
        std=_MIDDLE,
        device=where,
        dtype=kind,
        prefix_tokens=_prefix_tokens(module),
        packing=sizes.packing,
    )


def load_tower(
    name: str | None = None, *, device: str = "auto", dtype: str = "auto"
) -> VisionModel:
    """Load the vision tower of a model, or build one with random weights.

    Args:
        name: a folder that holds a SigLIP or CLIP model (with or without its text half) or a
            LLaVA-OneVision, or its name on the Hugging Face hub; None builds
            SigLIP-base-patch16-384 with random weights of a fixed seed, and downloads nothing.
        device: "cpu", "cuda", "cuda:1" …; "auto" is a GPU where there is one.
        dtype: "float32", "bfloat16" or "float16"; "auto" is float32 on a CPU, bfloat16 on a GPU.

    Raises:
        ValueError: a device that is not there, or another dtype.
        ModelError: no such model, or one that has no such vision tower.
    """
    if name is None:
        return build_tower("siglip-base", device=device, dtype=dtype)
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    with quiet_transformers():
        return _pretrained_tower(name, where, kind)


def choose_device(name: str) -> torch.device:
    """Return the device that a name means: auto, cpu, cuda, cuda:N; ValueError for another one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, but is {name!r}")
    there = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= there:
        gpus = "this machine has no GPU that torch can use" if not there else f"GPUs here: {there}"
        raise ValueError(f"device {name!r} is not there: {gpus}")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that a name means on a device; ValueError for another one."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, but is {name!r}")
    return DTYPES[name]


def read_config(name: str, example: str = EXAMPLE) -> tuple[dict[str, Any], bool]:
    """Return a model's config.json, and whether only local files are to be read from here on.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        example: a name on the hub, for the message.

    Raises:
        ModelError: no such model.
    """
    local = os.path.isdir(name)
    if not local and os.path.exists(name):
        raise ModelError(
            f"{name!r} is a file, but a model is a folder: give a folder that holds one, or a name "
            "on the hub"
        )
    offline = not local and not _on_hub(name, example)
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(name, local_files_only=offline)
    except (OSError, ValueError) as error:
        raise _unknown(name, first_line(error), example) from None
    if not config:
        raise _unknown(name, "it holds no config.json", example)
    return dict(config), offline


def _pretrained_tower(name: str, device: torch.device, dtype: torch.dtype) -> VisionModel:
    config, offline = read_config(name)
    model_type = config.get("model_type", "")
    if model_type not in VISION_TYPES:
        what = f"a {model_type} model" if model_type else "no model with a model_type"
        text = ", which has no vision tower" if "text" in model_type else ""
        raise ModelError(
            f"{name!r} is {what}{text}: give a SigLIP or CLIP model, or a LLaVA-OneVision "
            f"(model_type {', '.join(VISION_TYPES)}), such as {EXAMPLE}"
        )
    try:
        loaded: Any = VISION_TYPES[model_type].from_pretrained(
            name,
            dtype=dtype,
            local_files_only=offline,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        # safetensors, the hub and transformers each raise their own when a file is broken.
        raise ModelError(
            f"the weights of {name!r} cannot be loaded ({first_line(error)}): check that the "
            "model is complete"
        ) from None
    module, loading = loaded
    # A weight of another shape comes as its name and both shapes.
    bad = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    if isinstance(module, LlavaOnevisionForConditionalGeneration):
        module, bad = module.model.vision_tower, [key for key in bad if "vision_tower" in key]
    if bad:
        raise ModelError(
            f"{name!r} lacks {len(bad)} of the vision tower's weights ({min(bad)}, …): "
            "check that the model is complete"
        )
    return _tower(module, name, _preprocessing(name, offline), device, dtype)


def _tower(
    module: Any, name: str, preprocessing: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> VisionModel:
    config = module.config
    # SigLIP's own mean and deviation, where the model names none.
    mean = preprocessing.get("image_mean") or _MIDDLE
    std = preprocessing.get("image_std") or _MIDDLE
    return VisionModel(
        module=module.eval().requires_grad_(False).to(device=device, dtype=dtype),
        name=name,
        pretrained=True,
        image_size=config.image_size,
        patch=config.patch_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        device=device,
        dtype=dtype,
        prefix_tokens=_prefix_tokens(module),
    )


def _prefix_tokens(module: nn.Module) -> int:
    return read_tower(module).prefix_tokens


def _preprocessing(name: str, offline: bool) -> dict[str, Any]:
    processing = transformers.image_processing_base.ImageProcessingMixin
    try:
        found, _ = processing.get_image_processor_dict(name, local_files_only=offline)
    except (OSError, ValueError):
        return {}
    return dict(found)


def _patches(pixels: Tensor, grid: tuple[int, int], side: int, packing: Packing) -> Tensor:
    """Return frames as rows of patches, squares of `merge` by `merge` patches together."""
    (rows, columns), merge = grid, packing.merge
    spans = pixels[:, None].expand(-1, packing.temporal, -1, -1, -1)
    shape = (rows // merge, merge, side, columns // merge, merge, side)
    parts = spans.reshape(*spans.shape[:3], *shape)
    ordered = parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return ordered.flatten(5).flatten(0, 4)


def _on_hub(name: str, example: str) -> bool:
    """Tell whether the hub answers at all; False: it does not, but the cache has the model.

    Asked once, since transformers asks again and again for half a minute.
    """
    try:
        get_session().head(hf_hub_url(name, "config.json"), timeout=HUB_SECONDS)
    except Exception as error:
        # The hub's client has exceptions of its own, other ones in each version.
        if isinstance(_cached_config(name), str):
            return False
        raise _unknown(name, f"the hub does not answer: {first_line(error)}", example) from None
    return True


def _cached_config(name: str) -> object:
    try:
        return try_to_load_from_cache(name, "config.json")
    except ValueError:
        return None


def _unknown(name: str, reason: str, example: str) -> ModelError:
    return ModelError(
        f"there is no model {name!r} to be had ({reason}): give a folder that holds one, or a name "
        f"on the hub, such as {example}"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of what a library says, without its full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from logging and from drawing bars."""
    logger: Any = transformers.utils.logging
    verbosity, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity(logging.CRITICAL)
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(verbosity)
        if bars:
            logger.enable_progress_bar()
