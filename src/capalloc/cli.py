"""The `capalloc` command. Every command's work lies in a module of its own; here are arguments and words."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from capalloc.commands import run_measure, run_propagate, run_receptive_field
from capalloc.decoupling.command import run_decoupling_study
from capalloc.demo import Demo, run_demo
from capalloc.diagnosis_command import run_diagnose
from capalloc.linear.command import run_linear_study
from capalloc.storage import check_target

#: What the user can mend: reported in one line, without a traceback.
EXPECTED = (ValueError, TypeError, OSError, MemoryError, ModuleNotFoundError, NotImplementedError)


class Commands(TyperGroup):
    """Commands whose expected errors are one line on stderr and exit code 1; with --debug, a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"capalloc: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"capalloc {version('capalloc')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Where a neural network spends its modelling capacity."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("demo.html"),
    seed: Annotated[int, typer.Option(help="Of the split and the training.", min=0)] = 0,
) -> None:
    """Train a small network on handwritten digits, measure its capacity and predict it."""
    check_target(out)  # before the work, not after it
    console = Console()
    console.print("Training a small network on handwritten digits, measuring its capacity, predicting it ...")
    result = run_demo(seed)
    console.print(summary(result))
    result.write(out)
    console.print(f"The maps are in {out}: open it in a browser.", markup=False, soft_wrap=True)


app.command("propagate")(run_propagate)
app.command("measure")(run_measure)
app.command("receptive-field")(run_receptive_field)
app.command("diagnose")(run_diagnose)
app.command("decoupling-study")(run_decoupling_study)
app.command("linear-study")(run_linear_study)


def summary(result: Demo) -> Table:
    """The numbers of the demo."""
    parameters = result.measured.attrs["num_params"]
    unused = result.predicted.attrs["unused_params"]
    table = Table(title=f"{parameters} parameters, test accuracy {result.accuracy:.1%}", min_width=56)
    table.add_column("capacity")
    for name in ("total", "on bias", "seconds"):
        table.add_column(name, justify="right")
    rows = (("measured", result.measured, "measure"), ("predicted", result.predicted, "predict"))
    for name, a, step in rows:
        table.add_row(name, f"{a.total:.2f}", f"{a.bias:.2f}", f"{result.seconds[step]:.1f}")
    table.add_section()
    table.add_row("parameters − hidden channels", str(parameters - result.num_hidden))
    table.add_row("parameters in dead units", str(unused))
    table.add_row("correlation of the two maps", f"{result.correlation:.3f}")
    table.add_row("their total-variation distance", f"{result.total_variation:.3f}")
    return table
