"""A stock model's own video path, from processor to `generate`, with a Cacher and a Pruner."""

from __future__ import annotations

import copy
import functools
import math
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig

from stc_stream.cacher import CacherConfig
from stc_stream.cacher.part import TowerPart
from stc_stream.pruner import PrunerConfig
from stc_stream.session import checks
from stc_stream.session.memory import KeptFrame
from stc_stream.session.models import VideoModel, read_model
from stc_stream.session.pruning import SessionPruner
from stc_stream.session.tower import FRAMES_AT_ONCE, TowerLease


@contextmanager
def compressed(
    model: Any,
    *,
    cacher: CacherConfig | TowerPart | None = None,
    pruner: PrunerConfig | Any | None = None,
) -> Iterator[Any]:
    """Compress the videos that `model.generate` is given, as its own processor makes them.

    Each video is a stream of its own, which the Pruner is given whole. On one axis of positions
    kept tokens are numbered without gaps, as a session has them with `positions="contiguous"`; on
    several axes they keep their time, row and column. `generate` returns the caller's `input_ids`
    first, as it does without; calls without a video go through untouched, and so does `forward`.
    Only this instance is changed, and everything is restored on leaving.

    Args:
        model: a video LLM of transformers (docs/sessions.md lists the families).
        cacher: how the tower runs, as in `StreamingSession`.
        pruner: which tokens go on, as in `StreamingSession`.

    Yields:
        The model.

    Raises:
        TypeError: a model of no family that is known, a tower that can't be read, an argument of
            another type.
        ValueError: the model is compressed already; a budget above a frame's tokens; in
            `generate`, pictures beside a video, or placeholders that are not the videos' own.
    """
    read = read_model(model)
    if isinstance(model.__dict__.get("generate"), _Generate):
        raise ValueError("the model is compressed already: leave that first")
    generate = _Generate(read, cacher, pruner)
    before = model.__dict__.get("generate")
    model.generate = generate
    try:
        yield model
    finally:
        generate.release()
        if before is None:
            del model.generate
        else:
            model.generate = before


