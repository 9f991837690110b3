"""A SigLIP vision tower to stream with: built with random weights, or loaded with transformers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
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
from transformers import SiglipVisionConfig, SiglipVisionModel

VISION_TYPES = ("siglip", "siglip_vision_model")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_SECONDS = 5.0
SEED = 0


class ModelError(Exception):
    """A model that cannot be loaded or streamed with; one line, with the remedy."""


@dataclass(frozen=True, eq=False)
class VisionTower:
    """A tower and how to make its input of a picture.

    Attributes:
        module: the tower; its output has ``last_hidden_state`` [B, T, C].
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
        """Tokens of a frame (T)."""
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


def load_tower(
    name: str | None = None, *, device: str = "auto", dtype: str = "auto"
) -> VisionTower:
    """Load the vision tower of a SigLIP model, or build one with random weights.

    Args:
        name: a folder that holds a SigLIP model (with or without its text half), or its name on
            the Hugging Face hub; None builds the geometry of SigLIP-base-patch16-384 with random
            weights of a fixed seed, and downloads nothing.
        device: "cpu", "cuda", "cuda:1" …; "auto" is a GPU where there is one.
        dtype: "float32", "bfloat16" or "float16"; "auto" is float32 on a CPU, bfloat16 on a GPU.

    Raises:
        ValueError: a device that is not there, or another dtype.
        ModelError: no such model, or one that has no SigLIP vision tower.
    """
    where = _device(device)
    if dtype == "auto":
        kind = torch.float32 if where.type == "cpu" else torch.bfloat16
    elif dtype in DTYPES:
        kind = DTYPES[dtype]
    else:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, but is {dtype!r}")
    if name is None:
        return _random_tower(where, kind)
    with _quiet_transformers():
        return _pretrained_tower(name, where, kind)


def _device(name: str) -> torch.device:
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


def _random_tower(device: torch.device, dtype: torch.dtype) -> VisionTower:
    config = SiglipVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=384,
        patch_size=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = SiglipVisionModel(config)
    return _tower(module, "SigLIP-base-patch16-384", None, device, dtype)


def _pretrained_tower(name: str, device: torch.device, dtype: torch.dtype) -> VisionTower:
    local = os.path.isdir(name)
    if not local and os.path.exists(name):
        raise ModelError(
            f"{name!r} is a file, but a model is a folder: give a folder that holds one, or a name "
            "on the hub"
        )
    offline = not local and not _on_hub(name)
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(name, local_files_only=offline)
    except (OSError, ValueError) as error:
        raise _unknown(name, _first_line(error)) from None
    if not config:
        raise _unknown(name, "it holds no config.json")
    model_type = config.get("model_type", "")
    if model_type not in VISION_TYPES:
        what = f"a {model_type} model" if model_type else "no model with a model_type"
        text = ", which has no vision tower" if "text" in model_type else ""
        raise ModelError(
            f"{name!r} is {what}{text}: give a SigLIP model (model_type "
            f"{' or '.join(VISION_TYPES)}), such as google/siglip-base-patch16-384"
        )
    try:
        loaded: Any = SiglipVisionModel.from_pretrained(
            name,
            dtype=dtype,
            local_files_only=offline,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        # safetensors, the hub and transformers each raise their own when a file is broken.
        raise ModelError(
            f"the weights of {name!r} cannot be loaded ({_first_line(error)}): check that the "
            "model is complete"
        ) from None
    module, loading = loaded
    # A weight of another shape comes as its name and both shapes.
    bad = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    if bad:
        raise ModelError(
            f"{name!r} lacks {len(bad)} of the vision tower's weights ({min(bad)}, …): "
            "check that the model is complete"
        )
    return _tower(module, name, _preprocessing(name, offline), device, dtype)


def _tower(
    module: Any,
    name: str,
    preprocessing: dict[str, Any] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> VisionTower:
    config = module.config
    # SigLIP's own mean and deviation, where the model names none.
    mean = (preprocessing or {}).get("image_mean") or (0.5, 0.5, 0.5)
    std = (preprocessing or {}).get("image_std") or (0.5, 0.5, 0.5)
    return VisionTower(
        module=module.eval().requires_grad_(False).to(device=device, dtype=dtype),
        name=name,
        pretrained=preprocessing is not None,
        image_size=config.image_size,
        patch=config.patch_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        device=device,
        dtype=dtype,
    )


def _preprocessing(name: str, offline: bool) -> dict[str, Any]:
    processing = transformers.image_processing_base.ImageProcessingMixin
    try:
        found, _ = processing.get_image_processor_dict(name, local_files_only=offline)
    except (OSError, ValueError):
        return {}
    return dict(found)


def _on_hub(name: str) -> bool:
    """Tell whether the hub answers at all; False: it does not, but the cache has the model.

    Asked once, since transformers asks again and again for half a minute.
    """
    try:
        get_session().head(hf_hub_url(name, "config.json"), timeout=HUB_SECONDS)
    except Exception as error:
        # The hub's client has exceptions of its own, other ones in each version.
        if isinstance(_cached_config(name), str):
            return False
        raise _unknown(name, f"the hub does not answer: {_first_line(error)}") from None
    return True


def _cached_config(name: str) -> object:
    try:
        return try_to_load_from_cache(name, "config.json")
    except ValueError:
        return None


def _unknown(name: str, reason: str) -> ModelError:
    return ModelError(
        f"there is no model {name!r} to be had ({reason}): give a folder that holds one, or a name "
        "on the hub, such as google/siglip-base-patch16-384"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def _quiet_transformers() -> Iterator[None]:
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
