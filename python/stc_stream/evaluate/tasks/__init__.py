"""Tasks by name, or from files: one file a form, with what counts as right in it.

A file whose `TASK` is a dataclass makes its own videos: its fields are settings, `read()` gives the
task. One with `resembles(document)` and `read(document, path, videos, fps)` reads annotation files;
if it has `FILE`, its name alone stands for that file in the folder of the data.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

from stc_stream.evaluate.settings import read_settings
from stc_stream.evaluate.tasks.task import FileTask, Item, Task, TaskError, read_json

__all__ = ["FileTask", "Item", "Task", "TaskError", "read_task", "task_names"]

_FORMS = (
    "conversations",
    "ovo_bench",
    "streaming_bench",
    "video_mme",
    "mlvu",
    "egoschema",
    # What is none of the others.
    "plain",
)


def task_names() -> tuple[str, ...]:
    """Return the names of the tasks that are known by name."""
    found = (name for _, name, _ in pkgutil.iter_modules(__path__))
    known = [
        name for name in found if hasattr(_module(name), "TASK") or hasattr(_module(name), "FILE")
    ]
    return tuple(sorted(known))


def read_task(
    text: str,
    data: Path | None = None,
    videos: Path | None = None,
    fps: float | None = 1.0,
    limit: int | None = None,
) -> Task:
    """Return a task that is written as its name, with settings, or as the path of a file.

    Args:
        text: `small:clips=50`, `ovo_bench`, or a file.
        data: folder of a benchmark that is given by name; None: of its name, where we are.
        videos: folder of the videos; None: as the benchmark's file says.
        fps: frames that are taken of each second of a video file; None: all.
        limit: of so many videos, the first ones; None: of all.

    Raises:
        TaskError: no such task or file, or one that is broken; one line that says where.
        ModuleNotFoundError: the task needs a package that isn't installed.
    """
    task = _found(text, data, videos, fps)
    known = list(dict.fromkeys(item.video for item in task.items))[:limit]
    task.items = tuple(item for item in task.items if item.video in set(known))
    return task


def _found(text: str, data: Path | None, videos: Path | None, fps: float | None) -> Task:
    name, _, written = text.partition(":")
    name = name.replace("-", "_")
    if name in task_names():
        module = _module(name)
        if hasattr(module, "TASK"):
            try:
                task: Task = read_settings(f"task {name}", module.TASK, written).read()
            except ValueError as error:
                raise TaskError(str(error)) from None
            return task
        if written:
            raise TaskError(f"task {name} has no settings, but {written!r} was given")
        path = (data or Path(name)) / module.FILE
        return _read(module, _document(path, name, module.SOURCE), path, videos, fps)
    path = Path(text)
    if not path.exists():
        raise TaskError(
            f"task must be one of {', '.join(task_names())}, or a file, but is {text!r}"
        )
    document = _document(path, path.name, "")
    form = next((each for each in _FORMS if _module(each).resembles(document)), None)
    if form is None:
        raise TaskError(f"{path} must hold a JSON list of questions, but does not")
    return _read(_module(form), document, path, videos, fps)


def _read(module: Any, document: Any, path: Path, videos: Path | None, fps: float | None) -> Task:
    task: Task = module.read(document, path, videos, fps)
    return task


def _document(path: Path, name: str, source: str) -> Any:
    """Return what a file holds; of a folder of JSON files, the entries of all."""
    if not path.is_dir():
        return read_json(path, name, source)
    files = sorted(path.glob("*.json"))
    if not files:
        raise TaskError(f"{name} needs JSON files in {path}, but there are none")
    return [entry for file in files for entry in read_json(file, name, source)]


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{name}")
