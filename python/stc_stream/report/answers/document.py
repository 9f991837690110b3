"""The numbers of a stream with questions as JSON; its schema is that of `stc stream`."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from typing import Any

import stc_kernels
from stc_stream.evaluate.answers import STAGES, AnswerRun, ChunkRun, StageTimes
from stc_stream.report.answers.run import SIDES, AnswersRun, AskedQuestion, FedFrames
from stc_stream.report.document import SCHEMA_VERSION, machine, method_settings
from stc_stream.report.versions import versions
from stc_stream.session import FullMemory, Memory

_HELD = (
    "frames",
    "tokens_seen",
    "tokens_held",
    "bytes_device",
    "bytes_host",
    "bytes_reserved",
    "frames_forgotten",
    "frames_waiting",
)


def answers_document(run: AnswersRun) -> dict[str, Any]:
    """Return all numbers of a run as what `json.dumps` takes, in the shape of `stream_schema`."""
    model = run.model
    return {
        "schema_version": SCHEMA_VERSION,
        "complete": run.complete,
        "warnings": list(run.warnings),
        "source": {"name": run.source, "fps": run.fps},
        "config": method_settings(run.methods[1]),
        "machine": machine(model),
        "versions": dict(versions()),
        "implementation": stc_kernels.implementation("select_dynamic", model.device),
        "session": {
            "model": _model(run),
            "memory": _memory(run.methods[1].memory),
            "positions": run.positions,
            "chunk": run.chunk,
            "max_new_tokens": run.max_new_tokens,
            "live": None if run.live is None else asdict(run.live),
            "frames": run.frames,
            "compared_frames": run.compared_frames,
            "compared_questions": run.compared_questions,
            "times": _times(run),
            "held": {
                side: None if stats is None else {name: getattr(stats, name) for name in _HELD}
                for side, stats in zip(SIDES, run.stats, strict=True)
            },
            "full": dict(zip(SIDES, run.full, strict=True)),
            "chunks": [_chunk(chunk) for chunk in run.chunks],
            "questions": [_question(run, question) for question in run.asked],
            "not_asked": [asdict(question) for question in run.not_asked],
        },
    }


def _model(run: AnswersRun) -> dict[str, Any]:
    model, read = run.model, run.model.read
    config = read.model.config.get_text_config()
    return {
        "name": model.name,
        "pretrained": model.pretrained,
        "family": read.family,
        "tokens_per_frame": read.tokens_per_frame,
        "context": read.context,
        "llm_width": config.hidden_size,
        "llm_layers": config.num_hidden_layers,
    }


def _memory(memory: Memory | None) -> dict[str, Any]:
    policy: Any = memory or FullMemory()
    settings = {each.name: getattr(policy, each.name) for each in fields(policy)}
    return {"policy": type(policy).__name__, **settings} if is_dataclass(policy) else {}


def _times(run: AnswersRun) -> dict[str, Any]:
    dense, compressed = run.times
    return {
        "dense": _stage_times(dense),
        "compressed": _stage_times(compressed),
        "saved": {stage: compressed.saved(stage, dense) for stage in STAGES},
        "saved_of_whole": {stage: compressed.saved_of_whole(stage, dense) for stage in STAGES},
        "reduction": 1 - compressed.whole / dense.whole if dense.whole else None,
    }


def _stage_times(times: StageTimes) -> dict[str, Any]:
    return {
        "whole_ms": 1e3 * times.whole,
        "stages_ms": {stage: 1e3 * times.seconds[stage] for stage in STAGES},
        "shares": {stage: times.share(stage) for stage in STAGES},
    }


def _chunk(chunk: FedFrames) -> dict[str, Any]:
    def side(run: ChunkRun | None) -> dict[str, Any] | None:
        if run is None:
            return None
        return {
            "stages_ms": {stage: 1e3 * seconds for stage, seconds in run.seconds.items()},
            "kept": run.kept,
            "tokens_held": run.stats.tokens_held,
            "bytes_device": run.stats.bytes_device,
            "bytes_host": run.stats.bytes_host,
        }

    sides = {name: side(run) for name, run in zip(SIDES, chunk.runs, strict=True)}
    return {"indices": list(chunk.indices), "times": list(chunk.times), **sides}


def _question(run: AnswersRun, question: AskedQuestion) -> dict[str, Any]:
    def side(own: AnswerRun | None) -> dict[str, Any] | None:
        if own is None:
            return None
        first, later = (own.seconds.get(stage) for stage in ("first_token", "later_tokens"))
        return {
            "answer": own.text,
            "tokens": own.tokens,
            "ending": own.ending,
            "retrieved": [[run.places[number][0] for number in layer] for layer in own.retrieved],
            "first_token_ms": None if first is None else 1e3 * first,
            "answer_ms": None if first is None or later is None else 1e3 * (first + later),
        }

    return {
        "text": question.question.text,
        "time": question.question.time,
        "frames": question.frames,
        "last_frame_time": question.time,
        **{name: side(own) for name, own in zip(SIDES, question.runs, strict=True)},
    }