class _Generate:
    """`generate` of a model while it is compressed."""

    def __init__(
        self, model: VideoModel, cacher: CacherConfig | TowerPart | None, pruner: Any
    ) -> None:
        self._model = model
        self._pruner = SessionPruner(pruner, model.tokens_per_frame, model.width)
        self._tower = TowerLease(model, cacher)
        self._lock = threading.Lock()
        self._caches: weakref.WeakSet[Any] = weakref.WeakSet()
        self._densely = model.model.generate
        functools.update_wrapper(self, self._densely)

    def release(self) -> None:
        """Give the tower back."""
        self._tower.release()

    def __call__(
        self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if kwargs.get("pixel_values_videos") is None:
            if kwargs.get("past_key_values") in self._caches:
                raise ValueError(
                    "pixel_values_videos must be given with past_key_values of a compressed video, "
                    "which hold fewer tokens than input_ids"
                )
            return self._densely(inputs, generation_config, *args, **kwargs)
        if kwargs.get("pixel_values") is not None:
            raise ValueError("pixel_values must be None beside a video while a model is compressed")
        given = {name: kwargs.pop(name, None) for name in self._model.video_arguments}
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        mask = kwargs.pop("attention_mask", None)
        if not isinstance(ids, Tensor):
            raise TypeError(f"input_ids must be a tensor, but is a {type(ids).__name__}")
        if mask is None:
            mask = _mask_of_padding(
                ids, kwargs, generation_config, self._model.model.generation_config
            )
        with torch.no_grad():
            short = self._shortened(ids, mask, given)
        dropped = ids.shape[1] - short.ids.shape[1]
        generation_config = copy.deepcopy(generation_config)
        own = self._model.model.generation_config
        kwargs |= _limits(kwargs, (generation_config, own), dropped)
        with _called(self._model, short):
            output = self._densely(
                None,
                generation_config,
                *args,
                input_ids=short.ids,
                inputs_embeds=short.inputs[..., : self._model.width],
                attention_mask=short.mask,
                **kwargs,
            )
        for cache in (kwargs.get("past_key_values"), getattr(output, "past_key_values", None)):
            if cache is not None:
                self._caches.add(cache)
        return _with_prompt(output, ids, short.ids.shape[1])

    def _shortened(self, ids: Tensor, mask: Tensor, given: Mapping[str, Any]) -> _Shortened:
        """Return the prompts with the kept tokens of their videos.

        Args:
            ids, mask: as `generate` takes them, [B, S].
            given: what it is given of videos.
        """
        model = self._model
        videos, after = model.videos(given), model.after_video()
        spans = [math.prod(model.grid((video.shape[2], video.shape[3]))) for video in videos]
        places = ids == model.video_token
        wanted = sum(
            len(video) // model.frames_per_patch * span + len(after)
            for video, span in zip(videos, spans, strict=True)
        )
        if int(places.sum()) != wanted:
            lengths = ", ".join(str(length) for length in sorted({len(video) for video in videos}))
            raise ValueError(
                f"input_ids must hold {wanted} times the video token {model.video_token}, for "
                f"{len(videos)} videos of {lengths} frames, but holds it "
                f"{int(places.sum())} times"
            )
        like = model.pixels_like
        features, left = [], []
        for video, span in zip(videos, spans, strict=True):
            self._pruner.check_budget(span)
            frames = self._kept(video.to(like.device, like.dtype))
            features += [frame.tokens for frame in frames] + [after.to(frames[0].tokens)]
            for frame in frames:
                left.append(torch.zeros(span, dtype=torch.bool, device=ids.device))
                left[-1][frame.index.to(ids.device)] = True
            left.append(torch.ones(len(after), dtype=torch.bool, device=ids.device))
        keep = ~places
        keep[places] = torch.cat(left)
        inputs = model.embed_all(ids)
        # Placeholders and tokens are both in order of rows, then of places.
        inputs[places & keep] = torch.cat(features).to(inputs)
        return _left_padded(ids, inputs, mask, keep, model.prompt_positions(ids, mask, given))

    def _kept(self, video: Tensor) -> list[KeptFrame]:
        """Return what is kept of the temporal patches of a video, [F, 3, H, W]."""
        # All videos have one stream in the tower: one at a time.
        with self._lock:
            try:
                parts = [self._tower.encode(part) for part in video.split(FRAMES_AT_ONCE)]
            finally:
                self._tower.restart()
        tokens = torch.cat(parts)
        checks.check_tokens(tokens, 0, self._model.frames_per_patch)
        return self._pruner.copy().keep_together(tokens)


@dataclass(frozen=True, eq=False)
class _Shortened:
    """Prompts without what was dropped: ids and mask [B, S], inputs as `VideoModel.run`'s.

    Attributes:
        positions: [axes, B, S]; None: they are counted.
    """

    ids: Tensor
    inputs: Tensor
    mask: Tensor
    positions: Tensor | None


def _left_padded(
    ids: Tensor, inputs: Tensor, mask: Tensor, keep: Tensor, positions: Tensor | None
) -> _Shortened:
    """Leave what is kept of each row, at the right, behind padding where rows differ."""
    longest = int(keep.sum(dim=1).max())
    # A stable sort brings what is dropped to the front, and leaves the rest in order.
    order = keep.long().sort(dim=1, stable=True).indices[:, -longest:]
    kept = keep.gather(1, order)
    short = mask.gather(1, order) * kept
    return _Shortened(
        ids.gather(1, order),
        inputs.gather(1, order[..., None].expand(-1, -1, inputs.shape[2])),
        short,
        None if positions is None else positions.gather(2, order.expand(len(positions), -1, -1)),
    )


@contextmanager
def _called(model: VideoModel, prompts: _Shortened) -> Iterator[None]:
    """Have an LLM give prompts their positions, and what is generated the next ones on all axes.

    And add behind its first layers what the model's `levels` ask for. Only in this thread.

    Args:
        model: its LLM is called with `inputs_embeds` and a cache, as `generate` does.
        prompts: without positions: the LLM runs as it is called.
    """
    positions, inputs = prompts.positions, prompts.inputs
    if positions is None:
        yield
        return
    thread = threading.get_ident()

    def change(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if threading.get_ident() != thread:
            return None
        embeddings = kwargs["inputs_embeds"]
        rows, new = embeddings.shape[:2]
        cache = kwargs.get("past_key_values")
        held = 0 if cache is None else cache.get_seq_length()
        # Several rows of a prompt are beams, or answers of which several are wanted.
        repeats = rows // len(inputs)
        more = max(held + new - inputs.shape[1], 0)
        steps = torch.arange(1, more + 1, device=positions.device)
        numbers = torch.cat([positions, positions[:, :, -1:] + steps], dim=2)
        own = numbers[:, :, held : held + new].repeat_interleave(repeats, dim=1)
        found = {**kwargs, "position_ids": own.to(embeddings.device)}
        if model.levels and held < inputs.shape[1]:
            deep = F.pad(inputs[..., model.width :], (0, 0, 0, more))[:, held : held + new]
            wide = [embeddings, deep.repeat_interleave(repeats, dim=0).to(embeddings)]
            found |= model.layer_inputs(torch.cat(wide, dim=2))
        return args, found

    hook = model.llm.register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _limits(given: Mapping[str, Any], configs: Sequence[Any], dropped: int) -> dict[str, int]:
    """Return the limits of `generate` that count the prompt, for one that is shorter.

    Args:
        given: arguments of `generate`.
        configs: generation configs, the first one that says something holds.
        dropped: how much shorter.
    """
    limits = {}
    for limit, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if given.get(limit) is not None:
            limits[limit] = given[limit] - dropped
            continue
        # What counts new tokens alone goes first.
        if given.get(new) or any(getattr(config, new, None) for config in configs):
            continue
        found = [getattr(config, limit, None) for config in configs]
        total = next((value for value in found if value), None)
        # Some versions have a default, which counts new tokens.
        plain: Any = GenerationConfig()  # type: ignore[no-untyped-call]
        if total is not None and total != getattr(plain, limit):
            limits[limit] = total - dropped
    return limits


def _mask_of_padding(ids: Tensor, given: Mapping[str, Any], *configs: Any) -> Tensor:
    """Return the attention mask that `generate` takes for prompts without one, [B, S].

    Args:
        ids: [B, S].
        given: arguments of `generate`.
        configs: generation configs, the first one that says something holds.
    """

    def setting(name: str) -> Any:
        if name in given:
            return given[name]
        values = [getattr(config, name, None) for config in configs]
        return next((value for value in values if value is not None), None)

    pad, end = setting("pad_token_id"), setting("eos_token_id")
    if pad is None or pad in (end if isinstance(end, Sequence) else [end]):
        return torch.ones_like(ids)
    mask: Tensor = ids.ne(pad).long()
    return mask


def _with_prompt(output: Any, ids: Tensor, length: int) -> Any:
    """Put the caller's prompts in the place of the shortened ones, `length` tokens long."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    prompts = ids.repeat_interleave(len(sequences) // len(ids), dim=0).to(sequences.device)
    whole = torch.cat([prompts, sequences[:, length:]], dim=1)
    if isinstance(output, Tensor):
        return whole
    output.sequences = whole
    return output
