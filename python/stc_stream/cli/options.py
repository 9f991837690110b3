"""The options that several commands have, their types, and the settings of all commands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stc_stream.report.target import STANDARD_OUTPUT

if TYPE_CHECKING:
    # Generic from click 8.4 on, and not to be indexed before.
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

_Decorated = TypeVar("_Decorated", bound="Callable[..., Any] | click.Command")
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class FiniteRange(click.FloatRange):
    """A range without NaN, which compares as inside any, and without infinity."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class Listed(_ParamType):
    """Several values of one option, with commas between them."""

    def __init__(self, each: _ParamType) -> None:
        self._each = each
        self.name = each.name

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "LIST"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        if not isinstance(value, str):
            return [self._each.convert(value, param, ctx)]
        return [self._each.convert(each.strip(), param, ctx) for each in value.split(",")]


def joined(
    context: click.Context, parameter: click.Parameter, lists: Sequence[Sequence[Any]]
) -> tuple[Any, ...]:
    return tuple(value for values in lists for value in values)


def as_name(text: str) -> str:
    if not text:
        raise click.BadParameter("it is empty: give a name, or leave it out")
    return text


def as_path(text: str) -> Path:
    return Path(as_name(text))


def as_document(text: str) -> Path:
    return STANDARD_OUTPUT if text == "-" else as_path(text)


SHARE = FiniteRange(0, 1, min_open=True)

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda or cuda:N; auto is a GPU where there is one.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="auto is float32 on a CPU, bfloat16 on a GPU.",
)
json_option = click.option(
    "--json",
    "document",
    metavar="FILE",
    type=as_document,
    help="Write all numbers as JSON; - is standard output, without the table.",
)
pruner_option = click.option(
    "--pruner",
    type=as_name,
    metavar="NAME",
    help="How the Pruner chooses: dual_anchor, gaussian, uniform, dtd or another of "
    "docs/methods.md.  [default: as the method has it]",
)


def model_option(words: str) -> Callable[[_Decorated], _Decorated]:
    """Return the option `--model`, whose help is `words`."""
    return click.option("--model", type=as_name, metavar="NAME_OR_PATH", help=words)


def method_option(
    *names: str, words: str, multiple: bool = False
) -> Callable[[_Decorated], _Decorated]:
    """Return the option `--method`, whose help is `words` and how settings are written."""
    more = "With settings: skip:refresh_interval=2."
    return click.option(
        "--method",
        *names,
        type=as_name,
        metavar="NAME",
        multiple=multiple,
        help=f"{words} {more}",
    )
