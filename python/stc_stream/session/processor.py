"""What turns frames and words into a model's inputs: read from a stock processor, or from files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stc_stream.session.pixels import DynamicPixelSettings, Pixels, read_pixels

_FILES = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True, eq=False)
class Prompt:
    """The tokens of a prompt around its video.

    Attributes:
        before: those before the video; all of them, in a prompt without one.
        after: those after it.
    """

    before: list[int]
    after: list[int]


@dataclass(frozen=True, eq=False)
class SessionProcessor:
    """The parts of a processor that a session needs, none of which asks for torchvision.

    Attributes:
        tokenizer: transformers' tokenizer of the model.
        template: its chat template, in Jinja.
        pixels: how frames become the tower's pixels.
        video_token: the text that stands for a video in a prompt.
    """

    tokenizer: Any
    template: str
    pixels: Pixels
    video_token: str = "<video>"

    @classmethod
    def of(cls, processor: Any) -> SessionProcessor:
        """Read a stock processor; one that is read already is returned as it is.

        Raises:
            TypeError: no processor with a tokenizer and settings for frames.
            ValueError: one without a chat template, or with settings that are not known here.
        """
        if isinstance(processor, SessionProcessor):
            return processor
        tokenizer = getattr(processor, "tokenizer", None)
        frames = getattr(processor, "video_processor", None) or getattr(
            processor, "image_processor", None
        )
        if tokenizer is None or frames is None:
            raise TypeError(
                "processor must be the model's processor, with a tokenizer and a video_processor, "
                f"or a SessionProcessor, but is a {type(processor).__name__}"
            )
        template = getattr(processor, "chat_template", None) or tokenizer.chat_template
        return cls(
            tokenizer,
            _template(template),
            read_pixels(_attributes(frames)),
            getattr(processor, "video_token", "<video>"),
        )

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> SessionProcessor:
        """Load the tokenizer, template and settings of a checkpoint, without torchvision.

        Args:
            name: a folder, or a name on the Hub.
            options: what transformers' `from_pretrained` takes: `revision`, `local_files_only`.

        Raises:
            OSError: no such checkpoint, or no settings for frames in it.
            ValueError: no chat template, or settings that are not known here.
        """
        from transformers import AutoTokenizer

        settings: dict[str, Any] = {}
        video_token = None
        for file in _FILES:
            found = json.loads(_read(name, file, options) or "{}")
            video_token = found.get("video_token", video_token)
            # Since transformers 5, processor_config.json holds all of them; Qwen2-VL's oldest
            # files have limits in place of a size.
            for part in (found.get("video_processor"), found.get("image_processor"), found):
                if not settings and part and (part.get("size") or part.get("min_pixels")):
                    settings = part
        if not settings:
            raise OSError(f"{name} has no settings for frames: none of {', '.join(_FILES)}")
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        template = tokenizer.chat_template
        for file in _TEMPLATES:
            text = None if template else _read(name, file, options)
            if text:
                template = json.loads(text)["chat_template"] if file.endswith("json") else text
        pixels = read_pixels(settings)
        if video_token is None:
            dynamic = isinstance(pixels, DynamicPixelSettings)
            video_token = "<|video_pad|>" if dynamic else "<video>"
        return cls(tokenizer, _template(template), pixels, video_token)

    @property
    def video_token_id(self) -> int:
        """The number of the token that stands for a video."""
        number: int = self.tokenizer.convert_tokens_to_ids(self.video_token)
        return number

    def prompt(self, question: str, video: bool) -> Prompt:
        """Return the tokens of a question, with a video before it or without one."""
        content = [{"type": "video"}] if video else []
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=True,
        )
        tokens: list[int] = self.tokenizer(text)["input_ids"]
        places = [place for place, token in enumerate(tokens) if token == self.video_token_id]
        if len(places) != int(video):
            raise ValueError(
                f"question must not hold {self.video_token}, and the chat template must write one "
                f"for a video: the prompt has {len(places)} where {int(video)} should be"
            )
        if not video:
            return Prompt(tokens, [])
        return Prompt(tokens[: places[0]], tokens[places[0] + 1 :])


def _template(template: Any) -> str:
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ValueError(
            "processor must have a chat template, but neither it nor its tokenizer has"
        )
    return str(template)


def _attributes(frames: Any) -> Mapping[str, Any]:
    """Return the settings of a video or an image processor."""
    names = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
    steps = ("do_resize", "do_rescale", "do_normalize", "do_center_crop")
    grids = ("patch_size", "merge_size", "temporal_patch_size")
    shared = ("cap_pixels_per_frame", "max_video_tokens")
    found = {name: getattr(frames, name, None) for name in (*names, *steps, *grids, *shared)}
    found["video_processor_type"] = type(frames).__name__
    return {name: value for name, value in found.items() if value is not None}


def _read(name: str, file: str, options: Mapping[str, Any]) -> str | None:
    from transformers.utils.hub import cached_file

    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **options)
    if path is None:
        return None
    with open(path, encoding="utf-8") as lines:
        return lines.read()
