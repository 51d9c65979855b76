"""The options that commands share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from capalloc._linalg.metric_names import MetricName
from capalloc._runtime.terminal import is_watched
from capalloc.app.cli.errors import say

#: The reference architectures, for completion without importing them.
REFERENCE_NAMES = (
    "bert-tiny",
    "convnext-tiny",
    "densenet121",
    "gpt-tiny",
    "gru",
    "lenet",
    "lstm",
    "mixer",
    "mlp",
    "mobilenet-v2",
    "preact-resnet",
    "resnet18",
    "resnet50",
    "tcn",
    "unet",
    "vgg11",
    "vit-tiny",
    "wavenet",
)
#: An option in the panel of `capalloc COMMAND --help` that it belongs to.
model_option, input_option, result_option, method_option, target_option = (
    partial(typer.Option, rich_help_panel=panel) for panel in ("Model", "Inputs", "Result", "Method", "By target")
)

Gates = Annotated[Literal["data", "gaussian", "unit"], method_option(help="Where slopes of activations come from.")]

Metric = Annotated[
    MetricName,
    method_option(
        help="Energies of the inputs: 1 each, about zero, or the variances or covariance of these very inputs, about "
        "their mean."
    ),
]

Params = Annotated[
    str | None,
    method_option(
        metavar="NAME,...|all",
        help="Parameters that count: names, or patterns such as 'head.*', with commas between them; or all. By default "
        "those that require gradients.",
        show_default=False,
    ),
]
Seconds = Annotated[
    float | None,
    method_option(min=0.001, help="Time for all: what would take longer is left out, with a note.", show_default=False),
]

Trained = Annotated[
    bool | None,
    method_option(
        "--trained/--initial",
        help="Whether the weights are trained; trained ones get no advice. By default norms show it.",
        show_default=False,
    ),
]


def complete_model(incomplete: str) -> list[str]:
    """Names of reference architectures, and of saved programs in this folder."""
    programs = sorted(str(path) for path in Path().glob("*.pt2"))
    return [name for name in (*REFERENCE_NAMES, *programs) if name.startswith(incomplete)]


def parse_ridge(text: str) -> float | Literal["auto"]:
    """Read a number that is not negative, or "auto".

    Raises:
        BadParameter: neither.

    """
    if text == "auto":
        return "auto"
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise typer.BadParameter(f"{text!r} is neither a number >= 0 nor auto")
    return number


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Inputs of a model, and which of its outputs counts, as the command line names them."""

    output: Annotated[
        str | None,
        model_option(
            metavar="NAME",
            help="Which of the model's outputs: a name, a key or a position. By default the tensor it returns, its "
            "logits, or its last_hidden_state.",
        ),
    ] = None
    shape: Annotated[
        str | None,
        input_option(
            metavar="N,N,...",
            help="Shape of one input, such as 3,224,224: of Gaussian inputs, or what images of --data are fitted to; "
            "of a text model, the number of tokens. By default that of the architecture, configuration or .pt2 file.",
        ),
    ] = None
    data: Annotated[
        Path | None,
        input_option(
            help="Examples, or token ids: a .npy, .npz or .safetensors file (several arrays are inputs by name), or a "
            "folder of images."
        ),
    ] = None
    mean: Annotated[
        str | None, input_option(metavar="X,X,...", help="Subtracted from --data, one number or one a channel.")
    ] = None
    std: Annotated[
        str | None, input_option(metavar="X,X,...", help="Divides --data after that, one number or one a channel.")
    ] = None
    examples: Annotated[
        int | None,
        input_option(
            min=1,
            help="How many Gaussian inputs, by default as many as suit the command; or how many of --data, the first "
            "ones, by default all.",
            show_default=False,
        ),
    ] = None
    seed: Annotated[int, input_option(min=0, help="Seed of the weights, of Gaussian inputs and of probes.")] = 0
    device: Annotated[
        str, model_option(metavar="NAME", help="Where the model runs: cpu, cuda, cuda:1, mps; not for a .pt2 file.")
    ] = "cpu"


@dataclass(frozen=True)
class ModelOptions(InputOptions):
    """A model and its inputs, as the command line names them."""

    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="resnet18 or another name that `capalloc models` lists; a .pt2 file; package.module:factory or "
            "path/to/file.py:factory; or a configuration class of transformers, such as ResNetConfig.",
            autocompletion=complete_model,
            show_default=False,
        ),
    ]
    arg: Annotated[
        list[str] | None,
        model_option(
            metavar="NAME=VALUE",
            help="An argument of the factory or configuration, such as depth=18 or depths=[2,2]; repeat for more.",
        ),
    ] = None
    weights: Annotated[
        Path | None,
        model_option(
            metavar="FILE",
            help="Parameters and buffers of the model, as .safetensors or a state_dict that torch.save wrote.",
        ),
    ] = None


@dataclass(frozen=True)
class Verbosity:
    """The form and the amount of what a command prints."""

    as_json: Annotated[
        bool, result_option("--json", help="Print the numbers as JSON, and nothing else, on stdout.")
    ] = False
    quiet: Annotated[bool, result_option("--quiet", "-q", help="No progress on stderr.")] = False

    @property
    def progress(self) -> bool:
        """True where progress is told: as bars on a terminal, as lines elsewhere."""
        return not self.quiet

    @property
    def bars(self) -> bool:
        """True where progress bars are drawn: on a terminal, unless quiet."""
        return not self.quiet and is_watched()

    def tell(self, text: str) -> None:
        """Write a line on stderr, unless quiet."""
        if not self.quiet:
            say(text)


@dataclass(frozen=True)
class FileOptions(Verbosity):
    """The file that a result without a picture goes to."""

    out: Annotated[Path | None, result_option(metavar="FILE.nc", help="Write the result as NetCDF.")] = None


@dataclass(frozen=True)
class OutputOptions(FileOptions):
    """The files that a result goes to."""

    picture: Annotated[Path | None, result_option(metavar="FILE.png", help="Draw the result, as PNG, SVG or PDF.")] = (
        None
    )
