"""Every command of `capalloc`: its name, help and options, and the function that does its work.

A declaration has no body. The work is named as "package.module:function" and imported when the command runs, so that
help and completion wait for no import of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc.app.cli.declare import declared
from capalloc.app.cli.errors import PROGRAM, CommandGroup
from capalloc.app.cli.options import (
    FileOptions,
    Gates,
    InputOptions,
    Metric,
    ModelOptions,
    OutputOptions,
    Params,
    Seconds,
    Trained,
    Verbosity,
    complete_model,
    input_option,
    method_option,
    model_option,
    parse_ridge,
    result_option,
    target_option,
)

COMPUTE_PANEL, RESULTS_PANEL, STUDIES_PANEL = "Compute", "Results and models", "Studies"
EPILOG = (
    "To begin: capalloc demo, or capalloc audit lenet. "
    "Exit codes: 0 done; 1 an error that you can mend, told in one line; 2 wrong usage; 130 interrupted. "
    "Numbers go to stdout, everything else to stderr."
)

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["--help", "-h"]},
)
#: The function that does the work of each command.
WORK: dict[str, str] = {}


def command(panel: str, work: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a declaration under its own name, with dashes."""

    def enter(declaration: Callable[..., None]) -> Callable[..., None]:
        name = declaration.__name__.replace("_", "-")
        WORK[name] = work
        app.command(name, rich_help_panel=panel)(declared(declaration, work))
        return declaration

    return enter


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
    """Capacity allocation: the effective parameters that a neural network devotes to each input, region and layer."""


@command(COMPUTE_PANEL, "capalloc.app.cli.compute:run_audit")
def audit(
    options: ModelOptions,
    output: OutputOptions,
    metric: Metric = DEFAULT_METRIC,
    seconds: Annotated[float, method_option(min=1, help="Time for all: what would take longer is left out.")] = 60.0,
    params: Params = None,
    trained: Trained = None,
) -> None:
    """Everything at once: what is wrong with a model, what it does not need or see, the most serious first."""


@command(COMPUTE_PANEL, "capalloc.app.cli.compute:run_rank")
def rank(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Each as in the other commands: a name, a .pt2 file, package.module:factory, path/to/file.py:factory.",
            autocompletion=complete_model,
            show_default=False,
        ),
    ],
    inputs: InputOptions,
    output: FileOptions,
    arg: Annotated[
        list[str] | None,
        model_option(
            metavar="[MODEL:]NAME=VALUE",
            help="An argument of all models, or of one: lenet:width=4, or 2:depth=8 of the second, where a name stands "
            "twice; repeat for more.",
        ),
    ] = None,
    by: Annotated[str | None, method_option(metavar="COLUMN", help="Rank by this column.", show_default=False)] = None,
    labels: Annotated[
        Path | None,
        input_option(metavar="FILE", help="The class of each example, an array of integers, for the column GradNorm."),
    ] = None,
    metric: Metric = DEFAULT_METRIC,
    seconds: Seconds = None,
) -> None:
    """Architectures side by side before training: capacity, verdict on depth, and the known scores."""


@command(COMPUTE_PANEL, "capalloc.app.cli.compute:run_propagate")
def propagate(
    options: ModelOptions,
    output: OutputOptions,
    solver: Annotated[
        Literal["auto", "block", "markov", "segments", "hessian"],
        method_option(
            help="auto: exact where that is quick, else block; markov where --gates or --table ask for paths. block: "
            "the coupling inside each tensor, and steps towards the exact answer. Rough guides, by total decoupling: "
            "markov; segments, which keeps linear segments whole; hessian, an exact identity of path energies."
        ),
    ] = "auto",
    gates: Gates = "data",
    metric: Metric = DEFAULT_METRIC,
    num_probes: Annotated[
        int | None,
        method_option(
            min=2, help="Random probes of block and segments; by default as many as suit.", show_default=False
        ),
    ] = None,
    num_steps: Annotated[
        int | None,
        method_option(min=0, help="Steps of block; by default as many as help in --seconds.", show_default=False),
    ] = None,
    seconds: Annotated[
        float | None,
        method_option(min=0.001, help="Time for the steps of block; by default half a minute.", show_default=False),
    ] = None,
    params: Params = None,
    table: Annotated[
        bool,
        method_option(
            "--table",
            help="Also tell which parameter tensor serves which input, a pass for each; small models always tell.",
        ),
    ] = False,
) -> None:
    """Capacity that a model devotes to each input, as well as is known in a short time, and how well that is."""


