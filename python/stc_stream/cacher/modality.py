"""What a whole model says of the rows that it gives its tower: pictures, or frames of a video.

Models of transformers have a method for each, and most of them one for pictures alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import update_wrapper
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from stc_stream.cacher.refusals import refuse_copies
from stc_stream.towers import Entry, TowerSpec

Modality = Literal["images", "video"]
_METHODS: dict[str, Modality] = {"get_image_features": "images", "get_video_features": "video"}


def model_paths(model: nn.Module, tower: TowerSpec) -> list[tuple[Entry, Modality]]:
    """Return the methods by which a model gives rows to its tower, and what they say of them.

    None where the tower stands alone. `forward` of a model without a method for videos is one: it
    may call the tower itself.
    """
    layer = tower.layers[0].module
    around = [
        module
        for module in model.modules()
        if _has(module, "get_image_features") and any(part is layer for part in module.modules())
    ]
    paths = [
        (Entry(module, method), modality)
        for module in around
        for method, modality in _METHODS.items()
        if _has(module, method)
    ]
    if paths and not any(modality == "video" for _, modality in paths):
        paths.append((Entry(around[-1]), "images"))
    return paths


class ModelPath:
    """A method of a whole model while a Cacher is attached.

    Args:
        method: the model's own.
        modality: what it says of the rows.
        enter: (modality, videos in the call) → what the method is run in.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        modality: Modality,
        enter: Callable[[Modality, int], AbstractContextManager[None]],
    ) -> None:
        update_wrapper(self, method)
        self._method = method
        self._modality = modality
        self._enter = enter
        self._signature = inspect.signature(method)
        # What it calls is compiled as before.
        disable: Callable[..., Callable[..., Any]] = torch.compiler.disable
        self._run_uncompiled = disable(self._run, recursive=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run_uncompiled(*args, **kwargs)

    def __reduce__(self) -> NoReturn:
        refuse_copies()

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        videos = self._videos(args, kwargs) if self._modality == "video" else 0
        with self._enter(self._modality, videos):
            return self._method(*args, **kwargs)

    def _videos(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Return how many videos a call has; 1 where it doesn't tell."""
        given = self._signature.bind_partial(*args, **kwargs).arguments
        grids = given.get("video_grid_thw")
        if isinstance(grids, Tensor):
            return len(grids)
        # transformers 5.0 has the second name.
        pixels = given.get("pixel_values_videos", given.get("pixel_values"))
        return len(pixels) if isinstance(pixels, Tensor) and pixels.dim() == 5 else 1


def _has(module: nn.Module, method: str) -> bool:
    # Of the class: wrappers pass on what the model inside has.
    return callable(getattr(type(module), method, None))
