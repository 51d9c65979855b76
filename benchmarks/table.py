"""What a benchmark returns, how it times, and how that reads in Markdown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """One benchmark's figures: a title, a line of what was done, a header and rows of text."""

    title: str
    about: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", self.about, ""]
        lines += [_row(self.header), _row(("---",) * len(self.header))]
        return "\n".join([*lines, *map(_row, self.rows)])


def median_seconds(call: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Median wall-clock time of `repeats` calls, and what the last one returned."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
