"""Each layer held to its own forward, once: when it first runs with a Cacher."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stc_stream.cacher.call import FramePlace, LayerCall
from stc_stream.cacher.references import finite_frames
from stc_stream.towers import TowerLayer, TowerSpec

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""By how much of what a layer adds to a token two ways of computing it may differ.

Ten times what attention in eager and fused kernels came to, with logits of up to 100.
"""
_FLOAT32_AS = {"tf32": torch.float16, "bf16": torch.bfloat16}
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


class LayerDiffers(TypeError):
    """A layer's own forward computes something else than the parts that were read from it."""


class SelfCheck:
    """Compares what the parts of each layer gave with the layer's own forward, once a layer.

    One frame is compared, of those that were computed densely: the one that tells most. A layer
    whose call can't be cut down to one frame is computed on the batch, and all of them are.

    Args:
        tower: the tower as it was read.
        densely: each layer's own forward.
    """

    def __init__(self, tower: TowerSpec, densely: Sequence[Callable[..., Any]]) -> None:
        self._tower = tower
        self._densely = densely
        self._pending = set(range(len(tower.layers)))

    def wants(self, number: int) -> bool:
        """Tell whether a layer has not been compared yet."""
        return number in self._pending

    def __call__(
        self,
        number: int,
        call: LayerCall,
        x: Tensor,
        own: Tensor,
        refreshed: Sequence[FramePlace],
    ) -> None:
        """Compare a layer that has just run; where no frame is finite, it stays to be compared.

        Args:
            number: of the layer.
            call: what it was called with.
            x: its input; left as it is.
            own: what its parts gave.
            refreshed: where in x and own the frames are that were computed densely.

        Raises:
            LayerDiffers: the layer's own forward gives something else.
        """
        frame = most_telling(x, refreshed)
        if frame is None:
            return
        alone = call.of_frame(frame)
        if alone is not None:
            call, x, own = alone, x[frame.rows], own[frame.rows]
            refreshed = [FramePlace(slice(None), 0, frame.tokens)]
        layer = self._tower.layers[number]
        found = call.again(self._densely[number], x.clone())
        if isinstance(found, tuple) != layer.returns_tuple:
            self._refuse(number, f"returns a {type(found).__name__}")
        dense = found[0] if isinstance(found, tuple) else found
        if dense.shape != own.shape:
            shapes = f"{list(dense.shape)}, not {list(own.shape)}"
            self._refuse(number, f"returns tokens of shape {shapes}")
        precision = _precision(x)

        def worst(one: Tensor, other: Tensor) -> float | None:
            shares = [
                difference(_frame(x, at), _frame(one, at), _frame(other, at), precision)
                for at in refreshed
            ]
            return max((share for share in shares if share is not None), default=None)

        share = worst(dense, own)
        if share is None:
            return
        limit = TOLERANCE[precision]
        if not share <= limit:
            # Large logits, rounded in an eager attention or before it, make both imprecise.
            exact = self._in_float32(layer.module, call, x)
            imprecise = worst(exact, dense) if exact is not None else None
            of_parts = worst(exact, own) if exact is not None else None
            if of_parts is None or imprecise is None or not of_parts <= max(limit, 3 * imprecise):
                far = f"{share:.2g} of what it adds to a token"
                self._refuse(number, f"differs from what its parts give by up to {far}")
        self._pending.discard(number)

    def _in_float32(self, module: nn.Module, call: LayerCall, x: Tensor) -> Tensor | None:
        """Return what a copy of a layer in float32 gives; None: it can't be computed so."""
        # The Cacher's own forward, which the copy is without, can't be copied.
        memo = {id(module.__dict__.get("forward")): None}
        try:
            copied = copy.deepcopy(module, memo).float()
            copied.__dict__.pop("forward", None)
            with torch.autocast(x.device.type, enabled=False):
                found = call.again(copied.forward, x.float())
        except Exception:
            # Hooks and weights of other classes may raise anything.
            return None
        exact: Tensor = found[0] if isinstance(found, tuple) else found
        return exact

    def _refuse(self, number: int, what: str) -> None:
        layer = self._tower.layers[number]
        raise LayerDiffers(
            f"layer {number} of the tower ({type(layer.module).__name__}) computes something else "
            f"than a {self._tower.family} layer with its weights, so the Cacher was detached: its "
            f"own forward {what}. Likely cause: {self._cause(layer)}"
        )

    def _cause(self, layer: TowerLayer) -> str:
        return next(_changes(self._tower, layer), None) or (
            f"{type(layer.module).__name__} has the parts of a {self._tower.family} layer, but "
            "puts them together another way; such a tower can't have a Cacher (or, in a family of "
            "your own, `read` has the order of projections, scale, heads or a layer scale wrong)"
        )


