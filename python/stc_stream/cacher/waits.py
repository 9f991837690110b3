"""Where a batch waits for the device: nowhere else does planning, or counting, read a tensor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def fetched(parts: Sequence[Tensor]) -> list[list[float]]:
    """Return what tensors of one dimension hold, with one wait for the device."""
    if not parts:
        return []
    device = parts[-1].device
    one = [part.to(device, torch.float32) for part in parts]
    numbers: list[float] = (one[0] if len(one) == 1 else torch.cat(one)).tolist()
    ends = list(itertools.accumulate(part.shape[0] for part in parts))
    return [numbers[end - part.shape[0] : end] for part, end in zip(parts, ends, strict=True)]


def index_tensor(places: Sequence[int], device: torch.device) -> Tensor:
    """Return places as int64 on a device, without waiting for it."""
    index = torch.tensor(places, dtype=torch.int64)
    if device.type != "cuda":
        return index.to(device)
    return index.pin_memory().to(device, non_blocking=True)


class LateFlags:
    """Flags that go to the host behind the work that makes them, and are read once they are there.

    Whatever waits for the device later has waited for them too.

    Args:
        flags: bool [n].
    """

    def __init__(self, flags: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        # Copied in any case: the next replay of a graph may write over them.
        if not flags.is_cuda:
            self._host = flags.clone()
            return
        self._host = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
        self._host.copy_(flags, non_blocking=True)
        self._copied = torch.cuda.current_stream(flags.device).record_event()

    @property
    def there(self) -> bool:
        """Whether they can be read; asking waits for nothing."""
        return self._copied is None or self._copied.query()

    def __getitem__(self, place: int) -> bool:
        """Return one of the flags, which must be there."""
        return bool(self._host.cpu().numpy()[place])
