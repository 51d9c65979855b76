"""The ways out of a result: a file, a picture, a table or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from capalloc._runtime.files import check_target
from capalloc.app.cli.as_json import as_dict, print_json
from capalloc.app.cli.options import OutputOptions
from capalloc.app.cli.tables import shown
from capalloc.results.kinds import Result
from capalloc.results.plots import save_figure


def check_targets(*paths: Path | None) -> None:
    """Raise where a file cannot be written: before the work, not after it."""
    for path in paths:
        if path is not None:
            check_target(path)


def deliver(result: Result, output: OutputOptions, model: str) -> None:
    """Write what is to be written, then print the numbers."""
    if output.out is not None:
        result.save(output.out)
    if output.picture is not None:
        save_figure(figure(result), output.picture)
    if output.as_json:
        print_json({"model": model} | as_dict(result))
    else:
        print_tables(result)
    written = [str(path) for path in (output.out, output.picture) if path is not None]
    if written:
        output.tell(f"wrote {' and '.join(written)}")


def print_tables(result: Result) -> None:
    """Print tables and lines on stdout."""
    console = Console()
    tables, lines = shown(result)
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def figure(result: Result) -> Figure:
    """Draw a result on a new figure."""
    drawn: Any = result.plot()
    whole: Figure = drawn if isinstance(drawn, Figure) else drawn.figure
    return whole