def most_telling(x: Tensor, frames: Sequence[FramePlace]) -> FramePlace | None:
    """Return the frame on which a changed layer shows best; None: none is finite.

    The largest, since small ones may lie in one window of attention; of these the one whose tokens
    vary most, since all places of a black frame look alike.

    Args:
        x: the tokens of a batch.
        frames: the frames to choose from.
    """
    if not frames:
        return None
    found = [_frame(x, frame) for frame in frames]
    finite = torch.cat([finite_frames(tokens) for tokens in found])
    spread = torch.stack([each.float().var(dim=1, correction=0).mean() for each in found])
    # What overflows varies most; one wait for all of them.
    spreads = torch.where(finite, spread.nan_to_num(), -1.0).tolist()
    frame, of = max(
        zip(frames, spreads, strict=True), key=lambda pair: (pair[1] >= 0, pair[0].tokens, pair[1])
    )
    return frame if of >= 0 else None


def difference(x: Tensor, dense: Tensor, own: Tensor, precision: torch.dtype) -> float | None:
    """Return by how much of what a layer adds two outputs differ, at the token that is worst.

    Args:
        x: the layer's input, [F, T, C].
        dense, own: its output, two ways.
        precision: of the arithmetic.

    Returns:
        The root mean square over a token's channels, as a share of what is added to it or, where
        that is more, to a token on average; None: no frame is finite in x and dense.
    """
    fine = finite_frames(x) & finite_frames(dense)
    x, dense, own = (tokens[fine].float() for tokens in (x, dense, own))
    if x.numel() == 0:
        return None
    added = dense - x
    scale = torch.maximum(added.square().mean(dim=-1).sqrt(), added.abs().mean())
    # Rounding what is added to large tokens is no difference.
    rounding = 2 * torch.finfo(precision).eps * (x.abs() + dense.abs())
    apart = ((own - dense).abs() - rounding).clamp(min=0).square().mean(dim=-1).sqrt()
    shares = apart / scale.clamp(min=torch.finfo(torch.float32).tiny)
    return float(shares.nan_to_num(torch.inf).max())


def _frame(tokens: Tensor, frame: FramePlace) -> Tensor:
    """Return a frame's tokens as [1, T, C]."""
    return tokens[frame.rows].reshape(1, -1, tokens.shape[-1])


def _precision(x: Tensor) -> torch.dtype:
    """Return the dtype as which a layer's products are rounded."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    if x.dtype == torch.float32:
        backend = torch.backends.cuda if x.is_cuda else torch.backends.mkldnn
        return _FLOAT32_AS.get(backend.matmul.fp32_precision, torch.float32)
    return x.dtype


def _changes(tower: TowerSpec, layer: TowerLayer) -> Iterator[str]:
    """Yield what makes a layer another than its class was, likeliest first."""
    for what, own, all_layers in (
        ("its class", layer.module, [each.module for each in tower.layers]),
        ("the class of its attention", layer.attention, [each.attention for each in tower.layers]),
    ):
        usual, _ = Counter(map(type, all_layers)).most_common(1)[0]
        if type(own) is not usual:
            yield f"{what} was changed: it is {usual.__name__} in other layers"
    for name, module in layer.module.named_modules():
        where = name or "the layer"
        for kind in type(module).__mro__:
            forward = vars(kind).get("forward")
            if forward is not None:
                written = getattr(forward, "__module__", None)
                if written != kind.__module__:
                    yield f"the forward of {kind.__name__} ({where}) was replaced by {written}'s"
                break
    chosen = getattr(getattr(layer.attention, "config", None), "_attn_implementation", None)
    if chosen is not None and chosen not in _ATTENTION:
        yield f'its attention is computed by another function, registered as "{chosen}"'
    for name, module in layer.module.named_modules():
        if name and _hooks(module):
            yield f"{name} has forward hooks, which a Cacher bypasses: remove them"


def _hooks(module: nn.Module) -> bool:
    """Tell whether a module has forward hooks, not counting those that transformers leaves."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(
        not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks
    )
