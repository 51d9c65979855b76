"""`capalloc design`: the page, or designs by their target where a field is asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import RenderableType
from torch import nn

from capalloc._runtime.files import write_text
from capalloc.app.cli.deliver import check_targets, show
from capalloc.app.cli.errors import UsageError
from capalloc.app.cli.options import ModelOptions, Verbosity
from capalloc.app.cli.sources import read_sources
from capalloc.app.cli.tables import table_of
from capalloc.app.design import Design, Reading, code, nearest, search, serve
from capalloc.app.design.find_designs import unevenness
from capalloc.app.design.query import from_settings, to_query

HEAD = ["field", "layers", "kernel", "dilation", "strides", "width", "parameters", "even"]


def run_design(
    verbosity: Verbosity,
    model: str | None,
    arg: list[str] | None,
    shape: str | None,
    field: int | None,
    flat: int | None,
    max_parameters: str | None,
    most: int | None,
    settings: list[str] | None,
    out: Path | None,
    port: int,
    open_browser: bool,
) -> None:
    """Run `capalloc design`."""
    if model is None and (arg or shape):
        raise UsageError("--arg and --shape are of a model: name one, to start from a design that is near to it")
    near = None if model is None else nearest_to(ModelOptions(model, arg, shape=shape), verbosity)
    with usage():
        start = from_settings(settings or [], near)
    if field is None:
        of_search = {"--flat": flat, "--max-parameters": max_parameters, "--most": most, "--out": out}
        told = [name for name, value in of_search.items() if value is not None] + ["--json"] * verbosity.as_json
        if told:
            raise UsageError(f"{', '.join(told)} is of a search: say with --field how many pixels a design should see")
        serve(port, open_browser, to_query(start))
        return
    check_targets(out)
    if out is not None and out.suffix != ".py":
        raise UsageError(f"--out must end in .py, a file of Python, got {out}")
    limit = number(max_parameters or "100k")
    with usage():
        found = search(field, flat=flat, max_params=limit, like=start, most=most or 5)
    best = code(found[0].design)
    if out is not None:
        write_text(out, best)
    numbers = {"field": field, "flat": flat, "max_parameters": limit, "designs": [entry(r, flat) for r in found]}
    show(verbosity, numbers | {"code": best}, table(found, flat))
    if out is None and not verbosity.as_json:
        typer.echo(f"PyTorch code of the first:\n\n{best}", nl=False)
    elif out is not None:
        verbosity.tell(f"wrote {out}")


def nearest_to(options: ModelOptions, verbosity: Verbosity) -> Design:
    """The design that comes near to a model; what it is, on stderr."""
    source = read_sources(options, verbosity, 1)
    if not isinstance(source.model, nn.Module):
        raise UsageError("a design cannot start from a .pt2 file; name what makes the model")
    found = nearest(source.model, source.inputs)
    verbosity.tell(f"near to {options.model}: {to_query(found).replace('&', ', ')}")
    return found


@contextmanager
def usage() -> Iterator[None]:
    """Make wrong usage of the error that a value cannot be."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error).replace("max_params", "--max-parameters")) from error


def number(text: str) -> int:
    """Read a number of parameters: 20000, 20k, 1.5M.

    Raises:
        UsageError: it is none.

    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmM]?)", text.strip().replace(",", ""))
    size = float(found[1]) * {"": 1, "k": 1e3, "m": 1e6}[found[2].lower()] if found else math.nan
    if not 1 <= size < 1e12:
        raise UsageError(f"--max-parameters must be a number such as 20000, 100k or 1.5M, got {text!r}")
    return int(size)


def entry(reading: Reading, flat: int | None) -> dict[str, object]:
    """A design as JSON: its settings, its numbers, and the address of its page."""
    names = ("extent", "deviation", "num_params", "total", "T", "phase", "index", "correlation")
    away = None if flat is None else unevenness(reading.profile(reading.law), flat)
    numbers = {name: getattr(reading, name) for name in names}
    return {"settings": vars(reading.design), **numbers, "unevenness": away, "query": to_query(reading.design)}


def table(found: Sequence[Reading], flat: int | None) -> RenderableType:
    """A row for each design, the nearest first."""
    rows = []
    for reading in found:
        d = reading.design
        doubling = f"{d.dilation}" if d.cycle == 1 else f"{d.dilation} × 1 … {2 ** (d.cycle - 1)}"
        strides = "–" if d.stride == 1 else f"{d.stride} in {d.strided}"
        near = [f"{1 - unevenness(reading.profile(reading.law), flat):.0%}"] if flat else []
        numbers = (d.depth, d.kernel, doubling, strides, d.width, f"{reading.num_params:,}")
        rows.append([str(reading.extent), *map(str, numbers), *near])
    even = f"; even, a guide: shared with a flat field of {flat} pixels" if flat else ""
    title = f"designs, the nearest first; fields and parameters are exact{even}"
    return table_of(title, HEAD if flat else HEAD[:-1], rows)
