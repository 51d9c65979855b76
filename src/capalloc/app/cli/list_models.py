"""`capalloc models`: the reference architectures."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from capalloc import architectures
from capalloc.app.cli.as_json import print_json
from capalloc.app.cli.options import Verbosity
from capalloc.architectures import Architecture


def run_models(verbosity: Verbosity) -> None:
    """`capalloc models`."""
    found = [architectures.info(name) for name in architectures.names()]
    if verbosity.as_json:
        print_json({"models": [_entry(a) for a in found]})
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for name in ("name", "parameters", "input", "what it is"):
        table.add_column(name, justify="right" if name == "parameters" else "left", no_wrap=name != "what it is")
    for a in found:
        table.add_row(a.name, f"{a.num_params:,}", ",".join(map(str, a.shape)), a.description)
    Console().print(table)


def _entry(a: Architecture) -> dict[str, object]:
    return {
        "name": a.name,
        "num_params": a.num_params,
        "shape": a.shape,
        "description": a.description,
        "reference": a.reference,
        "arguments": a.arguments,
    }
