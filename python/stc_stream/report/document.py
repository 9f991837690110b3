"""The numbers of a run as JSON, for machines; its schema is `data/stream.schema.json`."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import stc_kernels
from stc_stream.cacher import CacherConfig
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.summary import Summary
from stc_stream.pruner import PrunerConfig
from stc_stream.report.run import StreamRun
from stc_stream.report.target import write_whole
from stc_stream.report.versions import cores, processor, versions
from stc_stream.towers.load import VisionModel

if TYPE_CHECKING:
    from stc_stream.session.load import VideoLlm

SCHEMA_VERSION = 1


def stream_document(run: StreamRun) -> dict[str, Any]:
    """Return all numbers of a run as what `json.dumps` takes, in the shape of `stream_schema`."""
    tower = run.tower
    return {
        "schema_version": SCHEMA_VERSION,
        "complete": run.complete,
        "warnings": list(run.warnings),
        "source": {"name": run.source, "fps": run.fps},
        "model": _model(tower),
        "closeness_model": _model(run.closeness or tower),
        "config": method_settings(run.method),
        "machine": machine(tower),
        "versions": dict(versions()),
        "implementation": stc_kernels.implementation("select_dynamic", tower.device),
        "fidelity": None if run.fidelity is None else asdict(run.fidelity),
        "summary": _summary(run.summary),
        "frames": [asdict(frame) for frame in run.frames],
    }


def method_settings(method: Method) -> dict[str, Any]:
    """Return a method's name, and the settings of its Cacher and its Pruner."""
    cacher = method.tower if isinstance(method.tower, CacherConfig) else None
    return {
        "method": method.name,
        "cacher": None if cacher is None else asdict(cacher),
        "pruner": None if method.pruner is None else _settings(method.pruner),
    }


def _model(tower: VisionModel) -> dict[str, Any]:
    return {
        "name": tower.name,
        "pretrained": tower.pretrained,
        "image_size": tower.image_size,
        "patch": tower.patch,
        "tokens": tower.tokens,
        "width": tower.width,
        "layers": tower.layers,
    }


def _settings(config: PrunerConfig) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    # An object may hold anything: the name of its class stands for it.
    return {**values, "strategy": config.strategy_name}


def stream_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `stream_document`."""
    return read_schema("stream.schema.json")


def _summary(summary: Summary) -> dict[str, Any]:
    content = {**asdict(summary), "scene_cuts": list(summary.scene_cuts)}
    for name in ("dense", "compressed", "selective", "pruner"):
        if content[name] is not None:
            content[name] = {key: content[name][key] for key in ("median", "p95", "mean")}
    return content


def machine(model: VisionModel | VideoLlm) -> dict[str, Any]:
    """Return where a model ran, as a document has it."""
    return {
        "device": str(model.device),
        "processor": processor(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }


def read_schema(name: str) -> dict[str, Any]:
    """Return a JSON Schema that comes with the package."""
    text = files("stc_stream").joinpath(f"data/{name}").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def write_document(document: Mapping[str, Any] | Sequence[Any], path: Path) -> Path:
    """Write a document to a file, as `write_whole` does, and return its path.

    Raises:
        OSError: it cannot be written; a file that was there before stays as it was.
    """
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    write_whole(path, text + "\n")
    return path
