"""Every command: its name, its help and its options.

A command imports its work when it runs, so that help and completion wait for no import of torch.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from capalloc.app.cli.flatten import flattened
from capalloc.app.cli.group import PROGRAM, Commands
from capalloc.app.cli.options import METHOD, RESULT, Gates, Given, Result, Talk

COMPUTE, RESULTS, STUDIES = "Compute", "Results and models", "Studies"
EPILOG = (
    "Exit codes: 0 done; 1 an error that you can mend, told in one line; 2 wrong usage; 130 interrupted. "
    "Numbers go to stdout, everything else to stderr."
)

app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, epilog=EPILOG)

GatesOption = Annotated[Gates, typer.Option(help="Where slopes of activations come from.", rich_help_panel=METHOD)]


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Where a neural network spends its modelling capacity."""


@app.command("propagate", rich_help_panel=COMPUTE)
@flattened
def propagate(
    given: Given,
    result: Result,
    solver: Annotated[
        Literal["markov", "block", "segments", "hessian"],
        typer.Option(
            help="markov: the rule of total decoupling; block and segments keep part of the coupling; hessian is "
            "exact, for up to 2000 parameters.",
            rich_help_panel=METHOD,
        ),
    ] = "markov",
    gates: GatesOption = "data",
    num_probes: Annotated[
        int, typer.Option(min=2, help="Random probes of block and segments.", rich_help_panel=METHOD)
    ] = 32,
    table: Annotated[
        bool,
        typer.Option(
            "--table",
            help="Also tell which parameter tensor serves which input, as small models always do: one pass each.",
            rich_help_panel=METHOD,
        ),
    ] = False,
) -> None:
    """Capacity that a model devotes to each input, by the Markov rule: a few forward and backward passes."""
    from capalloc.app.cli.work.methods import run_propagate

    run_propagate(given, result, solver, gates, num_probes, table)


@app.command("measure", rich_help_panel=COMPUTE)
@flattened
def measure(
    given: Given,
    result: Result,
    ridge: Annotated[
        float, typer.Option(min=0, help="Added to the Gram matrix; 0 for the exact rank.", rich_help_panel=METHOD)
    ] = 0.0,
    solver: Annotated[
        Literal["auto", "dense", "stochastic"],
        typer.Option(help="stochastic needs a ridge, and gives standard errors.", rich_help_panel=METHOD),
    ] = "auto",
    rtol: Annotated[
        float, typer.Option(help="Relative standard error that stochastic aims at.", rich_help_panel=METHOD)
    ] = 0.02,
    max_seconds: Annotated[
        float | None, typer.Option(help="Stop stochastic after about this long.", rich_help_panel=METHOD)
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Keep the run in this file; called again, it goes on from there.", rich_help_panel=METHOD),
    ] = None,
) -> None:
    """Capacity that a model devotes to each input, exactly, from derivatives: up to some thousands of parameters."""
    from capalloc.app.cli.work.methods import run_measure

    run_measure(given, result, ridge, solver, rtol, max_seconds=max_seconds, checkpoint=checkpoint)


@app.command("decoupling", rich_help_panel=COMPUTE)
@flattened
def decoupling(
    given: Given,
    result: Result,
    num_pairs: Annotated[
        int, typer.Option(min=1, help="Pairs of units compared in each layer.", rich_help_panel=METHOD)
    ] = 2048,
) -> None:
    """How far each activation of a model decouples its units, and its examples: 0 as a linear map, 1 totally."""
    from capalloc.app.cli.work.methods import run_decoupling

    run_decoupling(given, result, num_pairs)


@app.command("receptive-field", rich_help_panel=COMPUTE)
@flattened
def receptive_field(
    given: Given,
    result: Result,
    position: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Output position, such as 3,4; by default the central one.", rich_help_panel=METHOD
        ),
    ] = None,
    of: Annotated[
        Literal["energy", "capacity"], typer.Option(help="What the effective field is of.", rich_help_panel=METHOD)
    ] = "energy",
    gates: GatesOption = "data",
) -> None:
    """Theoretical and effective receptive field of an output position."""
    from capalloc.app.cli.work.methods import run_receptive_field

    run_receptive_field(given, result, position, of, gates)


@app.command("diagnose", rich_help_panel=COMPUTE)
@flattened
def diagnose(given: Given, result: Result) -> None:
    """What depth does to a model: scaling of its blocks, shattering of its gradients, receptive field, and advice."""
    from capalloc.app.cli.work.methods import run_diagnose

    run_diagnose(given, result)


