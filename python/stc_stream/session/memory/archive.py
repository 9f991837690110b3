"""Keys and values of a stream's frames in host memory, found again by what their keys are like."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from stc_stream.session.memory.policy import MemoryFullError

PAGE_BLOCKS = 16
"""Blocks that are allocated together."""


@dataclass(frozen=True)
class Block:
    """A frame in a page: its number in the stream, its first row, its rows, its place."""

    number: int
    first: int
    count: int
    place: int


@dataclass(frozen=True, eq=False)
class Page:
    """Room for some blocks of all layers.

    Attributes:
        keys, values: [layers, rows, H, D], keys not turned. A layer's rows lie together, so that a
            copy from or to a GPU is one.
        means: of each block's keys, float32 [layers, blocks, H · D].
    """

    keys: Tensor
    values: Tensor
    means: Tensor

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self.keys.nbytes + self.values.nbytes + self.means.nbytes


@dataclass(frozen=True)
class Filled:
    """A page and the blocks in it that an archive knows of."""

    page: Page
    blocks: tuple[Block, ...] = ()

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self.blocks[-1].first + self.blocks[-1].count if self.blocks else 0


class Archive:
    """Blocks of one stream in host memory, the oldest first.

    At its limit the oldest page of blocks goes. A fork shares all pages, and writes to new ones.
    With a GPU pages are pinned, and written to on a CUDA stream beside the model's.

    Args:
        layers: of the LLM.
        limit: bytes that may be allocated.

    Attributes:
        blocks, rows: held.
        longest: rows of the longest block so far.
        dropped: blocks that have gone.
        bytes_reserved: of all pages.
    """

    def __init__(self, layers: int, limit: int) -> None:
        self._layers = layers
        self._limit = limit
        self._closed: tuple[Filled, ...] = ()
        self._open: Filled | None = None
        self._next = 0
        self._coming: tuple[tuple[int, int], ...] = ()
        self._places: tuple[tuple[Page, Block], ...] = ()
        self._written: tuple[int, ...] = (0,) * layers
        self._copies: torch.cuda.Stream | None = None
        self._row_bytes = 0
        self._mean_bytes = 0
        self.blocks = self.rows = self.longest = self.dropped = 0
        self.bytes_reserved = 0

    def begin(self, counts: Sequence[int]) -> None:
        """Say how many rows each of the next blocks has, before their first layer is written."""
        # A frame of which nothing was kept has a number, and no block.
        coming = tuple((self._next + place, count) for place, count in enumerate(counts) if count)
        vars(self).update(
            _coming=coming,
            _next=self._next + len(counts),
            _places=(),
            _written=(0,) * self._layers,
        )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write the next rows of a layer, which belong to the blocks that were begun.

        Args:
            keys, values: [1, H, n, D], keys not turned.

        Raises:
            MemoryFullError: the limit is below one block.
        """
        if self._coming:
            self._place(keys)
        done, new = self._written[layer], keys.shape[2]
        first = 0
        for page, block in self._places:
            start, end = max(done, first), min(done + new, first + block.count)
            if start < end:
                rows = slice(block.first + start - first, block.first + end - first)
                part = keys[0, :, start - done : end - done].transpose(0, 1)
                own = values[0, :, start - done : end - done].transpose(0, 1)
                self._copy(page.keys[layer, rows], part)
                self._copy(page.values[layer, rows], own)
                mean = part.float().sum(0).flatten() / block.count
                if start > first:
                    # The rest of a block that came in two parts.
                    self.wait()
                    mean = mean + page.means[layer, block.place].to(mean.device)
                self._copy(page.means[layer, block.place], mean)
            first += block.count
        written = list(self._written)
        written[layer] = done + new
        self._written = tuple(written)

    def best(self, layer: int, query: Tensor, most: int) -> list[tuple[Page, Block]]:
        """Return the blocks whose mean key is nearest to a query by cosine, oldest first.

        Args:
            query: float32 [H · D].
            most: how many at most.
        """
        self.wait()
        pages = list(self._filled())
        if not pages:
            return []
        means = torch.cat([page.page.means[layer, : len(page.blocks)] for page in pages])
        nearness = torch.cosine_similarity(means, query.cpu()[None], dim=1)
        chosen = nearness.topk(min(most, len(means))).indices.sort().values
        firsts = [0, *accumulate(len(page.blocks) for page in pages)]
        found = []
        for place in chosen.tolist():
            page = bisect_right(firsts, place) - 1
            found.append((pages[page].page, pages[page].blocks[place - firsts[page]]))
        return found

    def read(
        self, layer: int, blocks: Sequence[tuple[Page, Block]], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of blocks, one behind the other, [1, H, n, D] each."""
        found = []
        for name in ("keys", "values"):
            stored = [
                getattr(page, name)[layer, block.first : block.first + block.count]
                for page, block in blocks
            ]
            counts = [len(part) for part in stored]
            whole = stored[0].new_empty((sum(counts), *stored[0].shape[1:]), device=device)
            for target, part in zip(whole.split(counts), stored, strict=True):
                target.copy_(part, non_blocking=True)
            found.append(whole.transpose(0, 1)[None])
        return found[0], found[1]

    def wait(self) -> None:
        """Wait for copies from a GPU that are on their way."""
        if self._copies is not None:
            self._copies.synchronize()

    def fork(self) -> Archive:
        """Return an archive that starts with these blocks, and goes its own way."""
        other = copy.copy(self)
        other._closed, other._open = tuple(self._filled()), None
        return other

    @property
    def counts(self) -> list[int]:
        """Rows of each block."""
        return [block.count for page in self._filled() for block in page.blocks]

    @property
    def bytes_held(self) -> int:
        """Bytes of the blocks, in use."""
        return self.rows * self._row_bytes + self.blocks * self._mean_bytes

    def _filled(self) -> Iterator[Filled]:
        yield from self._closed
        if self._open is not None:
            yield self._open

    def _place(self, keys: Tensor) -> None:
        """Find room for the blocks that were begun."""
        places: list[tuple[Page, Block]] = []
        for number, count in self._coming:
            filled = self._open
            if filled is None or not self._fits(filled, count):
                filled = self._turn_page(keys, count)
            block = Block(number, filled.rows, count, len(filled.blocks))
            self._open = Filled(filled.page, (*filled.blocks, block))
            self.blocks, self.rows = self.blocks + 1, self.rows + count
            self.longest = max(self.longest, count)
            places.append((filled.page, block))
        self._places, self._coming = tuple(places), ()

    def _fits(self, filled: Filled, count: int) -> bool:
        page = filled.page
        room = page.keys.shape[1] - filled.rows
        return count <= room and len(filled.blocks) < page.means.shape[1]

    def _turn_page(self, keys: Tensor, count: int) -> Filled:
        """Begin a new page; at the limit, without the oldest ones."""
        heads, width = keys.shape[1], keys.shape[3]
        self._row_bytes = self._layers * heads * width * keys.element_size() * 2
        self._mean_bytes = self._layers * heads * width * 4
        block = count * self._row_bytes + self._mean_bytes
        if block > self._limit:
            raise MemoryFullError(
                f"host_bytes is {self._limit}, but a frame of {count} tokens has {block} bytes: "
                "nothing was lost. Give the memory more host_bytes, or keep fewer tokens"
            )
        # At most a quarter of the limit goes at once.
        blocks = max(min(PAGE_BLOCKS, self._limit // 4 // block), 1)
        closed, reserved = tuple(self._filled()), self.bytes_reserved
        gone = 0
        while reserved + blocks * block > self._limit:
            reserved -= closed[gone].page.bytes
            gone += 1
        for filled in closed[:gone]:
            self.dropped += len(filled.blocks)
            self.blocks, self.rows = self.blocks - len(filled.blocks), self.rows - filled.rows
        pinned = keys.device.type == "cuda"
        with torch.inference_mode(False):
            shape = (self._layers, blocks * count, heads, width)
            stored = [
                torch.empty(shape, dtype=keys.dtype, pin_memory=pinned) for _ in ("keys", "values")
            ]
            means = torch.empty(self._layers, blocks, heads * width, pin_memory=pinned)
        new = Filled(Page(stored[0], stored[1], means))
        vars(self).update(
            _closed=closed[gone:], _open=new, bytes_reserved=reserved + new.page.bytes
        )
        return new

    def _copy(self, target: Tensor, rows: Tensor) -> None:
        """Copy to host memory, without waiting for a GPU."""
        if not rows.is_cuda:
            target.copy_(rows)
            return
        if self._copies is None:
            self._copies = torch.cuda.Stream(rows.device)
        self._copies.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(self._copies):
            target.copy_(rows.contiguous(), non_blocking=True)
        # Its memory is not given to another tensor before it is copied.
        rows.record_stream(self._copies)
