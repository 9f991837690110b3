"""Writing a file as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file as UTF-8, through a draft beside it that takes its place when complete.

    What UTF-8 cannot hold (a byte of a file name that is no character) becomes a question mark.

    Raises:
        OSError: it cannot be written; a file that was there before stays as it was.
    """
    data = text.encode("utf-8", errors="replace")
    target = path.resolve()
    if path.exists() and not (path.is_file() and os.access(target.parent, os.W_OK)):
        # A device or a pipe is written to, not replaced; so is a file whose folder is closed.
        path.write_bytes(data)
        return
    draft = target.with_name(f".stc-{uuid.uuid4().hex}")
    try:
        draft.write_bytes(data)
        if target.exists():
            shutil.copymode(target, draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
