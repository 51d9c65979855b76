"""`capalloc models`: the reference architectures."""

from __future__ import annotations

from rich import box
from rich.table import Table

from capalloc import architectures
from capalloc.app.cli.deliver import show
from capalloc.app.cli.options import Verbosity
from capalloc.architectures import Architecture


def run_models(verbosity: Verbosity) -> None:
    """Run `capalloc models`."""
    found = [architectures.info(name) for name in architectures.names()]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for name in ("name", "parameters", "input", "what it is"):
        table.add_column(name, justify="right" if name == "parameters" else "left", no_wrap=name != "what it is")
    for a in found:
        shape = f"{a.shape[0]} tokens" if a.reads_tokens else ",".join(map(str, a.shape))
        table.add_row(a.name, f"{a.num_params:,}", shape, a.description)
    show(verbosity, {"models": [_entry(a) for a in found]}, table)


def _entry(a: Architecture) -> dict[str, object]:
    names = ("name", "num_params", "shape", "description", "reference", "arguments")
    return {name: getattr(a, name) for name in names}
