"""The frame of a study: pictures, and tables between two marks of a page of docs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsFloat

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True, eq=False)
class Study:
    """The figure and tables of one study, for one page of docs."""

    page: str  # of docs, such as "shattering.md"
    tables: Mapping[str, str] = field(default_factory=dict)  # mark in the page -> Markdown
    pictures: Mapping[str, Figure] = field(default_factory=dict)  # name in docs/pictures, without suffix -> figure

    def write(self, docs: Path = DOCS) -> None:
        """Save the pictures and put every table between `<!-- mark -->` and `<!-- end mark -->` of the page.

        Raises:
            ValueError: the page lacks a mark.

        """
        page = docs / self.page
        text = page.read_text(encoding="utf-8")
        for mark, table in self.tables.items():
            between = re.compile(rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- end {re.escape(mark)} -->)", re.DOTALL)
            if not between.search(text):
                raise ValueError(f"{page.name} lacks the marks '<!-- {mark} -->' and '<!-- end {mark} -->'")
            text = between.sub(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
        page.write_text(text, encoding="utf-8")
        for name, figure in self.pictures.items():
            figure.savefig(docs / "pictures" / f"{name}.png", dpi=100, metadata={"Software": None})
            plt.close(figure)


def plus_minus(value: SupportsFloat, error: SupportsFloat, digits: int = 4) -> str:
    """Write a value and its standard error."""
    return f"{float(value):.{digits}f} ± {float(error):.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
