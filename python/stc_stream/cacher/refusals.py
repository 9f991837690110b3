"""What a tower with a Cacher can't do, said in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch


class Attached:
    """A function that a Cacher puts into a tower: not compiled, not copied, not pickled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._run = function
        disable: Callable[..., Callable[..., Any]] = torch.compiler.disable
        self._function = disable(
            function,
            reason="frames of a tower with a Cacher depend on those before them: to export or "
            "compile the tower whole, detach the Cacher first",
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # What keeps a compiler out takes several microseconds, a layer.
        if torch.compiler.is_compiling():
            return self._function(*args, **kwargs)
        return self._run(*args, **kwargs)

    def __reduce__(self) -> NoReturn:
        refuse_copies()


def refuse_copies() -> NoReturn:
    """Raise what copying or pickling a tower with a Cacher, or the Cacher, ends in."""
    raise TypeError("a tower with a Cacher can't be copied or pickled: detach the Cacher first")


def refuse_tracing() -> None:
    """Refuse to be recorded as a graph.

    Raises:
        RuntimeError: `torch.jit.trace` or `torch.export` is at work.
    """
    is_tracing: Callable[[], bool] = vars(torch.jit)["is_tracing"]
    if is_tracing():
        recorder = "torch.jit.trace"
    elif torch.compiler.is_exporting():
        recorder = "torch.export"
    else:
        return
    raise RuntimeError(
        f"{recorder} can't record a tower with a Cacher, whose frames depend on those before them: "
        "detach the Cacher first"
    )


def refuse_unnamed_rows() -> NoReturn:
    """Raise what rows without names end in, where streams have been named before."""
    raise ValueError(
        "streams must name each row of the batch, because streams have been named since "
        "the last reset(), and rows without a name would spoil each other. Names hold for "
        "the thread or task that entered Cacher.streams: in an executor's thread enter it "
        "there, or run the forward by asyncio.to_thread or contextvars.copy_context().run"
    )


def refuse_unnamed_videos(videos: int) -> NoReturn:
    """Raise what the frames of several videos in one call end in, without names."""
    raise ValueError(
        f"the frames of {videos} videos in one call must have streams: name each frame's "
        "with Cacher.streams, or compute them densely inside Cacher.paused"
    )
