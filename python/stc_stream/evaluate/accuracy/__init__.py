"""Answers kept against time saved: methods on a task's questions, through sessions."""

from __future__ import annotations

from stc_stream.evaluate.accuracy.answers import FailedVideo, Response, VideoAnswers
from stc_stream.evaluate.accuracy.runner import TaskRunner
from stc_stream.evaluate.accuracy.scores import MethodScore, score_methods
from stc_stream.evaluate.accuracy.store import RunFolder, RunSettings

__all__ = [
    "FailedVideo",
    "MethodScore",
    "Response",
    "RunFolder",
    "RunSettings",
    "TaskRunner",
    "VideoAnswers",
    "score_methods",
]
