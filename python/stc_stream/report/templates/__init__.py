"""Pages as Jinja templates: no script, and nothing fetched from anywhere."""

from __future__ import annotations

from importlib.resources import files

import jinja2

from stc_stream.report.terminal import printable


def template(name: str) -> jinja2.Template:
    """Return a page's template, in which every value is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
        loader=jinja2.FunctionLoader(_read),
    )
    return environment.get_template(name)


def _read(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _shown(value: object) -> object:
    # A name's control characters are written out; what is markup already stays.
    return printable(value) if type(value) is str else value
