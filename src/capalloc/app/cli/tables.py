"""Views of results as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape as without_markup
from rich.table import Table as RichTable

from capalloc._runtime.terminal import printable
from capalloc.results.view import Table, View

#: Rows of a table whose rows have sizes: the largest; the rest are summed.
LARGEST = 10
#: Columns of a terminal that any table has room in.
UNBOUNDED = 10_000
#: Columns that there are at least: terminals may say that they have none.
NARROWEST = 20


def terminal() -> Console:
    """Give the standard output as what tables are printed on."""
    console = Console()
    console.width = max(console.width, NARROWEST)
    return console


def print_view(view: View) -> None:
    """Print facts, tables that do not stand apart, then advice and notes on stdout."""
    console = terminal()
    heading = RichTable(title=escape(f"{view.title}, {view.heading}"), box=box.SIMPLE, show_header=False, min_width=56)
    heading.title_justify = "left"
    for fact in view.facts:
        heading.add_row(*map(escape, (fact.name, f"{fact.value} {fact.more}".strip())))
    console.print(heading if view.facts else heading.title)
    for table in (table for table in view.tables if table.rows and not table.apart):
        for left_out in range(len(table.spare) + 1):
            shown = table.narrow(table.spare[:left_out])
            whole = table_of(shown.title, shown.head, largest(shown))
            if console.measure(whole, options=console.options.update(width=UNBOUNDED)).maximum <= console.width:
                break
        if left_out:
            gone = ", ".join(table.spare[:left_out])
            whole.caption = escape(f"no room for {gone}: see --json, or a wider terminal")
        console.print(whole)
    advice = view.advice or ([view.settled] if view.settled else [])
    for line in (*advice, *(f"note: {note}" for note in view.notes)):
        console.print(printable(line), markup=False, soft_wrap=True)


def escape(text: str) -> str:
    """Return text that neither rich nor a terminal obeys."""
    return without_markup(printable(text))


def largest(table: Table, most: int = LARGEST) -> Sequence[Sequence[str]]:
    """All rows, or the largest and the sum of the others by their sizes, and its share in a third column."""
    if table.sizes is None:
        return table.rows
    ranked = sorted(zip(table.sizes, table.rows, strict=True), key=lambda pair: -pair[0])
    rows = [row for _, row in ranked[:most]]
    if rest := ranked[most:]:
        size = sum(size for size, _ in rest)
        shared = table.head[2:3] == ["share"]
        others = [f"{size:,.2f}", f"{size / (sum(table.sizes) or 1.0):.1%}"] if shared else [f"{size:,.10g}"]
        rows.append([f"{len(rest)} more", *others, *[""] * (len(table.head) - 1 - len(others))])
    return rows


def table_of(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> RichTable:
    """A table whose columns of words stand to the left, and those of numbers to the right."""
    table = RichTable(title=escape(title), min_width=56)
    for name, words in zip(head, Table(title, head, rows).of_words, strict=True):
        table.add_column(escape(name), justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