@app.command("scaling", rich_help_panel=COMPUTE)
@flattened
def scaling(given: Given, result: Result) -> None:
    """Whether depth is scaled well: rates of residual blocks, gains of plain layers, and what would balance them."""
    from capalloc.app.cli.work.methods import run_scaling

    run_scaling(given, result)


@app.command("shattering", rich_help_panel=COMPUTE)
@flattened
def shattering(given: Given, result: Result) -> None:
    """How far gradients at different inputs are alike, by depth: measured, and predicted."""
    from capalloc.app.cli.work.methods import run_shattering

    run_shattering(given, result)


@app.command("compare", rich_help_panel=RESULTS)
@flattened
def compare(
    first: Annotated[Path, typer.Argument(metavar="A.nc", help="A saved allocation.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B.nc", help="Another of the same inputs.", show_default=False)],
    talk: Talk,
) -> None:
    """How far two saved capacity maps agree, and which parameter tensors differ most."""
    from capalloc.app.cli.work.compare_files import run_compare

    run_compare(first, second, talk)


@app.command("report", rich_help_panel=RESULTS)
@flattened
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.nc...", help="Saved results.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page to write.", rich_help_panel=RESULT)] = Path(
        "report.html"
    ),
    title: Annotated[str, typer.Option(help="Of the page.", rich_help_panel=RESULT)] = "Capacity allocation",
) -> None:
    """One page about saved results: a single file that needs no network and no model."""
    from capalloc.app.cli.work.write_page import run_report

    run_report(files, out, title)


@app.command("models", rich_help_panel=RESULTS)
@flattened
def models(talk: Talk) -> None:
    """The reference architectures: parameters, input shape, arguments."""
    from capalloc.app.cli.work.list_models import run_models

    run_models(talk)


@app.command("design", rich_help_panel=RESULTS)
def design(
    port: Annotated[int, typer.Option(min=0, max=65535, help="On this machine alone; 0 takes a free one.")] = 8050,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """A page on which to build an architecture and see its capacity at once."""
    from capalloc.app.cli.work.open_design import run_design

    run_design(port, browser)


@app.command("demo", rich_help_panel=STUDIES)
@flattened
def demo(
    talk: Talk,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page to write.")] = Path("demo.html"),
    seed: Annotated[int, typer.Option(help="Of the split and the training.", min=0)] = 0,
) -> None:
    """Train a small network on handwritten digits, measure its capacity and predict it."""
    from capalloc.app.cli.work.run_demo import run

    run(talk, out, seed)


@app.command("linear-study", rich_help_panel=STUDIES)
@flattened
def linear_study(
    talk: Talk,
    out: Annotated[Path, typer.Option(help="Folder for NetCDF, PNG and HTML, and for finished cells.")] = Path(
        "linear-study"
    ),
    architecture: Annotated[
        list[str] | None, typer.Option(help="One to train; repeat for more. By default all.")
    ] = None,
    process: Annotated[list[str] | None, typer.Option(help="One to predict; repeat for more. By default all.")] = None,
    lags: Annotated[int, typer.Option(min=1, help="Values of the window.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Steps ahead to predict.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial weights.")] = 0,
    restarts: Annotated[int, typer.Option(min=1, help="Initial weights to train from.")] = 4,
    root: Annotated[Literal["symmetric", "cholesky"], typer.Option(help="Of the metric.")] = "symmetric",
) -> None:
    """Capacity against lag of linear architectures trained on processes of different memory.

    Started again with the same settings, it goes on where it was cut short.
    """
    from capalloc.app.studies.linear_command import run_linear_study

    run_linear_study(out, architecture, process, lags, steps, seed, restarts, root, talk.quiet, talk.as_json)


@app.command("decoupling-study", rich_help_panel=STUDIES)
@flattened
def decoupling_study(
    talk: Talk,
    out: Annotated[Path, typer.Option(help="Folder for the table (NetCDF) and the figure (PNG).")] = Path("."),
    seed: Annotated[int, typer.Option(help="Seed of the random networks and inputs.")] = 0,
    depth: Annotated[int, typer.Option(min=2, help="Number of convolutions.")] = 6,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the hidden layers.")] = 2,
    draws: Annotated[int, typer.Option(min=2, help="Random networks averaged over.")] = 8,
) -> None:
    """Capacity profile of a stack of 1-D convolutions as its gates go from linear to pseudo-random."""
    from capalloc.app.studies.decoupling_command import run_decoupling_study

    run_decoupling_study(out, seed, depth, channels, draws, talk.quiet, talk.as_json)
