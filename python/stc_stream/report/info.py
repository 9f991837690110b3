"""What is installed here, and what each op runs on: the table of `stc info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.table import Table

import stc_kernels
from stc_kernels._registry import SCHEMAS
from stc_stream.report.versions import cores, processor, versions


def info_table(built: Mapping[str, Any]) -> Table:
    """Return versions, build, CPU, GPUs and the implementation of each op.

    Args:
        built: from `stc_kernels.build_info`.
    """
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, number in versions().items():
        table.add_row(name, number or "not installed")
    table.add_section()
    if built["extension"]:
        table.add_row("compiled code", f"yes, with {built['compiler']}, torch {built['torch']}")
        table.add_row("instruction sets", ", ".join(built["isas"]) or "the compiler's default")
    else:
        table.add_row("compiled code", "no: the ops run their naive definitions")
    table.add_row("CPU", f"{processor(torch.device('cpu'))}, {cores()} cores")
    table.add_row("CPU features", torch.backends.cpu.get_cpu_capability())
    table.add_row("threads", str(torch.get_num_threads()))
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    table.add_row("GPUs", ", ".join(gpus) or "none that torch can use")
    table.add_section()
    devices = ["cpu", *(["cuda"] if gpus else [])]
    for op in _ops():
        uses = [f"{device}: {stc_kernels.implementation(op, device)}" for device in devices]
        table.add_row(op, "; ".join(uses))
    return table


def _ops() -> list[str]:
    return [name for name in stc_kernels.__all__ if name in SCHEMAS]
