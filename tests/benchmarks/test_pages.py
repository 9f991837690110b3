"""The pages' figures are those of the results that are kept."""

from __future__ import annotations

import json

import pytest

from benchmarks import pages


@pytest.mark.parametrize("name", pages.PAGES)
def test_pages_show_what_is_kept(name):
    page = (pages.ROOT / name).read_text(encoding="utf-8")
    # Where this fails: python -m benchmarks.pages
    assert pages.filled(page) == page
    regions = page.count("<!-- figures: ")
    assert len(pages._REGION.findall(page)) == regions == page.count("<!-- end of figures -->") > 0


def test_only_the_tables_change(monkeypatch):
    monkeypatch.setitem(pages._TABLES, "ops", lambda: ["| new |"])
    begin, end = "<!-- figures: ops, by hand -->\n", "<!-- end of figures -->"
    page = f"before\n{begin}\n| old |\n| older |\n\n{end}\nbetween\n{begin}{end}\n"
    expected = f"before\n{begin}\n| new |\n\n{end}\nbetween\n{begin}\n| new |\n\n{end}\n"
    assert pages.filled(page) == expected
    with pytest.raises(KeyError):
        pages.filled(page.replace("figures: ops", "figures: nothing"))


def test_the_fastest_plain_way_comes_first(tmp_path, monkeypatch):
    def times(median: float) -> dict[str, float]:
        return {"median": median, "low": 0, "high": 0, "best": 0, "rounds": 5, "calls": 1}

    sides = {"ours": 0.002, "eager": 0.05, "lean": 0.03, "float32_lean_compiled": 0.006}
    sides |= {"float32": 0.08, "read": 0.001, "copy": 0.001}
    about = {"op": "select_dynamic", "dtype": "bfloat16", "frames": 1, "default": True}
    result = {
        "name": "x",
        "kind": "op",
        "sides": {name: times(median) for name, median in sides.items()},
        "about": about,
    }
    content = {"machine": {}, "runs": 1, "note": "", "command": "", "results": [result]}
    (tmp_path / f"{pages.MACHINE}.json").write_text(json.dumps(content))
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    (row,) = [row for row in pages.ops() if "`select_dynamic` | bfloat16" in row]
    assert "| 3.0× float32-first lean compiled (25.0× eager) |" in row
    (kept,) = pages._by_name(pages.MACHINE).values()
    assert pages._plain_ways(kept) == (
        "6 ms float32-first lean compiled; 50 ms eager; 80 ms float32-first"
    )
    assert pages.ops("another-machine") == ["Not measured yet."]
