"""The commands `capalloc propagate`, `capalloc measure` and `capalloc receptive-field`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from capalloc.allocation import Allocation
from capalloc.measure import measure
from capalloc.model_source import parse_integers, precision, read_inputs, read_model
from capalloc.propagate import propagate
from capalloc.receptive_field import ReceptiveField, receptive_field
from capalloc.storage import check_target

#: Parameter tensors that the summary names.
TOP = 10

Source = Annotated[str, typer.Argument(metavar="MODEL", help="A .pt2 file, or package.module:factory.")]
Arguments = Annotated[list[str] | None, typer.Option("--arg", help="name=value for the factory; repeat for more.")]
Shape = Annotated[str | None, typer.Option(help="Gaussian inputs of this shape, such as 3,224,224.")]
Data = Annotated[Path | None, typer.Option(help="Examples: a .npy, .npz or .safetensors file.")]
Examples = Annotated[int, typer.Option(min=1, help="Number of Gaussian inputs.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the factory's weights and of Gaussian inputs.")]
Gates = Annotated[str, typer.Option(help="Slopes of activations: data, gaussian or unit.")]
Out = Annotated[Path | None, typer.Option(help="Write the result as NetCDF.")]


def run_propagate(
    model: Source,
    arg: Arguments = None,
    shape: Shape = None,
    data: Data = None,
    examples: Examples = 8,
    seed: Seed = 0,
    solver: Annotated[str, typer.Option(help="markov, block, segments or hessian.")] = "markov",
    gates: Gates = "data",
    out: Out = None,
) -> None:
    """Capacity that a model devotes to each input, by the Markov rule: a few forward and backward passes."""
    check_out(out)
    found, inputs = given(model, arg, shape, data, examples, seed)
    generator = torch.Generator().manual_seed(seed)
    _report(propagate(found, inputs, gates=gates, solver=solver, generator=generator), out)  # type: ignore[arg-type]


def run_measure(
    model: Source,
    arg: Arguments = None,
    shape: Shape = None,
    data: Data = None,
    examples: Examples = 64,
    seed: Seed = 0,
    ridge: Annotated[float, typer.Option(min=0, help="Added to the Gram matrix; 0 for the exact rank.")] = 0.0,
    out: Out = None,
) -> None:
    """Capacity that a model devotes to each input, exactly, from derivatives: up to some thousands of parameters."""
    check_out(out)
    found, inputs = given(model, arg, shape, data, examples, seed)
    _report(measure(found, inputs, ridge=ridge), out)


def run_receptive_field(
    model: Source,
    arg: Arguments = None,
    shape: Shape = None,
    data: Data = None,
    examples: Examples = 1,
    seed: Seed = 0,
    position: Annotated[str | None, typer.Option(help="Output position, such as 3,4; the central one.")] = None,
    of: Annotated[str, typer.Option(help="What the effective field is of: energy or capacity.")] = "energy",
    gates: Gates = "data",
) -> None:
    """Theoretical and effective receptive field of an output position."""
    chosen = None if position is None else parse_integers(position, "--position", lowest=0)
    found, inputs = given(model, arg, shape, data, examples, seed)
    field = receptive_field(found, inputs, output_position=chosen, gates=gates, of=of)  # type: ignore[arg-type]
    console = Console()
    console.print(field_table(field))
    _print_notes(console, field.notes)


def given(
    source: str, arg: list[str] | None, shape: str | None, data: Path | None, examples: int, seed: int
) -> tuple[Any, Tensor]:
    """The model and the inputs that a command was told of."""
    model = read_model(source, arg or (), seed)
    return model, read_inputs(shape, data, examples, seed, precision(model))


def check_out(out: Path | None) -> None:
    """An error where a file cannot be written."""
    if out is not None:
        check_target(out)  # before the work, not after it


def _report(allocation: Allocation, out: Path | None) -> None:
    console = Console()
    console.print(summary(allocation))
    _print_notes(console, allocation.attrs.get("notes", ()))
    if out is not None:
        allocation.save(out)
        console.print(f"wrote {out}", markup=False, soft_wrap=True)


def _print_notes(console: Console, notes: Any) -> None:
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def summary(allocation: Allocation) -> Table:
    """Totals, and the parameter tensors that bring most."""
    attrs = allocation.attrs
    table = Table(title=f"{attrs['kind']} capacity, {attrs['num_params']} parameters", min_width=56)
    table.add_column("parameter tensor")
    table.add_column("capacity", justify="right")
    table.add_column("share", justify="right")
    whole = allocation.total or 1.0
    ranked = allocation.by_parameter.sortby(-allocation.by_parameter)
    for name, value in zip(ranked["parameter"].values[:TOP], ranked.values[:TOP], strict=True):
        table.add_row(escape(str(name)), f"{value:.2f}", f"{value / whole:.1%}")
    if len(ranked) > TOP:
        rest = float(ranked[TOP:].sum())
        table.add_row(f"{len(ranked) - TOP} more", f"{rest:.2f}", f"{rest / whole:.1%}")
    table.add_section()
    table.add_row("total", f"{allocation.total:.2f}", "")
    table.add_row("of it on the bias", f"{allocation.bias:.2f}", f"{allocation.bias / whole:.1%}")
    for name in ("symmetries", "unused_params", "seconds"):
        if name in attrs:
            table.add_row(name.replace("_params", " parameters"), f"{attrs[name]:.4g}", "")
    return table


def field_table(field: ReceptiveField) -> Table:
    """One row for each input axis, and the places that hold most."""
    table = Table(title=f"receptive field of output position {field.shown_position}", min_width=56)
    for name in ("axis", "size", "from", "to", "stride", "cut", "deviation"):
        table.add_column(name, justify="left" if name == "axis" else "right")
    for name, e in field.axes.items():
        stride = "" if e.stride != e.stride else f"{e.stride:g}"
        cut = "yes" if e.cut else "no"
        table.add_row(name, str(e.size), str(e.start), str(e.stop - 1), stride, cut, f"{e.deviation:.3g}")
    places = " x ".join(field.moving)
    table.caption = f"68 % of {field.of} in {field.area_68} places of {places}, 95 % in {field.area_95}"
    return table