@command(COMPUTE_PANEL, "capalloc.app.cli.compute:run_measure")
def measure(
    options: ModelOptions,
    output: OutputOptions,
    metric: Metric = DEFAULT_METRIC,
    ridge: Annotated[
        str,
        method_option(
            parser=parse_ridge,
            metavar="NUMBER|auto",
            help="Added to the Gram matrix; 0 for the exact rank, auto for a share of its mean eigenvalue.",
        ),
    ] = "0",
    coordinates: Annotated[
        Literal["log", "plain"],
        method_option(
            help="log: logarithms of the parameters, so that a ridge does not see rescalings that keep the function; "
            "plain: the parameters themselves."
        ),
    ] = "log",
    solver: Annotated[
        Literal["auto", "dense", "stochastic"],
        method_option(help="stochastic needs a ridge, and gives standard errors."),
    ] = "auto",
    rtol: Annotated[
        float | None,
        method_option(
            min=1e-6,
            max=1,
            help="Relative standard error aimed at; by default 0.02.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        method_option("--seconds", "--max-seconds", min=0.001, help="Stop stochastic after about this long."),
    ] = None,
    params: Params = None,
    checkpoint: Annotated[
        Path | None, method_option(help="Keep the run in this file; called again, it goes on from there.")
    ] = None,
) -> None:
    """Capacity that a model devotes to each input, exactly, from derivatives: up to some thousands of parameters."""


@command(COMPUTE_PANEL, "capalloc.app.cli.compute:run_decoupling")
def decoupling(
    options: ModelOptions,
    output: OutputOptions,
    metric: Metric = DEFAULT_METRIC,
    num_pairs: Annotated[int, method_option(min=1, help="Pairs of units compared in each layer.")] = 2048,
) -> None:
    """Decoupling of units and of examples by each activation of a model: 0 is like a linear map, 1 is total."""


@command(COMPUTE_PANEL, "capalloc.app.cli.compute:run_receptive_field")
def receptive_field(
    options: ModelOptions,
    output: OutputOptions,
    position: Annotated[
        str | None,
        method_option(metavar="N,N,...", help="Output position: 3,4, or 7 of tokens and steps; : is a whole axis."),
    ] = None,
    layer: Annotated[
        str | None,
        method_option(metavar="NAME", help="Field of this layer's output, such as layer1.0, in place of the model's."),
    ] = None,
    layers: Annotated[
        bool, method_option("--layers", help="Also the theoretical field at every layer that changes it, in one table.")
    ] = False,
    of: Annotated[Literal["energy", "capacity"], method_option(help="What the effective field shows.")] = "energy",
    gates: Gates = "data",
    metric: Metric = DEFAULT_METRIC,
    check: Annotated[
        bool, method_option(help="Compare what can change the output with gradients at random weights.")
    ] = False,
) -> None:
    """Theoretical and effective receptive field of an output position."""


@command(COMPUTE_PANEL, "capalloc.app.cli.compute:run_diagnose")
def diagnose(
    options: ModelOptions,
    output: OutputOptions,
    metric: Metric = DEFAULT_METRIC,
    trained: Trained = None,
    seconds: Seconds = None,
) -> None:
    """Effects of depth on a model: scaling, shattering of gradients, receptive field, advice for initial weights."""


@command(COMPUTE_PANEL, "capalloc.app.cli.compute:run_scaling")
def scaling(
    options: ModelOptions, output: OutputOptions, metric: Metric = DEFAULT_METRIC, trained: Trained = None
) -> None:
    """Scaling of depth: rates of residual blocks, gains of plain layers, what would balance initial weights."""


@command(COMPUTE_PANEL, "capalloc.app.cli.balance_weights:run_balance")
def balance(
    options: ModelOptions,
    verbosity: Verbosity,
    out: Annotated[Path, result_option(metavar="FILE.pt", help="The weights to write, .pt or .safetensors.")] = Path(
        "balanced.pt"
    ),
    optimiser: Annotated[
        Literal["sgd", "adam"], method_option(help="The kind of optimiser that will train the model.")
    ] = "sgd",
    metric: Metric = DEFAULT_METRIC,
    trained: Trained = None,
) -> None:
    """Initial weights, of --weights or drawn from --seed, brought into balance: what diagnose advises, carried out."""


@command(COMPUTE_PANEL, "capalloc.app.cli.compute:run_shattering")
def shattering(options: ModelOptions, output: OutputOptions, trained: Trained = None) -> None:
    """Correlation of the gradients at different inputs, by depth: measured, and predicted."""


@command(RESULTS_PANEL, "capalloc.app.cli.compare_files:run_compare")
def compare(
    first: Annotated[Path, typer.Argument(metavar="A.nc", help="A saved allocation.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B.nc", help="Another of the same inputs.", show_default=False)],
    verbosity: Verbosity,
) -> None:
    """Agreement of two saved capacity maps, with and without the constant input, and what differs most."""


@command(RESULTS_PANEL, "capalloc.app.cli.write_page:run_report")
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.nc...", help="Saved results.", show_default=False)],
    verbosity: Verbosity,
    out: Annotated[Path, result_option(metavar="FILE.html", help="The page to write.")] = Path("report.html"),
    title: Annotated[str, result_option(help="Title of the page.")] = "Capacity allocation",
) -> None:
    """One page about saved results: a single file that needs no network and no model."""


