"""Results in words: tables as text, factors as people say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Tables = Mapping[str, Sequence[Sequence[str]]]  # title -> rows, the header first


def factor(value: float) -> str:
    """A factor as growth or loss."""
    return f"grows {value:.3g} times" if value > 1 else f"falls to {value:.2g}"


def heading(kind: str, facts: str) -> str:
    """The first line of a representation."""
    return f"<capalloc.{kind}, {facts}>"


def in_lines(tables: Tables, notes: Sequence[str] = ()) -> str:
    """Tables with aligned columns, then notes, each line on its own."""
    lines = []
    for title, rows in tables.items():
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", f"  {title}"]
        lines += ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *(f"  {note}" for note in notes)] if notes else []
    return "\n".join(lines)
