"""Attaching a Cacher to a tower, its streams, and taking it off again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from stc_stream.cacher.config import CacherConfig
from stc_stream.cacher.layer import Batch, QueryValueProjection, Rows, Selective, run_layer
from stc_stream.cacher.record import Recording
from stc_stream.cacher.references import FrameKind, ReferencePool
from stc_stream.cacher.schedule import schedule
from stc_stream.towers import Tower, TowerLayer, read_tower

DEFAULT_STREAM = "default"
"""The stream of every row when no streams are named."""


def attach_cacher(model: nn.Module, config: CacherConfig | None = None) -> Cacher:
    """Make a vision tower reuse what did not change between frames, until detached.

    The tower is called as before; rows of a batch are consecutive frames of one stream, or of the
    streams that `Cacher.streams` names. Attached, the tower is for inference: its layers run
    without gradients, without dropout and without attention maps. Only this instance is changed.

    Args:
        model: a vision tower that can be read (SigLIP), or a model that holds exactly one.
        config: how much to recompute and how often; None: `CacherConfig()`.

    Returns:
        The Cacher, also a context manager that detaches on leaving.

    Raises:
        TypeError: no tower that can be read in `model` (names the families that can), or one
            whose layers compute something else than their weights say (another patch, an adapter
            or a hook on a query or value projection); `config` is not a `CacherConfig`.
        ValueError: several towers in `model`, or one that has a Cacher.

    Source: arXiv 2512.00891, STC-Cacher.
    """
    if config is None:
        config = CacherConfig()
    if not isinstance(config, CacherConfig):
        raise TypeError(f"config must be a CacherConfig, but is a {type(config).__name__}")
    return Cacher(read_tower(model), config)


@dataclass(frozen=True)
class CacherStats:
    """What a Cacher has done since it was attached, and what it holds now.

    Attributes:
        frames: frames run, refresh frames included.
        refreshes: frames computed whole.
        tokens_recomputed: tokens computed, a frame's T on a refresh and k on a selective one
            (in each layer as many).
        tokens_reused: tokens taken from a reference.
        streams: streams known, each with its frame count.
        bytes: bytes of references held, over all layers and streams.
    """

    frames: int
    refreshes: int
    tokens_recomputed: int
    tokens_reused: int
    streams: int
    bytes: int


class Cacher:
    """A tower's Cacher: made by `attach_cacher`, in effect until `detach`.

    One forward runs at a time: threads that share the tower wait for each other. `streams`,
    `paused` and `record` hold for the thread (or asyncio task) that entered them.

    Attributes:
        config: the settings.
        tower: the tower as it was read.
    """

    def __init__(self, tower: Tower, config: CacherConfig) -> None:
        self.config = config
        self.tower = tower
        self._lock = threading.RLock()
        self._streams: dict[Hashable, _Stream] = {}
        self._pools: dict[FrameKind, ReferencePool] = {}
        self._done = CacherStats(0, 0, 0, 0, 0, 0)
        self._projections = tuple(
            QueryValueProjection(layer.query, layer.value) for layer in tower.layers
        )
        self._patches = self._patch()

    @property
    def stats(self) -> CacherStats:
        """Counts since attaching, and the streams and bytes held now."""
        with self._lock:
            held = sum(pool.bytes for pool in self._pools.values())
            return replace(self._done, streams=len(self._streams), bytes=held)

    @contextmanager
    def streams(self, names: Sequence[Hashable]) -> Iterator[None]:
        """Name the stream of each row of the batches run inside; in time order within a stream.

        Args:
            names: one hashable name a row; a batch of another number of rows is a ValueError.
        """
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise TypeError(f"streams must be a list of one name a row, but is {names!r}")
        for name in names:
            if not isinstance(name, Hashable):
                raise TypeError(f"streams must hold hashable names, but holds {name!r}")
        with self._scoped(streams=tuple(names)):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run the tower densely inside, as if not attached; streams and stats stay as they are."""
        with self._scoped(paused=True):
            yield

    @contextmanager
    def record(self) -> Iterator[Recording]:
        """Record which tokens each layer recomputed; the last forward inside is kept."""
        recording = Recording()
        with self._scoped(recording=recording):
            yield recording

    def reset(self, *streams: Hashable) -> None:
        """Forget the named streams, or all when none is named: each starts anew with a refresh.

        Raises:
            ValueError: a stream that is not known; nothing is forgotten then.
        """
        with self._lock:
            self._refuse_inside_forward("reset")
            for stream in streams:
                if stream not in self._streams:
                    known = ", ".join(map(repr, self._streams)) or "none"
                    raise ValueError(f"no stream is named {stream!r}; streams known: {known}")
            for stream in streams or tuple(self._streams):
                self._release(self._streams.pop(stream))

    def detach(self) -> None:
        """Give the tower back as it was and let go of all references; again is harmless.

        Raises:
            RuntimeError: something else has replaced a forward that the Cacher had put in place.
        """
        with self._lock:
            self._refuse_inside_forward("detach")
            for module, forward, _ in self._patches:
                if module.__dict__.get("forward") is not forward:
                    raise RuntimeError(
                        f"the forward of {type(module).__name__} was replaced after the Cacher "
                        "was attached: undo that first, then detach"
                    )
            for module, _, before in self._patches:
                if before is None:
                    del module.forward
                else:
                    module.forward = before
            self._patches = ()
            self._streams.clear()
            self._pools.clear()
            for projection in self._projections:
                projection.clear()

    def __enter__(self) -> Cacher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = f"{len(self._streams)} streams" if self._patches else "detached"
        return (
            f"<Cacher of a {self.tower.family} tower, {len(self.tower.layers)} layers of "
            f"{self.tower.width}, {self.config}, {state}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a tower with a Cacher can't be copied or pickled: detach the Cacher first")

    def _patch(self) -> tuple[_Patch, ...]:
        encoder = self.tower.encoder
        if isinstance(encoder.forward, _EncoderForward):
            raise ValueError("the tower has a Cacher already: detach that one first")
        for number, layer in enumerate(self.tower.layers):
            for name, module in _bypassed(layer):
                change = _change(module)
                if change is not None:
                    raise TypeError(
                        f"{name} of the tower's layer {number} has {change}, which a Cacher would "
                        "bypass: merge or remove it first"
                    )
        self._encode_densely: Callable[..., Any] = encoder.forward
        self._layers_densely = [layer.module.forward for layer in self.tower.layers]
        patches = [_Patch(encoder, _EncoderForward(self), encoder.__dict__.get("forward"))]
        for number, layer in enumerate(self.tower.layers):
            patches.append(_Patch(layer.module, partial(self._run_layer, number), None))
        for module, forward, _ in patches:
            module.forward = forward
        return tuple(patches)

    def _encode(self, *args: Any, **kwargs: Any) -> Any:
        scope = self._scope()
        if scope.paused:
            return self._encode_densely(*args, **kwargs)
        if scope.batch is not None:
            raise RuntimeError("the tower was called again from inside its own forward")
        args, kwargs, frames = self._checked(args, kwargs)
        with self._lock, torch.no_grad():
            names = scope.streams
            if names is None:
                names = (DEFAULT_STREAM,) * frames.shape[0]
            if len(names) != frames.shape[0]:
                raise ValueError(
                    f"streams must name each row of the batch: {len(names)} names were given, "
                    f"but the batch has {frames.shape[0]} rows"
                )
            try:
                batch = self._begin(names, frames, scope.recording is not None)
                with self._scoped(batch=batch):
                    output = self._encode_densely(*args, **kwargs)
            except BaseException:
                # Some layers may hold the new reference and others the old one.
                self._forget_references(names)
                raise
            self._commit(names, batch)
            if scope.recording is not None:
                scope.recording.layers = tuple(batch.records or ())
        return output

    def _run_layer(self, number: int, *args: Any, **kwargs: Any) -> Any:
        scope = self._scope()
        batch = scope.batch
        if batch is None or scope.paused:
            return self._layers_densely[number](*args, **kwargs)
        x = args[0] if args else kwargs["hidden_states"]
        if batch.rows == 0:
            return x
        return run_layer(self.tower.layers[number], number, self._projections[number], batch, x)

    def _checked(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
        """Refuse what a compressed forward can't do; return the call with contiguous frames."""
        named = dict(zip(("inputs_embeds", "attention_mask"), args, strict=False)) | kwargs
        frames: Tensor = named["inputs_embeds"]
        if named.get("attention_mask") is not None:
            raise ValueError("attention_mask must be None while a Cacher is attached")
        wants_attentions = named.get("output_attentions")
        if wants_attentions is None:
            settings = getattr(self.tower.encoder, "config", None)
            wants_attentions = getattr(settings, "output_attentions", False)
        if wants_attentions:
            raise ValueError(
                "output_attentions must be False while a Cacher is attached: "
                "a selective frame has no whole attention map"
            )
        for number, layer in enumerate(self.tower.layers):
            if layer.module.training and layer.attention_dropout > 0:
                raise ValueError(
                    f"the tower must not drop out while a Cacher is attached, but layer {number} "
                    f"is in training mode with attention dropout {layer.attention_dropout}: "
                    "call eval()"
                )
        if frames.dim() != 3:
            raise ValueError(
                f"the encoder's input must have shape [frames, tokens, channels], but has shape "
                f"{list(frames.shape)}"
            )
        if frames.dtype not in _DTYPES:
            raise TypeError(
                f"the tower must compute in float32, float16 or bfloat16 while a Cacher is "
                f"attached, but computes in {str(frames.dtype).removeprefix('torch.')}"
            )
        # Patch embeddings come transposed, which every layer after would pay for.
        frames = frames.contiguous()
        if args:
            return (frames, *args[1:]), kwargs, frames
        return args, {**kwargs, "inputs_embeds": frames}, frames

    def _begin(self, names: Sequence[Hashable], frames: Tensor, recording: bool) -> Batch:
        """Decide what is done with each row and give each new reference its place."""
        kind = _kind(frames)
        pool = self._pools.setdefault(kind, ReferencePool(kind, len(self.tower.layers)))
        plan = schedule(
            names,
            {name: stream.frames for name, stream in self._streams.items()},
            {name for name, stream in self._streams.items() if stream.pool is pool},
            self.config.refresh_interval,
        )
        for name in plan.references:
            stream = self._streams.setdefault(name, _Stream())
            # With every frame a refresh nothing would ever read a reference.
            if stream.pool is not pool and self.config.refresh_interval > 1:
                self._release(stream)
                stream.pool, stream.slot = pool, pool.acquire()
        if pool.in_use == 0:
            del self._pools[kind]
        stored = tuple(self._streams[names[row]].slot for row in plan.stored)
        return Batch(
            rows=frames.shape[0],
            tokens=kind.tokens,
            updated=self.config.updated_tokens(kind.tokens),
            metric=self.config.metric,
            refresh=Rows(plan.refresh, kind.device) if plan.refresh else None,
            selective=tuple(
                Selective(Rows(rows, kind.device), is_stored, _index(sources, kind.device))
                for rows, is_stored, sources in (
                    (plan.stored, True, stored),
                    (plan.joined, False, plan.joined_reference),
                )
                if rows
            ),
            pool=pool,
            written=tuple(
                (place, self._streams[name].slot)
                for name, place in plan.references.items()
                if self._streams[name].pool is pool
            ),
            refreshes=len(plan.refresh),
            records=[] if recording else None,
        )

    def _commit(self, names: Sequence[Hashable], batch: Batch) -> None:
        for name in names:
            self._streams[name].frames += 1
        selective = batch.rows - batch.refreshes
        done = self._done
        self._done = replace(
            done,
            frames=done.frames + batch.rows,
            refreshes=done.refreshes + batch.refreshes,
            tokens_recomputed=done.tokens_recomputed
            + batch.refreshes * batch.tokens
            + selective * batch.updated,
            tokens_reused=done.tokens_reused + selective * (batch.tokens - batch.updated),
        )

    def _forget_references(self, names: Sequence[Hashable]) -> None:
        for name in set(names):
            stream = self._streams.get(name)
            if stream is not None:
                self._release(stream)
                if stream.frames == 0:
                    del self._streams[name]

    def _refuse_inside_forward(self, what: str) -> None:
        if self._scope().batch is not None:
            raise RuntimeError(f"{what} was called from inside the tower's own forward")

    def _release(self, stream: _Stream) -> None:
        """Take a stream's reference away; the last to leave a pool frees its memory."""
        if stream.pool is not None:
            stream.pool.release(stream.slot)
            if stream.pool.in_use == 0:
                self._pools.pop(stream.pool.kind, None)
            stream.pool = None

    def _scope(self) -> _Scope:
        return _SCOPES.get().get(id(self), _Scope())

    @contextmanager
    def _scoped(self, **changes: Any) -> Iterator[None]:
        scope = replace(self._scope(), **changes)
        token = _SCOPES.set(MappingProxyType({**_SCOPES.get(), id(self): scope}))
        try:
            yield
        finally:
            _SCOPES.reset(token)


@dataclass(frozen=True, eq=False)
class _Scope:
    """What holds for one Cacher in this thread or task: its context managers, and its forward."""

    streams: tuple[Hashable, ...] | None = None
    paused: bool = False
    recording: Recording | None = None
    batch: Batch | None = None


# One variable for all Cachers: a variable of each one's own would never be collected.
_SCOPES: ContextVar[Mapping[int, _Scope]] = ContextVar("stc_cachers", default=MappingProxyType({}))
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(eq=False)
class _Stream:
    """A stream's frames so far, and where its reference is; no pool: it has none."""

    frames: int = 0
    pool: ReferencePool | None = None
    slot: int = 0


class _Patch(NamedTuple):
    """A module, the forward put in its place, and the one the instance had of its own before."""

    module: nn.Module
    forward: Callable[..., Any]
    before: Callable[..., Any] | None


def _bypassed(layer: TowerLayer) -> tuple[tuple[str, nn.Module], ...]:
    """Return the modules of a layer whose own forward a compressed layer does without."""
    return (
        ("the module", layer.module),
        ("the attention", layer.attention),
        ("the query projection", layer.query),
        ("the value projection", layer.value),
    )


def _change(module: nn.Module) -> str | None:
    """Say what makes a module compute something else than its weights say; None: nothing."""
    if "forward" in module.__dict__:
        return "a forward of its own, put there by another patch (accelerate's offloading, say)"
    if isinstance(module, nn.Linear):
        if type(module).forward is not nn.Linear.forward:
            return f"a forward of its own, {type(module).__name__}'s (an adapter's, say)"
        if module._forward_hooks or module._forward_pre_hooks:
            return "forward hooks"
    return None


class _EncoderForward:
    """The encoder's forward while a Cacher is attached; `torch.compile` leaves it as it is."""

    def __init__(self, cacher: Cacher) -> None:
        self._cacher = cacher
        disable: Callable[..., Callable[..., Any]] = torch.compiler.disable
        self._forward = disable(cacher._encode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)


def _kind(frames: Tensor) -> FrameKind:
    device = frames.device
    projected = frames.dtype
    if torch.is_autocast_enabled(device.type):
        projected = torch.get_autocast_dtype(device.type)
    return FrameKind(frames.shape[1], frames.shape[2], frames.dtype, projected, device)


def _index(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)
