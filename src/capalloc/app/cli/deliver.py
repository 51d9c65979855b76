"""The ways out of a result: a file, a picture, a table or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from capalloc._runtime.files import check_target
from capalloc.app.cli.as_json import as_dict, print_json
from capalloc.app.cli.errors import TYPED, UsageError
from capalloc.app.cli.options import FileOptions, OutputOptions, Verbosity
from capalloc.app.cli.tables import print_view, terminal
from capalloc.results.base import MADE, Result
from capalloc.results.plots import PICTURES, save_figure


def _picture(output: FileOptions) -> Path | None:
    return output.picture if isinstance(output, OutputOptions) else None


def check_outputs(output: FileOptions) -> None:
    """Raise where a result or a picture cannot be written, or its ending names another format."""
    picture = _picture(output)
    if output.out is not None and output.out.suffix != ".nc":
        raise UsageError(f"--out must end in .nc, a NetCDF file, got {output.out}")
    if picture is not None and picture.suffix.lower().removeprefix(".") not in PICTURES:
        raise UsageError(f"--picture must end in .{', .'.join(PICTURES)}, got {picture}")
    check_targets(output.out, picture)


def check_targets(*paths: Path | None) -> None:
    """Raise where a file cannot be written: before the work, not after it."""
    for path in paths:
        if path is not None:
            check_target(path)


def show(verbosity: Verbosity, numbers: Mapping[str, Any], *shown: RenderableType) -> None:
    """Print numbers as JSON, or what shows them on a terminal."""
    if verbosity.as_json:
        print_json(numbers)
        return
    console = terminal()
    for part in shown:
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))  # a line stays one


def deliver(result: Result, output: FileOptions, model: str) -> None:
    """Write what is to be written, with the command that makes it again, then print the numbers."""
    if (typed := TYPED.get()) is not None:
        result.data.attrs[MADE] = result.data.attrs.get(MADE, {}) | {"command": typed}
    if output.out is not None:
        result.save(output.out)
    if (picture := _picture(output)) is not None:
        save_figure(result.figure(), picture)
    if output.as_json:
        print_json({"model": model} | as_dict(result))
    else:
        print_view(result.view())
    written = [str(path) for path in (output.out, picture) if path is not None]
    if written:
        output.tell(f"wrote {' and '.join(written)}")
