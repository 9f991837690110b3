"""Which tokens of a selective frame are recomputed: a rule of one's own."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class TokenSelection(Protocol):
    """Chooses the patches that selective frames recompute; of one's own: any object with `choose`.

    It is asked in each layer, once for frames whose references are from earlier batches and once
    for those whose references are in the same batch; frames of several sizes apart.
    A rule that looks at each frame alone gives batches that equal their frames one by one.
    """

    def choose(self, current: Tensor, reference: Tensor, k: int) -> Tensor:
        """Return the patches to recompute of each of F frames of P patches.

        Args:
            current: their keys, [F, P, C], in the tower's dtype; left as they are. Not always
                finite or contiguous.
            reference: their references' keys, [F, P, C], likewise.
            k: how many to choose, 1 to P (`CacherConfig.update_ratio`).

        Returns:
            The patches' places, int64 [F, k], each row ascending without repeats, on the keys'
            device. Class and register tokens are not among the patches: they are always recomputed.
        """
        ...


def chosen_tokens(
    selection: TokenSelection, prefix: int, current: Tensor, reference: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return what `select_dynamic` does, with patches that `selection` chooses.

    Args:
        selection: the rule.
        prefix: tokens at the start of a frame that are always recomputed.
        current, reference: keys of all tokens, [F, T, C].
        k: patches to choose.

    Returns:
        The recomputed tokens, int64 [F, prefix + k], and the place of each token among them, int32
        [F, T], -1 for those that are not.

    Raises:
        TypeError, ValueError: what the rule returned is no int64 tensor of shape [F, k], or on
            another device. What it holds is not looked at, which would wait for the device.
    """
    frames, tokens = current.shape[:2]
    patches = selection.choose(current[:, prefix:], reference[:, prefix:], k)
    _check(patches, frames, k, current.device)
    index = patches
    if prefix:
        always = torch.arange(prefix, device=current.device).expand(frames, -1)
        index = torch.cat([always, patches + prefix], dim=1)
    places = torch.arange(prefix + k, dtype=torch.int32, device=current.device)
    slot = places.new_full((frames, tokens), -1).scatter_(1, index, places.expand(frames, -1))
    return index, slot


def _check(patches: object, frames: int, k: int, device: torch.device) -> None:
    if not isinstance(patches, Tensor):
        raise TypeError(
            f"selection must choose patches as an int64 tensor, but returned a "
            f"{type(patches).__name__}"
        )
    if patches.dtype != torch.int64:
        kind = str(patches.dtype).removeprefix("torch.")
        raise TypeError(f"selection must choose patches as int64, but returned {kind}")
    if patches.shape != (frames, k):
        raise ValueError(
            f"selection must choose {k} patches of each of {frames} frames, [{frames}, {k}], but "
            f"returned shape {list(patches.shape)}"
        )
    if patches.device != device:
        raise ValueError(
            f"selection must choose patches on the keys' device, {device}, but returned them on "
            f"{patches.device}"
        )
