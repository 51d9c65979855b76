"""The options that commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

#: The reference architectures, for completion without importing them.
ARCHITECTURES = (
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
MODEL, INPUTS, RESULT, METHOD = "Model", "Inputs", "Result", "Method"

Gates = Literal["data", "gaussian", "unit"]


def complete_model(incomplete: str) -> list[str]:
    """Names of reference architectures, and of saved programs in this folder."""
    programs = sorted(str(path) for path in Path().glob("*.pt2"))
    return [name for name in (*ARCHITECTURES, *programs) if name.startswith(incomplete)]


@dataclass(frozen=True)
class Given:
    """A model and its inputs, as the command line says them."""

    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="resnet18 or another name that `capalloc models` lists; a .pt2 file; package.module:factory; or a "
            "configuration class of transformers, such as ResNetConfig.",
            autocompletion=complete_model,
            show_default=False,
        ),
    ]
    arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="An argument of the factory or configuration, such as depth=18 or depths=[2,2]; repeat for more.",
            rich_help_panel=MODEL,
        ),
    ] = None
    output: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which of the model's outputs: a name, a key or a position. By default the tensor it returns, its "
            "logits, or its last_hidden_state.",
            rich_help_panel=MODEL,
        ),
    ] = None
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Of one input, such as 3,224,224: Gaussian inputs, or what images of --data are fitted to. By default "
            "that of the architecture, configuration or .pt2 file.",
            rich_help_panel=INPUTS,
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            help="Examples: a .npy, .npz or .safetensors file, or a folder of images.",
            rich_help_panel=INPUTS,
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,...", help="Subtracted from --data, one number or one a channel.", rich_help_panel=INPUTS
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,...", help="Divides --data after that, one number or one a channel.", rich_help_panel=INPUTS
        ),
    ] = None
    examples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many Gaussian inputs, by default as many as suit the command; or how many of --data, the first "
            "ones, by default all.",
            rich_help_panel=INPUTS,
            show_default=False,
        ),
    ] = None
    seed: Annotated[
        int, typer.Option(min=0, help="Of the weights, of Gaussian inputs and of probes.", rich_help_panel=INPUTS)
    ] = 0


@dataclass(frozen=True)
class Talk:
    """How much a command says, and for whom."""

    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the numbers as JSON, and nothing else, on stdout.", rich_help_panel=RESULT),
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=RESULT)] = False


@dataclass(frozen=True)
class Result(Talk):
    """What becomes of a result."""

    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.nc", help="Write the result as NetCDF.", rich_help_panel=RESULT),
    ] = None
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the result as PNG.", rich_help_panel=RESULT)
    ] = None
