"""What the pages say runs: every ```python block, in order, and every link inside the tree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import stc_kernels

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "python/stc_numpy/README.md"]
)
SAMPLE = ROOT / "python/stc_stream/data/sample.mp4"
# A block is left out only by a comment on the line before its fence that says why.
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S.*) -->")
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>.*)$")
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, code, the line its code starts on, and why it is not run."""

    language: str
    code: str
    line: int
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    opened: re.Match[str] | None = None
    start = 0
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if opened is None:
            opened, start = fence, number
        elif not fence["info"] and len(fence["fence"]) >= len(opened["fence"]):
            inside = [text.removeprefix(opened["indent"]) for text in lines[start + 1 : number]]
            comment = NOT_RUN.fullmatch(lines[start - 1].strip()) if start else None
            reason = comment["reason"] if comment else None
            language = opened["info"].strip()
            found.append(Block(language, "\n".join(inside) + "\n", start + 2, reason))
            opened = None
    assert opened is None, f"{page.name}:{start + 1}: the block is never closed"
    return found


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    code = {line for block in blocks(page) for line in block.code.splitlines()}
    headings = [
        line.lstrip("#")
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.match(r"#{1,6} ", line) and line not in code
    ]
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks(page))], ids=name
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A reader's own video, as the pages call it.
    (tmp_path / "talk.mp4").symlink_to(SAMPLE)
    scope: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != "python":
            continue
        # Blank lines before it, so that a traceback names the line of the page.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        if block.not_run is None and not _needs_more(block):
            exec(code, scope)


def _needs_more(block: Block) -> bool:
    return "stc_kernels.interop" in block.code and not stc_kernels.build_info()["extension"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        target, _, anchor = link["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name(page)}: {link['target']}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{name(page)}: {link['target']}"


def test_every_page_is_in_the_index():
    index = ROOT / "docs/index.md"
    text = index.read_text(encoding="utf-8")
    listed = {(index.parent / link["target"]).resolve() for link in LINK.finditer(text)}
    assert {page for page in PAGES if page.parent == index.parent} - {index} <= listed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\nx = 1\n```\n", [("python", "x = 1\n", 2, None)]),
        ("a\n<!-- not run: slow -->\n```python\nx\n```\n", [("python", "x\n", 4, "slow")]),
        ("<!-- not run: -->\n```python\nx\n```\n", [("python", "x\n", 3, None)]),
        ("- a\n  ```sh\n  ls\n  ```\n", [("sh", "ls\n", 3, None)]),
        ("````md\n```python\nx\n```\n````\n", [("md", "```python\nx\n```\n", 2, None)]),
    ],
)
def test_blocks_are_found(text, expected, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    found = [(b.language, b.code, b.line, b.not_run) for b in blocks(page)]
    assert found == expected
