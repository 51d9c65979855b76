"""The command `capalloc diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capalloc.commands import Arguments, Data, Out, Seed, Shape, Source, check_out, given
from capalloc.diagnosis import Diagnosis, diagnose
from capalloc.plots import save_figure


def run_diagnose(
    model: Source,
    arg: Arguments = None,
    shape: Shape = None,
    data: Data = None,
    examples: Annotated[int, typer.Option(min=2, help="Number of Gaussian inputs.")] = 8,
    seed: Seed = 0,
    out: Out = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the result as PNG.")] = None,
) -> None:
    """What depth does to a model: scaling of its blocks, shattering of its gradients, receptive field, and advice."""
    for target in (out, picture):
        check_out(target)
    found, inputs = given(model, arg, shape, data, examples, seed)
    result = diagnose(found, inputs, num_examples=min(examples, 8), generator=torch.Generator().manual_seed(seed))
    console = Console()
    _print(result, console)
    if out is not None:
        result.save(out)
        console.print(f"wrote {out}", markup=False, soft_wrap=True)
    if picture is not None:
        save_figure(result.plot(), picture)
        console.print(f"wrote {picture}", markup=False, soft_wrap=True)


def _print(result: Diagnosis, console: Console) -> None:
    for title, (head, *rows) in result.tables().items():
        table = Table(title=title, min_width=56)
        for k, name in enumerate(head):
            table.add_column(escape(name), justify="right" if k else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for line in [result.summary, *(result.advice or ["nothing is out of balance"])]:
        console.print(line, markup=False, soft_wrap=True)