@command(RESULTS_PANEL, "capalloc.app.cli.list_models:run_models")
def models(verbosity: Verbosity) -> None:
    """The reference architectures: parameters, input shape, arguments."""


@command(RESULTS_PANEL, "capalloc.app.cli.design_command:run_design")
def design(
    verbosity: Verbosity,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Start from the design nearest to this model, named as in the other commands.",
            autocompletion=complete_model,
        ),
    ] = None,
    arg: Annotated[
        list[str] | None,
        model_option(metavar="NAME=VALUE", help="An argument of the model's factory; repeat for more."),
    ] = None,
    shape: Annotated[
        str | None, model_option(metavar="N,N,...", help="Shape of one input of the model, such as 3,64,64.")
    ] = None,
    field: Annotated[
        int | None,
        target_option(help="Print the designs whose outputs come nearest to seeing this many pixels along an axis."),
    ] = None,
    flat: Annotated[
        int | None, target_option(help="Pixels in the middle of that field that should count alike.")
    ] = None,
    max_parameters: Annotated[
        str | None, target_option(metavar="NUMBER", help="Most parameters, such as 20000 or 1.5M; by default 100k.")
    ] = None,
    most: Annotated[int | None, target_option(min=1, max=50, help="Designs to show; by default 5.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting that the page or the search starts from, such as ndim=1 or activation=gelu; repeat for "
            "more.",
        ),
    ] = None,
    out: Annotated[
        Path | None, target_option(metavar="FILE.py", help="Write the first design here as PyTorch code.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On this machine alone; 0: a free port.")] = 8050,
    open_browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """A page on which to build an architecture and see its capacity at once; with --field, designs by target."""


@command(STUDIES_PANEL, "capalloc.app.cli.run_demo:run")
def demo(
    verbosity: Verbosity,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page to write.")] = Path("demo.html"),
    seed: Annotated[int, typer.Option(help="Seed of the split and the training.", min=0)] = 0,
) -> None:
    """Train a small network on handwritten digits, measure its capacity and predict it."""


@command(STUDIES_PANEL, "capalloc.app.studies.linear_command:run_linear_study")
def linear_study(
    verbosity: Verbosity,
    out: Annotated[Path, typer.Option(help="Folder for NetCDF, PNG and HTML, and for finished cells.")] = Path(
        "linear-study"
    ),
    architecture: Annotated[
        list[str] | None, typer.Option(help="Architecture to train; repeat for more; else all.")
    ] = None,
    process: Annotated[list[str] | None, typer.Option(help="Process to predict; repeat for more; else all.")] = None,
    lags: Annotated[int, typer.Option(min=1, help="Values in the window.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Steps ahead to predict.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights.")] = 0,
    restarts: Annotated[int, typer.Option(min=1, help="Initial weights to train from.")] = 4,
    root: Annotated[Literal["symmetric", "cholesky"], typer.Option(help="Root of the metric.")] = "symmetric",
) -> None:
    """Capacity against lag of linear architectures trained on processes of different memory.

    Started again with the same settings, it goes on where it was cut short.
    """


@command(STUDIES_PANEL, "capalloc.app.studies.decoupling_command:run_decoupling_study")
def decoupling_study(
    verbosity: Verbosity,
    out: Annotated[Path, typer.Option(help="Folder for the table (NetCDF) and the figure (PNG).")] = Path("."),
    seed: Annotated[int, typer.Option(help="Seed of the random networks and inputs.")] = 0,
    depth: Annotated[int, typer.Option(min=2, help="Number of convolutions.")] = 6,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the hidden layers.")] = 2,
    draws: Annotated[int, typer.Option(min=2, help="Random networks averaged over.")] = 8,
) -> None:
    """Capacity profile of a stack of 1-D convolutions as its gates go from linear to pseudo-random."""
