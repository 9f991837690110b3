"""A video LLM to ask: loaded with transformers, or built with random weights."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from stc_stream.session.checks import check_processor
from stc_stream.session.models import FAMILIES, VideoModel, read_model
from stc_stream.session.processor import SessionProcessor
from stc_stream.towers.load import (
    ModelError,
    choose_device,
    choose_dtype,
    first_line,
    quiet_transformers,
    read_config,
)

EXAMPLE = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"


@dataclass(frozen=True, eq=False)
class VideoLlm:
    """A video LLM with its processor, as sessions take them.

    Attributes:
        model: of transformers, on its device.
        processor: what turns frames and words into its inputs.
        name: what to call it in a table.
        weights: where its weights come from, in words.
        pretrained: whether its weights were loaded; if not, they are random.
        device: where it runs.
        dtype: what it computes in.
    """

    model: Any
    processor: SessionProcessor
    name: str
    weights: str
    pretrained: bool
    device: torch.device
    dtype: torch.dtype

    @property
    def read(self) -> VideoModel:
        """The model as a session uses it."""
        return read_model(self.model)


def load_video_llm(
    name: str | None = None, *, device: str = "auto", dtype: str = "auto"
) -> VideoLlm:
    """Load a video LLM, or build the default one.

    Args:
        name: a folder that holds one with its processor, or its name on the Hugging Face hub;
            None: the default, for which nothing is downloaded.
        device, dtype: as in `stc_stream.towers.load.load_tower`.

    Raises:
        ValueError: a device that is not there, or another dtype.
        ModelError: no such model, one that is no video LLM of a family that is known, or one
            without its processor.
    """
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    with quiet_transformers():
        if name is None:
            return _default(where, kind)
        return _pretrained(name, where, kind)


def _default(device: torch.device, dtype: torch.dtype) -> VideoLlm:
    """Build the model that is asked where none was named: the one place that chooses it.

    SigLIP-base on frames of 224 pixels, and six layers of Qwen2-0.5B's widths: 49 tokens a frame.
    Of a frame's arithmetic, tower and LLM have about the shares that they have in
    LLaVA-OneVision-0.5B (four to one), and two cores answer about the sample clip in a minute.
    """
    from stc_stream.session.untrained import LlavaSizes, build_llava_onevision

    sizes = LlavaSizes.qwen2_0_5b(image=224, llm=(896, 4864, 6, 14, 2), vocabulary=264)
    model, processor = build_llava_onevision(sizes)
    module: Any = model.requires_grad_(False)
    return VideoLlm(
        model=module.to(device=device, dtype=dtype),
        processor=processor,
        name="a LLaVA-OneVision of SigLIP-base and six layers of Qwen2-0.5B's sizes",
        weights="random weights (seed 0): what it answers means nothing",
        pretrained=False,
        device=device,
        dtype=dtype,
    )


def _pretrained(name: str, device: torch.device, dtype: torch.dtype) -> VideoLlm:
    config, offline = read_config(name, EXAMPLE)
    _check_family(name, config)
    options: dict[str, Any] = {"local_files_only": offline}
    try:
        processor = SessionProcessor.from_pretrained(name, **options)
    except Exception as error:
        # The hub, transformers and its tokenizers each raise their own.
        raise ModelError(
            f"{name!r} has no processor that can be read ({first_line(error)}): its folder needs "
            "the tokenizer's files, a chat template and preprocessor_config.json"
        ) from None
    try:
        loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            name,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        raise ModelError(
            f"the weights of {name!r} cannot be loaded ({first_line(error)}): check that the "
            "model is complete"
        ) from None
    model, loading = loaded
    bad = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    if bad:
        raise ModelError(
            f"{name!r} lacks {len(bad)} of its weights ({min(bad)}, …): check that the model is "
            "complete"
        )
    model = model.eval().requires_grad_(False).to(device)
    try:
        check_processor(processor, read_model(model))
    except ValueError as error:
        raise ModelError(f"{name!r}: {error}") from None
    return VideoLlm(model, processor, name, "pretrained weights", True, device, dtype)


def _check_family(name: str, config: dict[str, Any]) -> None:
    """Refuse a model before its weights are read, if it is no video LLM that is known."""
    model_type = config.get("model_type", "")
    known = ", ".join(family.family for family in FAMILIES)
    parsed = None
    with suppress(KeyError, TypeError, ValueError):
        parsed = transformers.CONFIG_MAPPING[model_type].from_dict(config)
    if type(parsed) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or not any(
        family.model_type == model_type for family in FAMILIES
    ):
        what = f"a {model_type} model" if model_type else "no model with a model_type"
        raise ModelError(
            f"{name!r} is {what}, which cannot be asked about a video: give a video LLM of these "
            f"families: {known}, such as {EXAMPLE}"
        )
