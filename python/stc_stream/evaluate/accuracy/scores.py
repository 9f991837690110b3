"""What answers come to: accuracy with intervals, and what it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stc_stream.evaluate.accuracy.answers import Response, VideoAnswers
from stc_stream.evaluate.tasks import Item, Task
from stc_stream.evaluate.tasks.task import Shares

RESAMPLED = 2000
"""Times that the videos are drawn anew."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval, over videos drawn anew; None: there are not two videos."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MethodScore:
    """What a method comes to on a task.

    Attributes:
        method: its name.
        questions, videos: that all methods have answered.
        unanswered: questions that did not fit into the memory; they count as wrong.
        accuracy: as the benchmark publishes it, 0 to 1.
        strict: the right answer and nothing else.
        difference: accuracy less dense's, on the same questions, drawn anew together.
        groups: the accuracy of each group of questions, and how many they are.
        tower_share: of the dense tower's multiplications, mean over frames.
        tokens_of_frame, tokens_per_frame: before the method chose, and after it; mean.
        tokens_held: when a question was asked, mean.
        milliseconds: of each stage of a frame's way ("tower", "prefill", …), and of an "answer".
        shares: of each of these in all the time from the first frame to the last answer.
    """

    method: str
    questions: int
    videos: int
    unanswered: int
    accuracy: Estimate
    strict: Estimate
    difference: Estimate
    groups: Mapping[str, tuple[int, float]]
    tower_share: float
    tokens_of_frame: float
    tokens_per_frame: float
    tokens_held: float
    milliseconds: Mapping[str, float]
    shares: Mapping[str, float]


def score_methods(
    task: Task,
    methods: Sequence[str],
    found: Sequence[VideoAnswers],
    baseline: str = "dense",
    seed: int = 0,
) -> tuple[MethodScore, ...]:
    """Score the answers of methods, on the videos that all of them are through with.

    Intervals are percentiles over videos drawn anew with replacement, since questions about one
    video stand or fall together; all methods see the same draws, so that differences are paired.

    Args:
        task: whose questions, and what counts as right.
        methods: names, in order of the scores.
        found: answers, in any order.
        baseline: the name of the method that the others are compared with.
        seed: of the draws.

    Returns:
        A score a method; empty where no video was answered by all.
    """
    by_method: dict[str, dict[str, VideoAnswers]] = {name: {} for name in methods}
    for run in found:
        if run.method in by_method:
            by_method[run.method][run.video] = run
    known = dict.fromkeys(item.video for item in task.items)
    videos = [video for video in known if all(video in runs for runs in by_method.values())]
    if not videos:
        return ()
    items = {item.name: item for item in task.items}
    draws = _draws(len(videos), seed)
    runs = {name: [by_method[name][video] for video in videos] for name in methods}
    right = {name: _Table(task, items, runs[name], task.right) for name in methods}
    return tuple(
        MethodScore(
            method=name,
            questions=int(right[name].asked.sum()),
            videos=len(videos),
            unanswered=sum(response.text is None for response in _responses(runs[name])),
            accuracy=right[name].estimate(draws),
            strict=_Table(task, items, runs[name], task.strictly_right).estimate(draws),
            difference=right[name].estimate(draws, right[baseline]),
            groups=right[name].groups(),
            **_spent(runs[name]),
        )
        for name in methods
    )


class _Table:
    """How many questions of each group of each video were right, and how many were asked."""

    def __init__(
        self,
        task: Task,
        items: Mapping[str, Item],
        runs: Sequence[VideoAnswers],
        judge: Callable[[Item, str], bool],
    ) -> None:
        self._task = task
        places = {group: place for place, group in enumerate(task.groups)}
        self._right = np.zeros((len(runs), len(places)))
        self.asked = np.zeros_like(self._right)
        for row, run in enumerate(runs):
            for response in run.responses:
                item = items[response.item]
                self.asked[row, places[item.group]] += 1
                if response.text is not None and judge(item, response.text):
                    self._right[row, places[item.group]] += 1

    def estimate(self, draws: Shares, less: _Table | None = None) -> Estimate:
        """Return the score, or by how much it is above another on the same questions.

        Args:
            draws: how often each video is in each draw, [draws, V].
            less: the other.
        """
        once = np.ones((1, len(self.asked)))
        value = self._scores(once) - (0 if less is None else less._scores(once))
        if len(self.asked) < 2:
            return Estimate(float(value[0]), None, None)
        drawn = self._scores(draws) - (0 if less is None else less._scores(draws))
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        return Estimate(float(value[0]), float(low), float(high))

    def groups(self) -> dict[str, tuple[int, float]]:
        """Return how many questions each group has, and the share that is right."""
        totals = zip(self._task.groups, self.asked.sum(0), self._right.sum(0), strict=True)
        return {
            group: (int(asked), float(right / asked)) for group, asked, right in totals if asked
        }

    def _scores(self, draws: Shares) -> Shares:
        return self._task.mean(draws @ self._right, draws @ self.asked)


def _draws(videos: int, seed: int) -> Shares:
    """Return how often each video is in each draw of as many videos, [RESAMPLED, videos]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(videos, [1 / videos] * videos, size=RESAMPLED).astype(np.float64)


def _responses(runs: Sequence[VideoAnswers]) -> list[Response]:
    return [response for run in runs for response in run.responses]


def _spent(runs: Sequence[VideoAnswers]) -> dict[str, Any]:
    """Return what answers took, by the names of `MethodScore`."""
    responses = _responses(runs)
    frames = max(sum(run.frames for run in runs), 1)
    stages = dict.fromkeys(stage for run in runs for stage in run.seconds)
    seconds = {stage: sum(run.seconds.get(stage, 0.0) for run in runs) for stage in stages}
    milliseconds = {stage: 1e3 * each / frames for stage, each in seconds.items()}
    answered = [response.seconds for response in responses if response.text is not None]
    seconds["answer"] = sum(answered)
    milliseconds["answer"] = 1e3 * seconds["answer"] / max(len(answered), 1)
    whole = sum(seconds.values())
    return {
        "tower_share": sum(run.tower_share * run.frames for run in runs) / frames,
        "tokens_of_frame": sum(run.tokens for run in runs) / frames,
        "tokens_per_frame": sum(run.kept for run in runs) / frames,
        "tokens_held": float(np.mean([response.tokens_held for response in responses])),
        "milliseconds": milliseconds,
        "shares": {stage: each / whole if whole else 0.0 for stage, each in seconds.items()},
    }
