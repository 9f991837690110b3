"""`stc stream --ask`: a video, and questions about it, dense and compressed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stc_stream.cli.messages import as_option, fail, say
from stc_stream.cli.needs import TOO_LARGE, memory_errors
from stc_stream.cli.options import as_name
from stc_stream.cli.outputs import Outputs
from stc_stream.cli.terminal import progress_bar
from stc_stream.interrupts import Interrupts
from stc_stream.report.terminal import print_table, printable

if TYPE_CHECKING:
    from rich.console import Console

    from stc_stream.evaluate.answers import SessionComparison
    from stc_stream.evaluate.method import Method
    from stc_stream.evaluate.moments import Chunk, Question
    from stc_stream.report.answers.album import Album
    from stc_stream.report.answers.run import AnswersRun, AskedQuestion, FedFrames
    from stc_stream.session.load import VideoLlm
    from stc_stream.video import Frame, FrameStream

_Decorated = TypeVar("_Decorated", bound="Callable[..., Any]")
_ROOM = 32
_QUEUE = re.compile(r"queue(:frames=(?P<frames>\d{1,6}))?")
_TIMED = re.compile(r"(?P<time>[-+]?[\d.]+)s:(?P<text>.*)", re.DOTALL)


@dataclass(frozen=True)
class Asking:
    """What is asked, and how.

    Attributes:
        questions: each its seconds of the video, or None for the end, and its text.
        memory: what the LLM remembers, as it is written; None: what the method says.
        chunk: frames that are fed together.
        max_new_tokens: where an answer is cut off.
        when_behind: frames of a live source that may wait for the model; 1: the newest alone.
        chosen: whether the user said so.
    """

    questions: tuple[tuple[float | None, str], ...]
    memory: str | None
    chunk: int
    max_new_tokens: int
    when_behind: int
    chosen: bool


@dataclass(frozen=True)
class Asked:
    """A stream with questions that has run, and pictures of its frames."""

    run: AnswersRun
    album: Album | None


def as_question(text: str) -> tuple[float | None, str]:
    """Read a question: its text, or ``12.5s:`` and its text."""
    found = _TIMED.fullmatch(text)
    time: float | None = None
    if found:
        text = found["text"]
        try:
            time = float(found["time"])
        except ValueError:
            time = -1.0
        if time < 0:
            raise click.BadParameter(
                f"{found['time']!r} is no moment of a video: give seconds, as in 12.5s:TEXT"
            )
    if not text.strip():
        raise click.BadParameter("a question is empty: give its words")
    return time, text.strip()


def as_room(text: str) -> int:
    """Read how many frames may wait: ``skip``, ``queue`` or ``queue:frames=N``."""
    found = _QUEUE.fullmatch(text)
    room = 1 if text == "skip" else int(found["frames"] or _ROOM) if found else 0
    if room < 1:
        raise click.BadParameter(
            f"it must be skip, queue or queue:frames=N, of at least 1, but is {text!r}"
        )
    return room


def asking_options(command: _Decorated) -> _Decorated:
    """Add the options that go with `--ask`."""
    options = (
        click.option(
            "--ask",
            "ask",
            type=as_question,
            multiple=True,
            metavar="TEXT",
            help="Ask a video LLM about the video, dense and compressed; the option again for "
            "more. 12.5s:TEXT asks at that moment, TEXT alone at the end. --model is then a video "
            "LLM.  [default: one with random weights; nothing is downloaded]",
        ),
        click.option(
            "--memory",
            type=as_name,
            metavar="NAME",
            help="With --ask: what the LLM remembers of the compressed stream: full, recent, "
            "window or retrieval. With settings: retrieval:blocks=4.  [default: as the method has "
            "it, or full]",
        ),
        click.option(
            "--chunk",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="With --ask: frames that are fed together.",
        ),
        click.option(
            "--max-new-tokens",
            type=click.IntRange(1),
            default=32,
            show_default=True,
            help="With --ask: where an answer is cut off.",
        ),
        click.option(
            "--when-behind",
            type=as_room,
            default="skip",
            show_default=True,
            metavar="skip|queue",
            help="With --ask, of a live source that is faster than the model: skip frames for the "
            f"newest one, or let {_ROOM} wait (queue:frames=N) before the oldest are skipped.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def read_asking(context: click.Context, values: Mapping[str, Any]) -> Asking | None:
    """Return what is asked; None: nothing is, and no option says how."""
    if not values["ask"]:
        for name in values:
            if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
                fail(f"--{name.replace('_', '-')} is for questions: give --ask as well")
        return None
    how = {name: value for name, value in values.items() if name != "ask"}
    default = click.core.ParameterSource.DEFAULT
    chosen = context.get_parameter_source("when_behind") is not default
    return Asking(questions=tuple(values["ask"]), chosen=chosen, **how)


def check_moments(asking: Asking, opened: FrameStream) -> None:
    """Refuse questions whose moment can't come, and what a source can't do, as far as is known."""
    if asking.chosen and not opened.live:
        fail(
            f"--when-behind is for a live source, which {opened.name} is not: all of its frames "
            "are taken in"
        )
    for time, text in asking.questions:
        if opened.end is not None and time is not None and time > opened.end:
            fail(
                f"--ask {time:g}s:… is after the end of what is streamed of {opened.name}, "
                f"{opened.end:.2f} s: ask earlier"
            )
        if opened.live and opened.total is None and time is None:
            fail(
                f"--ask {_short(text)!r} is asked at the end, which {opened.name} does not have: "
                "give a moment, as in 12.5s:TEXT, or --frames"
            )


def new_album() -> Album:
    """Return an empty album, for the page of `--report`."""
    from stc_stream.report.answers.album import Album

    return Album()


def with_memory(method: Method, asking: Asking) -> Method:
    """Return the method with the memory that was asked for."""
    from stc_stream.evaluate.methods import read_memory

    if asking.memory is not None and method.memory is not None:
        fail(f"--memory is not for {method.name}, which says itself what it remembers")
    try:
        memory = method.memory or read_memory(asking.memory or "full")
    except ValueError as error:
        fail(as_option(str(error)))
    return replace(method, memory=memory)


def load_asked(model: str | None, device: str, dtype: str) -> VideoLlm:
    """Return the video LLM to ask."""
    from stc_stream.session.load import load_video_llm
    from stc_stream.towers.load import ModelError

    try:
        return load_video_llm(model, device=device, dtype=dtype)
    except ModelError as error:
        fail(str(error))
    except ValueError as error:
        fail(as_option(str(error)))
    except memory_errors():
        fail(TOO_LARGE)


def ask_stream(
    asking: Asking,
    model: VideoLlm,
    method: Method,
    opened: FrameStream,
    fps: float | None,
    warnings: list[str],
    outputs: Outputs[Asked],
    interrupts: Interrupts,
    album: Album | None,
) -> None:
    """Stream a video, ask about it, print what came and write what was asked for.

    Args:
        album: takes pictures of the frames; None: no page will want them.
    """
    from stc_stream.evaluate.method import Method
    from stc_stream.video import VideoError

    methods = (Method("dense"), method)
    comparison = _comparison(asking, model, methods)
    with comparison:
        outputs.begin(
            f"{printable(opened.name)} through {printable(model.name)}, {model.weights}, "
            f"on {model.device}"
        )
        stream = _Stream(asking, model, methods, comparison, outputs.console, interrupts, album)
        try:
            run = stream.run(opened, fps, warnings)
        except VideoError as error:
            fail(f"{opened.name}: {error}")
    _show(run, outputs.console)
    outputs.write(Asked(run, album))


def write_answers_document(asked: Asked) -> Mapping[str, Any]:
    """Return the document of `--json`."""
    from stc_stream.report.answers.document import answers_document

    return answers_document(asked.run)


def write_answers_page(asked: Asked, directory: Path) -> Path:
    """Write the page of `--report`."""
    from stc_stream.report.answers.page import write_answers_report

    assert asked.album is not None
    return write_answers_report(asked.run, asked.album, directory)


def _comparison(asking: Asking, model: VideoLlm, methods: Sequence[Method]) -> SessionComparison:
    from stc_stream.evaluate.answers import SessionComparison, endless_positions
    from stc_stream.session.checks import check_text

    for _, text in asking.questions:
        try:
            model.processor.prompt(check_text("question", text), video=True)
        except ValueError as error:
            fail(as_option(str(error).replace("question must", "ask must", 1)))
    try:
        return SessionComparison(
            model.model,
            model.processor,
            methods,
            positions=endless_positions(methods[1].memory, model.read.axes),
            max_new_tokens=asking.max_new_tokens,
            chunk=asking.chunk,
        )
    except (TypeError, ValueError) as error:
        words = str(error)
        if words.startswith("tokens_per_frame"):
            fail(as_option(words))
        fail(words if asking.memory is None else f"--memory {asking.memory}: {words}")


class _Stream:
    """A stream with questions while it runs."""

    def __init__(
        self,
        asking: Asking,
        model: VideoLlm,
        methods: tuple[Method, Method],
        comparison: SessionComparison,
        console: Console,
        interrupts: Interrupts,
        album: Album | None,
    ) -> None:
        from stc_stream.evaluate.moments import Question

        self._asking = asking
        self._model = model
        self._methods = methods
        self._comparison = comparison
        self._console = console
        self._interrupts = interrupts
        self._questions = [Question(text, time) for time, text in asking.questions]
        self._chunks: list[FedFrames] = []
        self._answers: list[AskedQuestion] = []
        self._may_end_answer = True
        self._full = False
        self._album = album
        self._bar = progress_bar(console)

    def run(self, opened: FrameStream, fps: float | None, warnings: list[str]) -> AnswersRun:
        from stc_stream.evaluate.answers import endless_positions
        from stc_stream.evaluate.moments import Chunk, moments
        from stc_stream.report.answers.run import AnswersRun

        complete = False
        try:
            with self._bar:
                task = self._bar.add_task(f"streaming {printable(opened.name)}", total=opened.total)
                frames = self._until_full(opened)
                for moment in moments(frames, self._questions, self._asking.chunk, opened.end):
                    if isinstance(moment, Chunk):
                        self._feed(moment)
                        self._bar.advance(task, len(moment.frames))
                    else:
                        self._ask(moment)
                complete = True
            self._interrupts.finish()
        except KeyboardInterrupt:
            if not self._chunks:
                raise
        except memory_errors():
            fail(TOO_LARGE)
        asked = {id(answer.question) for answer in self._answers}
        return AnswersRun(
            source=opened.name,
            model=self._model,
            methods=self._methods,
            positions=endless_positions(self._methods[1].memory, self._model.read.axes),
            chunk=self._asking.chunk,
            max_new_tokens=self._asking.max_new_tokens,
            chunks=tuple(self._chunks),
            asked=tuple(self._answers),
            not_asked=tuple(each for each in self._questions if id(each) not in asked),
            full=tuple(self._comparison.full),
            warnings=tuple(warnings),
            complete=complete,
            fps=fps,
            live=None if opened.queue is None else opened.queue.counts,
        )

    def _until_full(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Give frames until no memory has room for them."""
        for frame in frames:
            if self._full:
                return
            yield frame

    def _feed(self, chunk: Chunk) -> None:
        from stc_stream.report.answers.run import FedFrames
        from stc_stream.session import MemoryFullError

        if self._full:
            return
        images = chunk.images
        try:
            if not self._chunks:
                # The first frame alone: a whole chunk would take its time twice more.
                self._comparison.warm_up(images[:1])
            runs = self._comparison.feed(images, chunk.times)
        except MemoryFullError:
            self._full = True
        except ValueError as error:
            # Such as tokens that are not finite, in half precision.
            words = str(error)
            asked_for = words.startswith("tokens_per_frame")
            fail(as_option(words) if asked_for else f"frame {chunk.frames[0].index}: {words}")
        if not self._chunks:
            self._check_room()
        if self._full:
            return
        indices = tuple(frame.index for frame in chunk.frames)
        self._chunks.append(FedFrames(indices, tuple(chunk.times), runs))
        if self._album is not None:
            for image in images:
                self._album.add(image)
        self._may_end_answer = True

    def _check_room(self) -> None:
        """Refuse a memory without room for the first frames: there would be nothing to show."""
        memory = self._asking.memory
        own = self._methods[1].name if memory is None else f"--memory {memory}"
        for words, name in zip(self._comparison.full, ("dense", own), strict=True):
            if words is not None:
                fail(f"{name}: {words}")

    def _ask(self, question: Question) -> None:
        from stc_stream.report.answers.run import AskedQuestion

        last = self._chunks[-1] if self._chunks else None
        frames = sum(len(chunk.indices) for chunk in self._chunks)
        self._bar.stop()
        where = f"{last.times[-1]:.2f} s, frame {last.indices[-1]}" if last else "no frame yet"
        self._print(f"{where}: {printable(question.text)}")
        stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True

        spared = self._interrupts.ending_a_part(stop) if self._may_end_answer else nullcontext()
        with spared:
            runs = self._comparison.ask(question.text, self._see, lambda: not stopped)
        self._print("\n")
        if stopped:
            self._may_end_answer = False
            self._print("  stopped; once more ends the run\n")
        time = last.times[-1] if last else None
        self._answers.append(AskedQuestion(question, frames, time, runs))
        self._bar.start()

    def _see(self, place: int, piece: str) -> None:
        if not piece:
            self._print(f"\n  {self._methods[place].name}: ")
        self._print("\n    ".join(printable(line) for line in piece.split("\n")))

    def _print(self, text: str) -> None:
        self._console.print(text, end="", highlight=False, soft_wrap=True)
        sys.stdout.flush()


def _show(run: AnswersRun, console: Console) -> None:
    from stc_stream.report.answers.table import answers_table, live_words, verdict

    console.print()
    print_table(console, answers_table(run))
    live = live_words(run)
    if live is not None:
        console.print(f"{live}.", highlight=False, soft_wrap=True)
    if not run.model.pretrained:
        console.print(
            "The weights are random: latency is a trained model's of these sizes, the answers mean "
            "nothing.",
            style="dim",
        )
    console.print(verdict(run), style="bold", highlight=False, soft_wrap=True)
    sys.stdout.flush()
    for method, words in zip(run.methods, run.full, strict=True):
        if words is not None:
            say(f"warning: {method.name}: {words}")
    for question in run.not_asked:
        moment = "at the end" if question.time is None else f"at {question.time:g} s"
        say(f"warning: not asked {moment}: {_short(question.text)!r}")
    for warning in run.warnings:
        say(f"warning: {run.source}: {warning}")
    if not run.complete:
        last = run.chunks[-1].indices[-1]
        say(f"warning: stopped at frame {last}; this is what there is so far")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
