"""The page: a golden file, and what must hold of any page."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from allocations import allocation
from capalloc import Allocation
from capalloc.report import report_html, write_report

GOLDEN = Path(__file__).parent / "golden" / "report.html"
VOID = {"meta", "br", "img", "link"}


class Outline(HTMLParser):
    """Tags that open and close, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def pair() -> dict[str, Allocation]:
    return {"measured": allocation(seed=0), "predicted": allocation(seed=1, kind="propagated", notes=["a lower bound"])}


def test_golden_page():
    """After a wanted change of the page: WRITE_GOLDEN=1 pytest tests/test_report.py, and look at the difference."""
    page = report_html(pair(), title="Golden", facts={"test accuracy": "97 %"})
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(page, encoding="utf-8")
    assert page == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "allocations",
    [
        pair(),
        {"one": allocation()},
        {"one": allocation((5,), ("lag",))},
        {str(k): allocation((3, 9, 9), seed=k) for k in range(3)},
        {"large": allocation((1, 80, 80))},
    ],
)
def test_page_is_well_formed_and_needs_no_network(allocations):
    page = report_html(allocations)
    outline = Outline(page)
    assert outline.open == []
    for tag, attributes in outline.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert len([tag for tag, _ in outline.tags if tag == "figure"]) == len(allocations) + (len(allocations) == 2)


def test_page_escapes_every_name():
    evil = "<script>alert('x')</script>"
    a = allocation(notes=[evil], setting=evil)
    names = a.by_parameter.assign_coords(parameter=[evil, "b", "c"])
    a = Allocation(a.capacity, a.bias, names, None, {}, {**a.attrs, evil: evil})
    page = report_html({evil: a}, title=evil, facts={evil: evil})
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_table_agrees_with_the_allocation():
    a = allocation()
    text = [piece.strip() for piece in Outline(report_html({"one": a})).text]
    start = text.index("all", text.index("conv.weight"))
    numbers = [piece for piece in text[start + 1 :] if piece][:11]
    assert sum(map(float, numbers[:9])) == pytest.approx(float(a.capacity.sum()), abs=0.5)
    assert float(numbers[9]) == a.bias
    assert float(numbers[10]) == pytest.approx(a.total, abs=0.05)


def test_without_a_table_the_page_shows_what_there_is():
    a = allocation()
    page = report_html({"one": Allocation(a.capacity, a.bias, a.by_parameter)})
    assert "–" in page
    assert f"{float(a.by_parameter[2]):.1f}" in page


def test_a_map_of_zeros_makes_a_page():
    a = allocation()
    zero = Allocation(a.capacity * 0, 0.0, a.by_parameter * 0, a.table.copy(data=np.zeros(a.table.shape)).assign_coords(
        bias=("parameter", np.zeros(3))))  # fmt: skip
    assert "<svg" in report_html({"one": zero})


def test_refuses_no_allocation():
    with pytest.raises(ValueError, match="a report needs at least one allocation"):
        report_html({})


def test_refuses_other_inputs():
    with pytest.raises(ValueError, match=r"'b' has inputs \(1, 6, 4\), others \(1, 4, 6\); report them apart"):
        report_html({"a": allocation(), "b": allocation((1, 6, 4))})


def test_refuses_other_parameters():
    a = allocation()
    b = Allocation(a.capacity, a.bias, a.by_parameter.assign_coords(parameter=["x", "y", "z"]))
    with pytest.raises(ValueError, match="'b' has other parameters than the rest"):
        report_html({"a": a, "b": b})


def test_write_report_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.html"
    write_report(path, pair())
    assert path.read_text(encoding="utf-8") == report_html(pair())
    with pytest.raises(ValueError, match="at least one"):
        write_report(path, {})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_report(tmp_path / "nowhere" / "page.html", pair())
    assert os.listdir(tmp_path) == ["page.html"]
