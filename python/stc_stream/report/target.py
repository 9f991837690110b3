"""Where an output goes: seen to before a run takes its time; imports nothing heavy."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import uuid
from pathlib import Path

PAGE = "index.html"
STANDARD_OUTPUT = Path("/dev/stdout")
ROOM = 16 * 2**20

_NAMED = re.compile(r"/dev/(?P<name>stdin|stdout|stderr)|(/dev|/proc/(self|thread-self))/fd/(\d+)")
_STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}
_MOST_LINKS = 40


def prepare_report(directory: Path) -> None:
    """Make the folder of a report, and see that its page can be written.

    Raises:
        OSError: it cannot be made or written to, its page cannot be, or its disk has less than
            16 MiB left.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        check_file(directory / PAGE)
    except OSError as error:
        raise OSError(error.errno, f"its {PAGE}: {error.strerror}") from None
    free = shutil.disk_usage(directory).free
    if free < ROOM:
        raise OSError(
            errno.ENOSPC, f"only {free / 2**20:.1f} MiB are free there, and a report may need 16"
        )


def check_file(path: Path) -> None:
    """See that a file can be written, as far as that can be known; what is there stays.

    Raises:
        OSError: it cannot; `strerror` says why.
    """
    descriptor = descriptor_of(path)
    if descriptor is not None:
        # Of no bytes: fails where it is closed, or open for reading.
        os.write(descriptor, b"")
        return
    found = _stat(path)
    if found is not None:
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a disk"}
        kind = kinds.get(stat.S_IFMT(found.st_mode))
        if kind:
            raise OSError(errno.EINVAL, f"it is {kind}")
        if not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, "it may not be written")
        if _in_place(path, found):
            return
    folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        raise OSError(errno.ENOENT, f"there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise OSError(errno.EACCES, f"the folder {folder} may not be written")
    draft = folder / _draft()
    try:
        draft.write_bytes(b"stc")
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file through a draft beside it that takes its place when complete.

    What cannot be replaced is written to as it stands: a descriptor (see `descriptor_of`), a
    device, a pipe, a file whose folder is closed or that is a mount point. Text is UTF-8; what that
    cannot hold (a byte of a file name that is no character) becomes a question mark.

    Raises:
        OSError: it cannot be written; a file that could be replaced stays as it was.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", errors="replace")
    descriptor = descriptor_of(path)
    if descriptor is not None:
        sys.stdout.flush()
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        return
    found = _stat(path)
    if found is not None and _in_place(path, found):
        path.write_bytes(data)
        return
    target = Path(os.path.realpath(path))
    draft = target.with_name(_draft())
    try:
        draft.write_bytes(data)
        if found is not None:
            shutil.copymode(target, draft)
        try:
            draft.replace(target)
        except OSError:
            if found is None:
                raise
            target.write_bytes(data)
    finally:
        draft.unlink(missing_ok=True)


def descriptor_of(path: Path) -> int | None:
    """Return the open descriptor that a path stands for; None: it is a file of its own.

    ``/dev/stdout``, ``/dev/fd/3`` and links to them, opened once more, would begin at the file's
    start; so would the file that standard output or standard error was redirected to, by
    whatever name.
    """
    step = path
    for _ in range(_MOST_LINKS):
        named = _NAMED.fullmatch(str(step))
        if named:
            return _STANDARD[named["name"]] if named["name"] else int(named[4])
        if not step.is_symlink():
            break
        step = step.parent / os.readlink(step)
    try:
        found = os.stat(path)
    except OSError:
        return None
    for descriptor in (1, 2):
        if stat.S_ISREG(found.st_mode) and _is(descriptor, found):
            return descriptor
    return None


def is_standard_output(path: Path) -> bool:
    """Tell whether what is written to a path comes out at standard output."""
    descriptor = descriptor_of(path)
    if descriptor in (None, 1):
        return descriptor == 1
    try:
        return _is(1, os.fstat(descriptor))
    except OSError:
        return False


def _is(descriptor: int, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), found)
    except OSError:
        return False


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _in_place(path: Path, found: os.stat_result) -> bool:
    folder = os.path.dirname(os.path.realpath(path))
    return not (stat.S_ISREG(found.st_mode) and os.access(folder, os.W_OK))


def _draft() -> str:
    return f".stc-{uuid.uuid4().hex}"
