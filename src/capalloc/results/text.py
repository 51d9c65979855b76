"""A view as lines of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from capalloc._runtime.terminal import printable
from capalloc.results.view import View

#: Rows of a table; the rest are counted.
TEXT_ROWS = 12


def as_text(view: View) -> str:
    """The heading, facts, tables with aligned columns, advice and notes; details are left out."""
    lines = [f"<{view.kind}, {view.heading}>"]
    lines += aligned([[fact.name, f"{fact.value} {fact.more}"] for fact in view.facts[: view.brief]])
    for table in view.tables:
        if not (table.detail or table.apart):
            lines += ["", f"  {table.title}", *aligned([table.head, *table.first(TEXT_ROWS)])]
    notes = [f"  {note}" for note in (*(view.advice or ()), *view.notes)]
    return printable("\n".join([*lines, *([""] if notes else []), *notes]))


def briefly(value: Any) -> str:
    """A dataclass with six digits of its numbers and the sizes of its arrays: what `repr` shows of it."""
    fields = (f"{f.name}={_brief(getattr(value, f.name))}" for f in dataclasses.fields(value) if f.repr)
    return f"{type(value).__name__}({', '.join(fields)})"


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:z.6g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_brief(entry)}" for key, entry in value.items()) + "}"
    if hasattr(value, "shape"):
        return f"<{type(value).__name__} of {' x '.join(map(str, value.shape)) or 'no axes'}>"
    return repr(value)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Each row as a line, columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
