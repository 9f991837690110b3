"""Attaching a Cacher to a tower, its streams, and taking it off again."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType, MethodType, TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from stc_stream.cacher.change import PixelWatch, moving_camera
from stc_stream.cacher.config import CacherConfig
from stc_stream.cacher.forward import Forward
from stc_stream.cacher.graphs import GraphStore
from stc_stream.cacher.modality import Modality, ModelPath, model_paths
from stc_stream.cacher.record import Recording
from stc_stream.cacher.references import FrameKind, LayerShape, ReferencePool
from stc_stream.cacher.refusals import Attached, refuse_copies, refuse_tracing
from stc_stream.cacher.schedule import Streams
from stc_stream.cacher.selfcheck import LayerDiffers, SelfCheck
from stc_stream.stream_names import DEFAULT_STREAM, check_names
from stc_stream.towers import Entry, TowerSpec, read_tower


def attach_cacher(model: nn.Module, config: CacherConfig | None = None) -> Cacher:
    """Make a vision tower reuse what did not change between frames, until detached.

    The tower is called as before; rows of a batch are consecutive frames of one stream, or of the
    streams that `Cacher.streams` names. What a whole model takes for images
    (`get_image_features`) is computed densely unless streams are named. Attached, the
    tower is for inference: its layers run without gradients, without dropout and without
    attention maps. Only this instance is changed.

    Args:
        model: a vision tower that can be read (docs/towers.md lists the families), or a model that
            holds exactly one.
        config: how much to recompute and how often; None: `CacherConfig()`.

    Returns:
        The Cacher, also a context manager that detaches on leaving.

    Raises:
        TypeError: no tower that can be read in `model` (names the families that can), or one
            whose layers compute something else than their weights say (another patch, one module
            in several places); `config` is not a `CacherConfig`. What only shows when the layers
            run, the first forward raises, and detaches (`CacherConfig.self_check`).
        ValueError: several towers in `model`, or one that has a Cacher.

    Source: arXiv 2512.00891, STC-Cacher.
    """
    if config is None:
        config = CacherConfig()
    if not isinstance(config, CacherConfig):
        raise TypeError(f"config must be a CacherConfig, but is a {type(config).__name__}")
    tower = read_tower(model)
    return Cacher(tower, config, model_paths(model, tower))


@dataclass(frozen=True)
class CacherStats:
    """What a Cacher has done since it was attached, and what it holds now.

    Attributes:
        frames: frames run, refresh frames included.
        refreshes: frames computed whole.
        tokens_recomputed: tokens computed, a frame's T on a refresh and k on a selective one, and
            the prefix; where `threshold` chooses k layer by layer, on average over the layers.
        tokens_reused: tokens taken from a reference.
        streams: streams known, each with its frame count.
        bytes: bytes of references held, over all layers and streams.
        changes: refreshes that `refresh_on_change` asked for.
        forbidden: refreshes that `max_refresh_ratio` forbade.
        restarts: references dropped because their stream's frames came in another size, dtype or
            on another device.
        evictions: streams forgotten for others, for `max_streams` or `max_bytes`.
        rejected: refresh frames that were not finite, so that nothing was kept of them.
    """

    frames: int
    refreshes: int
    tokens_recomputed: int
    tokens_reused: int
    streams: int
    bytes: int
    changes: int = 0
    forbidden: int = 0
    restarts: int = 0
    evictions: int = 0
    rejected: int = 0

    @property
    def note(self) -> str | None:
        """What a user should know: that there is little to save, where a camera moves."""
        return moving_camera(self.frames, self.refreshes, self.changes)

    def __str__(self) -> str:
        note = self.note
        return repr(self) if note is None else f"{self!r}: {note}"


class Cacher:
    """A tower's Cacher: made by `attach_cacher`, in effect until `detach`.

    One forward runs at a time: threads that share the tower wait for each other. `streams`,
    `paused` and `record` hold for the thread (or asyncio task) that entered them.

    Attributes:
        config: the settings.
        tower: the tower as it was read.
    """

    def __init__(
        self,
        tower: TowerSpec,
        config: CacherConfig,
        paths: Sequence[tuple[Entry, Modality]] = (),
    ) -> None:
        self.config = config
        self.tower = tower
        self._lock = threading.RLock()
        self._last_forward: torch.cuda.Event | None = None
        self._running = False
        self._named = False
        self._warned = False
        self._recomputed = 0
        self._reused = 0
        shapes = [LayerShape(x.key.out_features, x.value.out_features) for x in tower.layers]

        def make_pool(kind: FrameKind) -> ReferencePool:
            int8 = config.reference_keys == "int8"
            return ReferencePool(kind, shapes, tower.prefix_tokens, int8, config.cuda_graph)

        self._streams = Streams(config, make_pool)
        self._graphs = GraphStore() if config.cuda_graph else None
        self._patches = self._patch(paths)
        self._check_layers = SelfCheck(tower, self._layers_densely) if config.self_check else None
        watches = config.refresh_on_change is not None or _watches_change(config)
        self._pixels = PixelWatch(tower.embedding, keep=watches)

    @property
    def stats(self) -> CacherStats:
        """Counts since attaching, and the streams and bytes held now."""
        with self._lock:
            return CacherStats(
                **vars(self._streams.counts),
                tokens_recomputed=self._recomputed,
                tokens_reused=self._reused,
                streams=len(self._streams),
                bytes=self._streams.bytes,
            )

    @contextmanager
    def streams(self, names: Sequence[Hashable]) -> Iterator[None]:
        """Name the stream of each row of the batches run inside; in time order within a stream.

        Once streams have been named, in whichever thread, a forward without names is a ValueError
        until `reset()`.

        Args:
            names: one hashable name a row, that compares by value; a batch of another number of
                rows is a ValueError. Where frames come packed, as Qwen's do, one a frame (temporal
                patch) or one a row of `grid_thw`.

        Raises:
            TypeError: not a list of names, or one that compares by identity, as a tensor does.
        """
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise TypeError(f"streams must be a list of one name a row, but is {names!r}")
        check_names(names)
        self._named = True
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
            TypeError: a name that compares by identity.
        """
        check_names(streams)
        with self._lock:
            self._refuse_inside_forward("reset")
            for stream in streams:
                if stream not in self._streams:
                    known = ", ".join(map(repr, self._streams)) or "none"
                    raise ValueError(f"no stream is named {stream!r}; streams known: {known}")
            if streams:
                self._streams.forget(*dict.fromkeys(streams))
                return
            self._streams.clear()
            self._named = False
            if self._graphs is not None:
                self._graphs.clear()

    def detach(self) -> None:
        """Give the tower back as it was and let go of all references; again is harmless.

        Raises:
            RuntimeError: something else has replaced a forward that the Cacher had put in place.
        """
        with self._lock:
            self._refuse_inside_forward("detach")
            for patch in self._patches:
                if not patch.in_place:
                    raise RuntimeError(
                        f"the {patch.method} of {type(patch.module).__name__} was replaced after "
                        "the Cacher was attached: undo that first, then detach"
                    )
            for patch in self._patches:
                patch.undo()
            self._patches = ()
            self._streams.clear()
            self._pixels.remove()
            if self._graphs is not None:
                self._graphs.clear()

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
        refuse_copies()

    def _patch(self, paths: Sequence[tuple[Entry, Modality]]) -> tuple[_Patch, ...]:
        entries = self.tower.entries
        if any(isinstance(_method(entry), _Entered) for entry in entries):
            raise ValueError("the tower has a Cacher already: detach that one first")
        self._refuse_repeated_layers()
        for number, layer in enumerate(self.tower.layers):
            for name, module in layer.unread():
                change = _change(module)
                if change is not None:
                    raise TypeError(
                        f"{name} of the tower's layer {number} has {change}, which a Cacher would "
                        "bypass: merge or remove it first"
                    )
        self._layers_densely = [layer.module.forward for layer in self.tower.layers]
        patches = [
            _Patch(entry.module, entry.method, _Entered(self, _method(entry))) for entry in entries
        ]
        for number, layer in enumerate(self.tower.layers):
            run = Attached(partial(self._run_layer, number))
            patches.append(_Patch(layer.module, "forward", run))
        for path, modality in paths:
            method = ModelPath(_method(path), modality, self._given)
            patches.append(_Patch(path.module, path.method, method))
        for patch in patches:
            patch.apply()
        return tuple(patches)

    def _refuse_repeated_layers(self) -> None:
        places: dict[nn.Module, list[int]] = {}
        for number, layer in enumerate(self.tower.layers):
            places.setdefault(layer.module, []).append(number)
        for numbers in places.values():
            if len(numbers) > 1:
                raise TypeError(
                    f"layers {', '.join(map(str, numbers))} of the tower are one module, whose "
                    "calls a Cacher can't tell apart: give each place a copy of its own "
                    "(copy.deepcopy)"
                )

    def _encode(
        self,
        densely: Callable[..., Any],
        signature: inspect.Signature,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run an entry of the tower, whose layers find their way here."""
        scope = self._scope()
        if scope.forward is not None and not scope.paused:
            if scope.within is densely:
                raise RuntimeError("the tower was called again from inside its own forward")
            return densely(*args, **kwargs)
        unnamed_images = scope.modality == "images" and scope.streams is None
        if scope.paused or unnamed_images:
            if not scope.paused:
                self._warn_of_images()
            output = densely(*args, **kwargs)
            # After it: an entry may hold the embedding too.
            self._pixels.forget()
            return output
        refuse_tracing()
        grids = self._check(signature, args, kwargs)
        if scope.streams is None:
            self._refuse_without_names()
        with self._lock, torch.no_grad(), self._in_turn():
            # The lock lets its own thread in, and a fresh context does not know of the forward.
            if self._running:
                raise RuntimeError("the tower was called again from inside its own forward")
            forward = Forward(
                self.tower,
                self.config,
                self._streams,
                partial(_names, scope.streams, grids),
                None if grids is None else [(h, w) for t, h, w in grids for _ in range(t)],
                self._pixels,
                self._graphs,
                scope.recording,
                self._check_layers,
            )
            self._running = True
            try:
                with self._scoped(forward=forward, within=densely):
                    output = densely(*args, **kwargs)
            except BaseException as error:
                forward.roll_back()
                if isinstance(error, LayerDiffers):
                    self.detach()
                raise
            finally:
                self._running = False
            forward.commit()
            self._named = self._named or scope.streams is not None
            self._recomputed += forward.computed
            self._reused += forward.tokens - forward.computed
        return output

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Have the device finish the last forward first, which threads may run on other queues."""
        if self._last_forward is not None:
            self._last_forward.wait()
        try:
            yield
        finally:
            if self.tower.layers[0].key.weight.is_cuda:
                self._last_forward = torch.cuda.Event()
                self._last_forward.record()

    def _run_layer(self, number: int, *args: Any, **kwargs: Any) -> Any:
        scope = self._scope()
        if scope.forward is None or scope.paused:
            return self._layers_densely[number](*args, **kwargs)
        output = scope.forward.layer(number, args, kwargs)
        return (output,) if self.tower.layers[number].returns_tuple else output

    def _check(
        self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[tuple[int, int, int]] | None:
        """Refuse what a compressed forward can't do; return the grids of packed frames."""
        bound = signature.bind_partial(*args, **kwargs)
        named = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        for mask in ("attention_mask", "attn_mask"):
            if named.get(mask) is not None:
                raise ValueError(f"{mask} must be None while a Cacher is attached")
        wants_attentions = named.get("output_attentions")
        if wants_attentions is None:
            settings = getattr(self.tower.encoder, "config", None)
            wants_attentions = getattr(settings, "output_attentions", False)
        if wants_attentions:
            raise ValueError(
                "output_attentions must be False while a Cacher is attached: "
                "a selective frame has no whole attention map"
            )
        if named.get("is_causal"):
            raise ValueError("is_causal must be False while a Cacher is attached")
        for number, layer in enumerate(self.tower.layers):
            if layer.module.training and layer.dropout > 0:
                raise ValueError(
                    f"the tower must not drop out while a Cacher is attached, but layer {number} "
                    f"is in training mode with dropout {layer.dropout}: call eval()"
                )
        if not self.tower.packed:
            return None
        grids = named.get("grid_thw")
        if not isinstance(grids, Tensor):
            raise ValueError("grid_thw must be given while a Cacher is attached")
        return [(int(t), int(h), int(w)) for t, h, w in grids.tolist()]

    def _given(self, modality: Modality, videos: int) -> AbstractContextManager[None]:
        """Return what a method of the whole model is run in, which says what the rows are."""
        scope = self._scope()
        # Methods for videos may go on to the one for pictures.
        if scope.modality == "video":
            return nullcontext()
        if videos > 1 and scope.streams is None and not scope.paused:
            raise ValueError(
                f"the frames of {videos} videos in one call must have streams: name each frame's "
                "with Cacher.streams, or compute them densely inside Cacher.paused"
            )
        return self._scoped(modality=modality)

    def _warn_of_images(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "what a whole model is given as images is computed densely, because tiles and "
                "images in one batch need not be alike. If they are frames of a video, name their "
                "streams with Cacher.streams; docs/cacher.md, Images and tiles",
                stacklevel=3,
            )

    def _refuse_without_names(self) -> None:
        if self._named:
            raise ValueError(
                "streams must name each row of the batch, because streams have been named since "
                "the last reset(), and rows without a name would spoil each other. Names hold for "
                "the thread or task that entered Cacher.streams: in an executor's thread enter it "
                "there, or run the forward by asyncio.to_thread or contextvars.copy_context().run"
            )

    def _refuse_inside_forward(self, what: str) -> None:
        if self._scope().forward is not None:
            raise RuntimeError(f"{what} was called from inside the tower's own forward")

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
    forward: Forward | None = None
    within: Callable[..., Any] | None = None
    modality: Modality | None = None


# One variable for all Cachers: a variable of each one's own would never be collected.
_SCOPES: ContextVar[Mapping[int, _Scope]] = ContextVar("stc_cachers", default=MappingProxyType({}))


class _Patch:
    """A method put in the place of a module's own, on this instance alone."""

    def __init__(self, module: nn.Module, method: str, replacement: Callable[..., Any]) -> None:
        self.module = module
        self.method = method
        self.replacement = replacement
        self._before = module.__dict__.get(method)

    def apply(self) -> None:
        """Put it in place."""
        setattr(self.module, self.method, self.replacement)

    @property
    def in_place(self) -> bool:
        """Whether the instance still has it."""
        found = self.module.__dict__.get(self.method)
        # transformers 5.0 forgets what it wraps around a layer when a forward fails.
        while found is not self.replacement and _is_from_transformers(found):
            found = getattr(found, "__wrapped__", None)
        return found is self.replacement

    def undo(self) -> None:
        """Take it away; the instance has again what it had of its own."""
        if self._before is None:
            delattr(self.module, self.method)
        else:
            setattr(self.module, self.method, self._before)


class _Entered(Attached):
    """An entry of the tower while a Cacher is attached."""

    def __init__(self, cacher: Cacher, densely: Callable[..., Any]) -> None:
        signature = inspect.signature(densely)

        def run(*args: Any, **kwargs: Any) -> Any:
            return cacher._encode(densely, signature, args, kwargs)

        super().__init__(run)


def _is_from_transformers(function: object) -> bool:
    written_in = getattr(function, "__globals__", {}).get("__name__", "")
    return str(written_in).partition(".")[0] == "transformers"


def _method(entry: Entry) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(entry.module, entry.method)
    return method


def _change(module: nn.Module) -> str | None:
    """Say what makes a module compute something else than its weights say; None: nothing."""
    own = module.__dict__.get("forward")
    # transformers 5.0 leaves a module's own method there after collecting hidden states.
    if own is not None and own != MethodType(type(module).forward, module):
        return "a forward of its own, put there by another patch (accelerate's offloading, say)"
    if isinstance(module, nn.Linear):
        if type(module).forward is not nn.Linear.forward:
            return f"a forward of its own, {type(module).__name__}'s (an adapter's, say)"
        if module._forward_hooks or module._forward_pre_hooks:
            return "forward hooks"
        if not _computes_in_parts(module):
            return f"a weight of class {type(module.weight).__name__} that can't be cut into rows"
    return None


def _computes_in_parts(module: nn.Linear) -> bool:
    """Tell whether some rows of a weight, which may be quantized, can be computed with."""
    weight = module.weight
    if type(weight) in (Tensor, nn.Parameter):
        return True
    tokens = torch.zeros(1, module.in_features, dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            nn.functional.linear(tokens, weight[: module.out_features // 3])
    except Exception:
        # Each class of tensors raises its own error for what it does not know.
        return False
    return True


def _watches_change(config: CacherConfig) -> bool:
    return bool(getattr(config.policy, "watches_change", False))


def _names(
    given: Sequence[Hashable] | None,
    grids: Sequence[tuple[int, int, int]] | None,
    frames: int,
) -> Sequence[Hashable]:
    """Return the stream of each of so many frames."""
    if given is None:
        return (DEFAULT_STREAM,) * frames
    if grids is not None and len(given) == len(grids) != frames:
        return [name for name, (t, _, _) in zip(given, grids, strict=True) for _ in range(t)]
    if len(given) != frames:
        rows = f"{frames} rows" if grids is None else f"{frames} frames in {len(grids)} grids"
        raise ValueError(
            f"streams must name each row of the batch: {len(given)} names were given, "
            f"but the batch has {rows}"
        )
    return given
