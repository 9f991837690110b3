"""The folder of a report, checked before a run takes its time; imports nothing heavy."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

ROOM = 16 * 2**20


def prepare_report(directory: Path) -> None:
    """Make the folder of a report, and see that it can be written to.

    Raises:
        OSError: it cannot be made or written to, or its disk has less than 16 MiB left.
    """
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".stc-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"stc")
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(directory).free
    if free < ROOM:
        raise OSError(f"only {free / 2**20:.1f} MiB are free there, and a report may need 16")
