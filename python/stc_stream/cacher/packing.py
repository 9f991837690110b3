"""How the frames of a batch lie in the tokens that layers are called with.

Most towers give their layers [frames, tokens, channels]. Those whose frames come in several sizes
pack them one after the other, [all tokens, channels].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stc_stream.cacher.attention import Positions
from stc_stream.cacher.call import FramePlace, LayerCall
from stc_stream.cacher.references import FrameKind, finite_frames

Grid = tuple[int, int]


class Packing:
    """The frames of a batch, and where each starts.

    Args:
        kinds: of each frame.
        starts: where each starts in packed tokens; None: they are not packed, and of one kind.
        prefix_tokens: tokens of a frame before its patches.

    Attributes:
        kinds: as given.
    """

    def __init__(
        self, kinds: Sequence[FrameKind], starts: Sequence[int] | None, prefix_tokens: int
    ) -> None:
        self.kinds = kinds
        self._starts = starts
        self._prefix = prefix_tokens
        self._positions: list[tuple[int, object, object, Positions]] = []

    @classmethod
    def read(
        cls,
        x: Tensor,
        prefix_tokens: int,
        grids: Sequence[Grid] | None,
        grid_of: Callable[[int, int], Grid | None],
    ) -> Packing:
        """Read how frames lie in the tokens that the first layer is called with.

        Args:
            x: the tokens.
            prefix_tokens: tokens of a frame before its patches.
            grids: rows and columns of each frame, where frames are packed; None: they are not.
            grid_of: (frames, patches) → rows and columns of frames that are not packed.

        Raises:
            ValueError: the tokens have another shape, or are on the meta device.
        """
        device = x.device
        if x.is_meta:
            raise ValueError(
                "the tower is on the meta device, where nothing is computed: load its weights, or "
                "detach the Cacher"
            )
        projected = x.dtype
        if torch.is_autocast_enabled(device.type):
            projected = torch.get_autocast_dtype(device.type)
        rest = (x.dtype, projected, device)
        expected = "[frames, tokens, channels]" if grids is None else "[tokens, channels]"
        if x.dim() != expected.count(",") + 1:
            raise ValueError(
                f"the encoder's input must have shape {expected}, but has shape {list(x.shape)}"
            )
        if grids is None:
            frames, tokens, channels = x.shape
            grid = grid_of(frames, tokens - prefix_tokens)
            return cls([FrameKind(tokens, channels, grid, *rest)] * frames, None, prefix_tokens)
        kinds = [FrameKind(h * w, x.shape[1], (h, w), *rest) for h, w in grids]
        starts = [0]
        for kind in kinds:
            starts.append(starts[-1] + kind.tokens)
        if starts[-1] != x.shape[0]:
            raise ValueError(
                f"grid_thw must name all tokens: it comes to {starts[-1]}, but there are "
                f"{x.shape[0]}"
            )
        return cls(kinds, starts[:-1], prefix_tokens)

    @property
    def patches(self) -> list[int]:
        """Patches of each frame."""
        return [kind.tokens - self._prefix for kind in self.kinds]

    def place(self, frame: int) -> FramePlace:
        """Return where a frame lies."""
        tokens = self.kinds[frame].tokens
        if self._starts is None:
            return FramePlace(slice(frame, frame + 1), 0, tokens)
        start = self._starts[frame]
        return FramePlace(slice(start, start + tokens), start, tokens)

    def take(self, frames: Sequence[int], tokens: Tensor) -> Tensor:
        """Return frames of one kind as [F, T, ..], a view where they lie side by side.

        Args:
            frames: which, ascending; all of them where frames are not packed.
            tokens: the batch's.
        """
        if self._starts is None:
            return tokens
        size, starts = self.kinds[frames[0]].tokens, [self._starts[frame] for frame in frames]
        first, end = starts[0], starts[-1] + size
        if end - first == size * len(starts):
            side_by_side: Tensor = tokens[first:end].unflatten(0, (len(starts), size))
            return side_by_side
        return torch.stack([tokens[start : start + size] for start in starts])

    def join(self, parts: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
        """Return the batch's tokens; undoes `take`.

        Args:
            parts: frames, and their tokens, [F, T, C]; together all frames of the batch.
        """
        if self._starts is None:
            return parts[0][1]
        if len(parts) == 1:
            return parts[0][1].flatten(0, 1)
        some = parts[0][1]
        packed = some.new_empty(sum(kind.tokens for kind in self.kinds), some.shape[-1])
        for frames, tokens in parts:
            for frame, own in zip(frames, tokens, strict=True):
                packed[self._starts[frame] :][: tokens.shape[1]] = own
        return packed

    def finite(self, tokens: Tensor) -> Tensor:
        """Tell of each frame whether all its tokens are finite: bool [frames]."""
        if self._starts is None:
            return finite_frames(tokens)
        frames = (self.take([frame], tokens) for frame in range(len(self.kinds)))
        return torch.cat([finite_frames(frame) for frame in frames])

    def positions(self, frames: Sequence[int], call: LayerCall) -> Positions:
        """Return where tokens of frames of one kind are, worked out once for what is called with.

        Raises:
            ValueError: packed frames whose layers are not told where windows of attention end, or
                attend to several frames.
        """
        first = frames[0]
        for frame, rotary, segments, positions in self._positions:
            if frame == first and rotary is call.rotary and segments is call.segments:
                return positions
        positions = self._read_positions(first, call)
        # Held, so that nothing else can come to have their identity.
        self._positions.append((first, call.rotary, call.segments, positions))
        return positions

    def _read_positions(self, frame: int, call: LayerCall) -> Positions:
        tokens, start = self.kinds[frame].tokens, 0 if self._starts is None else self._starts[frame]
        cos, sin = (None, None)
        if call.rotary is not None:
            cos, sin = (
                _with_prefix(table, start, tokens, self._prefix, fill)
                for table, fill in zip(call.rotary, (1.0, 0.0), strict=True)
            )
        windows = None
        if call.segments is not None:
            windows = _windows(call.segments.tolist(), start, tokens)
        elif self._starts is not None:
            raise ValueError(
                "the layers of a tower of packed frames must be called with cu_seqlens, "
                "but its encoder passes none"
            )
        return Positions(tokens, cos, sin, windows)


def _windows(segments: Sequence[int], start: int, tokens: int) -> tuple[int, ...]:
    """Return where windows end in the frame that starts at `start`."""
    ends = {end - start for end in segments}
    if not {0, tokens} <= ends:
        raise ValueError(
            "cu_seqlens of the tower's layers must end a segment at the end of each frame, but "
            "does not: layers that attend to several frames at once have no reference to reuse"
        )
    return tuple(sorted(end for end in ends if 0 < end <= tokens))


def _with_prefix(table: Tensor, start: int, tokens: int, prefix: int, fill: float) -> Tensor:
    """Return one frame's rows of a rotary table, [T, D]; where it has no prefix, one not turned."""
    if table.dim() == 3:
        table = table[0]
    if table.shape[0] == tokens:
        return table
    patches = table[start : start + tokens - prefix]
    if prefix == 0:
        return patches
    return torch.cat([patches.new_full((prefix, patches.shape[1]), fill), patches])
