"""A run on disk: settings, predictions and scores apart, so that it goes on and is scored again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stc_stream.evaluate.accuracy.answers import FailedVideo, Response, VideoAnswers
from stc_stream.session.numbering import Positions


@dataclass(frozen=True)
class RunSettings:
    """What a run was made with.

    Attributes:
        model: its name or folder.
        task: as it was written.
        data, videos: folders, as they were given.
        fps: frames of each second; None: all.
        limit: videos, the first ones; None: all.
        chunk: frames that are fed together.
        tokens_per_frame: of methods that don't say it themselves; None: a third.
        memory: the method whose memory is taken where a method has none; None: everything.
        positions: as in `StreamingSession`.
        dtype: what the model computes in.
    """

    model: str
    task: str
    data: str | None
    videos: str | None
    fps: float | None
    limit: int | None
    chunk: int
    tokens_per_frame: int | None
    memory: str | None
    positions: Positions
    dtype: str


class RunFolder:
    """The folder of a run: `settings.json`, `predictions.jsonl` and `scores.json`.

    A line of predictions is written when a method is through with a video, and what is there is
    read when the folder is opened: a run that was stopped goes on behind it.

    Args:
        path: made if it isn't there.
        settings: of the run; None: of one that is there.

    Attributes:
        path: as given.
        settings: of the run.
        found: what is there, answers and failed videos, in order.

    Raises:
        ValueError: the folder holds a run with other settings, none, or one that is damaged.
        OSError: it can't be written.
    """

    def __init__(self, path: Path, settings: RunSettings | None = None) -> None:
        self.path = path
        file = path / "settings.json"
        if file.exists():
            known = _settings(file)
            for name, value in asdict(settings or known).items():
                before = getattr(known, name)
                if before != value:
                    raise ValueError(
                        f"{path} holds a run with {name} {before!r}, and not {value!r}: choose "
                        "another folder, or the same settings"
                    )
            self.settings = known
        elif settings is None:
            raise ValueError(f"{path} holds no run: it has no settings.json")
        else:
            path.mkdir(parents=True, exist_ok=True)
            _write(file, asdict(settings))
            self.settings = settings
        self._predictions = path / "predictions.jsonl"
        self.found: list[VideoAnswers | FailedVideo] = self._read()

    def add(self, run: VideoAnswers | FailedVideo) -> None:
        """Keep what a method answered, or why a video failed."""
        self.found.append(run)
        with self._predictions.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(run), ensure_ascii=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())

    def write_scores(self, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write what the answers come to; return the file."""
        file = self.path / "scores.json"
        _write(file, list(rows))
        return file

    def _read(self) -> list[VideoAnswers | FailedVideo]:
        if not self._predictions.exists():
            return []
        data = self._predictions.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            # A process that was killed left half a line.
            with self._predictions.open("r+b") as lines:
                lines.truncate(whole)
        found: list[VideoAnswers | FailedVideo] = []
        for number, line in enumerate(data[:whole].decode("utf-8").splitlines(), 1):
            try:
                found.append(_run_of(json.loads(line)))
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{self._predictions} is broken in line {number}: remove that line, and the "
                    "run goes on"
                ) from None
        return found


def _run_of(fields: dict[str, Any]) -> VideoAnswers | FailedVideo:
    if "reason" in fields:
        return FailedVideo(**fields)
    responses = tuple(
        Response(**{**each, "likelihoods": tuple(each["likelihoods"])})
        for each in fields["responses"]
    )
    return VideoAnswers(**{**fields, "responses": responses})


def _settings(file: Path) -> RunSettings:
    try:
        return RunSettings(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{file} is no settings file of a run: choose another folder") from None


def _write(file: Path, value: Any) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(file)
