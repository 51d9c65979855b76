"""Commands that compute: a model and inputs -> a method -> what becomes of its result."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from capalloc._decoupling.gate_decoupling import decoupling
from capalloc._depth.balance_depth import scaling
from capalloc._depth.compare_gradients import shattering
from capalloc._depth.diagnose_depth import diagnose
from capalloc._depth.locate_field import receptive_field
from capalloc._energy.gates import GateSource
from capalloc._measure.measure import measure
from capalloc._propagate.propagate import propagate
from capalloc.app.cli.options import Given, Result
from capalloc.app.cli.work.deliver import check_targets, deliver
from capalloc.app.cli.work.input_source import parse_integers
from capalloc.app.cli.work.loaded import load
from capalloc.app.cli.work.talk import bars

#: Gaussian examples where the command line says nothing.
FEW, MANY = 8, 64


def run_propagate(
    given: Given,
    told: Result,
    solver: Literal["markov", "block", "segments", "hessian"],
    gates: GateSource,
    num_probes: int,
    table: bool,
) -> None:
    """`capalloc propagate`."""
    check_targets(told.out, told.picture)
    x = load(given, told, FEW)
    result = propagate(
        x.model,
        x.inputs,
        x.outputs,
        gates,
        solver,
        table=table or "auto",
        num_probes=num_probes,
        generator=probes(given),
        progress=bars(told),
    )
    deliver(result, told, given.model)


def run_measure(
    given: Given,
    told: Result,
    ridge: float,
    solver: str,
    rtol: float,
    *,
    max_seconds: float | None,
    checkpoint: Path | None,
) -> None:
    """`capalloc measure`."""
    check_targets(told.out, told.picture, checkpoint)
    x = load(given, told, MANY)
    result = measure(
        x.model,
        x.inputs,
        x.outputs,
        ridge=ridge,
        solver=solver,
        rtol=rtol,
        max_seconds=max_seconds,
        checkpoint=checkpoint,
        generator=probes(given),
        progress=bars(told),
    )
    deliver(result, told, given.model)


def run_decoupling(given: Given, told: Result, num_pairs: int) -> None:
    """`capalloc decoupling`."""
    check_targets(told.out, told.picture)
    x = load(given, told, MANY)
    result = decoupling(x.model, x.inputs, x.outputs, num_pairs=num_pairs, generator=probes(given), progress=bars(told))
    deliver(result, told, given.model)


def run_receptive_field(
    given: Given, told: Result, position: str | None, of: Literal["energy", "capacity"], gates: GateSource
) -> None:
    """`capalloc receptive-field`."""
    check_targets(told.out, told.picture)
    chosen = None if position is None else parse_integers(position, "--position", lowest=0)
    x = load(given, told, 1)
    result = receptive_field(
        x.model, x.inputs, x.outputs, output_position=chosen, gates=gates, of=of, progress=bars(told)
    )
    deliver(result, told, given.model)


def run_diagnose(given: Given, told: Result) -> None:
    """`capalloc diagnose`."""
    check_targets(told.out, told.picture)
    x = load(given, told, FEW)
    deliver(diagnose(x.model, x.inputs, x.outputs, generator=probes(given)), told, given.model)


def run_scaling(given: Given, told: Result) -> None:
    """`capalloc scaling`."""
    check_targets(told.out, told.picture)
    x = load(given, told, FEW)
    deliver(scaling(x.model, x.inputs, x.outputs, progress=bars(told)), told, given.model)


def run_shattering(given: Given, told: Result) -> None:
    """`capalloc shattering`."""
    check_targets(told.out, told.picture)
    x = load(given, told, FEW)
    deliver(shattering(x.model, x.inputs, x.outputs, generator=probes(given)), told, given.model)


def probes(given: Given) -> torch.Generator:
    """What random probes and pairs are drawn from."""
    return torch.Generator().manual_seed(given.seed)
