"""Attaching a Cacher to a tower, its streams, and taking it off again."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import nn

from stc_stream.cacher.call import read_grids
from stc_stream.cacher.change import FrameDiff, moving_camera
from stc_stream.cacher.config import CacherConfig
from stc_stream.cacher.forward import Forward
from stc_stream.cacher.graphs import GraphStore
from stc_stream.cacher.modality import Modality, model_paths
from stc_stream.cacher.patching import Patches
from stc_stream.cacher.queues import Turns
from stc_stream.cacher.record import Recording
from stc_stream.cacher.references import FrameKind, LayerShape, ReferencePool
from stc_stream.cacher.refusals import (
    refuse_copies,
    refuse_tracing,
    refuse_unnamed_rows,
    refuse_unnamed_videos,
)
from stc_stream.cacher.replay import PlanGraphs
from stc_stream.cacher.schedule import RefreshScheduler
from stc_stream.cacher.scope import Scopes
from stc_stream.cacher.selfcheck import LayerDiffers, SelfCheck
from stc_stream.cacher.versions import TowerVersions, way_of
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
        rejected: refresh frames that were not finite, so that nothing was kept of them, as far as
            the device has told.
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
        self._scopes = Scopes()
        self._lock = threading.RLock()
        self._turns = Turns()
        self._running = False
        self._named = False
        self._warned = False
        self._recomputed = 0
        self._reused = 0
        shapes = [LayerShape(x.key.out_features, x.value.out_features) for x in tower.layers]

        def make_pool(kind: FrameKind) -> ReferencePool:
            int8 = config.reference_keys == "int8"
            return ReferencePool(kind, shapes, tower.prefix_tokens, int8, config.cuda_graph)

        self._scheduler = RefreshScheduler(config, make_pool)
        self._graphs = GraphStore() if config.cuda_graph else None
        self._patches: Patches | None = Patches(
            tower, paths, self._encode, self._run_layer, self._given
        )
        self._layers_densely = self._patches.layers_densely
        self._versions = TowerVersions(tower)
        self._check_layers: SelfCheck | None = None
        if config.self_check:
            self._check_layers = SelfCheck(tower, self._layers_densely)
        watches = config.refresh_on_change is not None or _watches_change(config)
        self._pixels = FrameDiff(tower.embedding, keep=watches)

    @property
    def stats(self) -> CacherStats:
        """Counts since attaching, and the streams and bytes held now."""
        with self._lock:
            return CacherStats(
                **vars(self._scheduler.counts),
                tokens_recomputed=self._recomputed,
                tokens_reused=self._reused,
                streams=len(self._scheduler),
                bytes=self._scheduler.bytes,
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
        with self._scopes.changed(streams=tuple(names)):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run the tower densely inside, as if not attached; streams and stats stay as they are."""
        with self._scopes.changed(paused=True):
            yield

    @contextmanager
    def record(self) -> Iterator[Recording]:
        """Record which tokens each layer recomputed; the last forward inside is kept."""
        recording = Recording()
        with self._scopes.changed(recording=recording):
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
                if stream not in self._scheduler:
                    known = ", ".join(map(repr, self._scheduler)) or "none"
                    raise ValueError(f"no stream is named {stream!r}; streams known: {known}")
            if streams:
                self._scheduler.forget(*dict.fromkeys(streams))
                return
            self._scheduler.clear()
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
            if self._patches is not None:
                self._patches.undo()
            self._patches = None
            self._scheduler.clear()
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
        state = f"{len(self._scheduler)} streams" if self._patches is not None else "detached"
        return (
            f"<Cacher of a {self.tower.family} tower, {len(self.tower.layers)} layers of "
            f"{self.tower.width}, {self.config}, {state}>"
        )

    def __reduce__(self) -> NoReturn:
        refuse_copies()

    def _encode(
        self,
        densely: Callable[..., Any],
        signature: inspect.Signature,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run an entry of the tower, whose layers find their way here."""
        scope = self._scopes.current
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
        grids = read_grids(self.tower, signature, args, kwargs)
        if scope.streams is None and self._named:
            refuse_unnamed_rows()
        device = self.tower.layers[0].key.weight.device
        with self._lock, torch.no_grad(), self._turns.next(device):
            # The lock lets its own thread in, and a fresh context does not know of the forward.
            if self._running:
                raise RuntimeError("the tower was called again from inside its own forward")
            graphs = None
            if self._graphs is not None:
                way = way_of(self.tower, densely, args, kwargs)
                graphs = PlanGraphs(self.tower, self._graphs, self._versions, way)
            forward = Forward(
                self.tower,
                self._scheduler,
                partial(_names, scope.streams, grids),
                None if grids is None else [(h, w) for t, h, w in grids for _ in range(t)],
                self._pixels,
                graphs,
                scope.recording,
                self._check_layers,
            )
            self._running = True
            try:
                with self._scopes.changed(forward=forward, within=densely):
                    output = densely(*args, **kwargs)
                forward.commit()
            except BaseException as error:
                forward.roll_back()
                if isinstance(error, LayerDiffers):
                    self.detach()
                raise
            finally:
                self._running = False
            self._drop_done_check()
            self._named = self._named or scope.streams is not None
            self._recomputed += forward.computed
            self._reused += forward.tokens - forward.computed
        return output

    def _drop_done_check(self) -> None:
        """Let go of the check once each layer has been compared."""
        check = self._check_layers
        if check is not None and not any(map(check.wants, range(len(self.tower.layers)))):
            self._check_layers = None

    def _run_layer(self, number: int, *args: Any, **kwargs: Any) -> Any:
        scope = self._scopes.current
        if scope.forward is None or scope.paused:
            return self._layers_densely[number](*args, **kwargs)
        output = scope.forward.layer(number, args, kwargs)
        return (output,) if self.tower.layers[number].returns_tuple else output

    def _given(self, modality: Modality, videos: int) -> AbstractContextManager[None]:
        """Return what a method of the whole model is run in, which says what the rows are."""
        scope = self._scopes.current
        # Methods for videos may go on to the one for pictures.
        if scope.modality == "video":
            return nullcontext()
        if videos > 1 and scope.streams is None and not scope.paused:
            refuse_unnamed_videos(videos)
        return self._scopes.changed(modality=modality)

    def _warn_of_images(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "what a whole model is given as images is computed densely, because tiles and "
                "images in one batch need not be alike. If they are frames of a video, name their "
                "streams with Cacher.streams; docs/cacher.md, Images and tiles",
                stacklevel=3,
            )

    def _refuse_inside_forward(self, what: str) -> None:
        if self._scopes.current.forward is not None:
            raise RuntimeError(f"{what} was called from inside the tower's own forward")


def _watches_change(config: CacherConfig) -> bool:
    return bool(getattr(config.policy, "watches_change", False))


def _names(
    given: Sequence[Hashable] | None,
    grids: Sequence[tuple[int, int, int]] | None,
    frames: int,
) -> Sequence[Hashable]:
    """Return the stream of each of `frames` frames."""
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
