"""Commands that compute: read a model and inputs, run a method on them, deliver its result."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

import capalloc
from capalloc._energy.gate_sources import GateSource
from capalloc._linalg.metric_names import MetricName
from capalloc._settings import (
    Auto,
    Block,
    Coordinates,
    Dense,
    MeasureSolver,
    PropagateSolver,
    Run,
    Segments,
    Stochastic,
)
from capalloc.app.cli.deliver import check_outputs, check_targets, deliver
from capalloc.app.cli.input_source import parse_integers
from capalloc.app.cli.options import ModelOptions, OutputOptions
from capalloc.app.cli.sources import read_sources

#: Gaussian examples where the command line names no number.
FEW_EXAMPLES, MANY_EXAMPLES = 8, 64

Method = Callable[..., Any]  # (model, inputs, outputs) -> result


def run_audit(
    options: ModelOptions, output: OutputOptions, metric: MetricName, seconds: float, trained: bool | None
) -> None:
    """Run `capalloc audit`."""
    method = partial(capalloc.audit, metric=metric, seconds=seconds, trained=trained, generator=generator(options))
    compute(options, output, MANY_EXAMPLES, partial(method, progress=output.bars))


def run_propagate(
    options: ModelOptions,
    output: OutputOptions,
    solver: Literal["auto", "block", "markov", "segments", "hessian"],
    gates: GateSource,
    metric: MetricName,
    num_probes: int | None,
    num_steps: int | None,
    table: bool,
) -> None:
    """Run `capalloc propagate`."""
    told = num_probes is not None or num_steps is not None
    steps: int | Literal["auto"] = "auto" if num_steps is None else num_steps
    drawn: dict[str, PropagateSolver] = {
        "block": Block(steps, num_probes or "auto", seed=options.seed),
        "segments": Segments(num_probes or Segments.num_probes, options.seed),
    }
    asked = drawn.get("block" if told and solver == "auto" else solver, solver)
    method = partial(capalloc.propagate, gates=gates, solver=asked, metric=metric)
    compute(options, output, FEW_EXAMPLES, partial(method, table=table or "auto", progress=output.bars), by_token=True)


def run_measure(
    options: ModelOptions,
    output: OutputOptions,
    metric: MetricName,
    ridge: float | Literal["auto"],
    coordinates: Coordinates,
    solver: str,
    rtol: float,
    max_seconds: float | None,
    checkpoint: Path | None,
) -> None:
    """Run `capalloc measure`."""
    check_targets(checkpoint)
    dense = Dense(coordinates=coordinates)
    stochastic = Stochastic(rtol, max_seconds=max_seconds, coordinates=coordinates)
    asked: dict[str, MeasureSolver] = {"auto": Auto(dense, stochastic), "dense": dense, "stochastic": stochastic}
    run = Run(checkpoint, progress=output.bars)
    method = partial(capalloc.measure, metric=metric, ridge=ridge, generator=generator(options))
    compute(options, output, MANY_EXAMPLES, partial(method, solver=asked[solver], run=run), by_token=True)


def run_decoupling(options: ModelOptions, output: OutputOptions, metric: MetricName, num_pairs: int) -> None:
    """Run `capalloc decoupling`."""
    method = partial(capalloc.decoupling, metric=metric, num_pairs=num_pairs, generator=generator(options))
    compute(options, output, MANY_EXAMPLES, partial(method, progress=output.bars))


def run_receptive_field(
    options: ModelOptions,
    output: OutputOptions,
    position: str | None,
    of: Literal["energy", "capacity"],
    gates: GateSource,
    metric: MetricName,
    check: bool,
) -> None:
    """Run `capalloc receptive-field`."""
    chosen = None if position is None else parse_integers(position, "--position", lowest=0)
    method = partial(capalloc.receptive_field, output_position=chosen, gates=gates, of=of, metric=metric, check=check)
    examples = 1 if metric == "identity" else FEW_EXAMPLES  # that it is taken from
    compute(options, output, examples, partial(method, progress=output.bars), by_token=True)


def run_diagnose(options: ModelOptions, output: OutputOptions, metric: MetricName, trained: bool | None) -> None:
    """Run `capalloc diagnose`."""
    method = partial(capalloc.diagnose, metric=metric, trained=trained)
    compute(options, output, FEW_EXAMPLES, partial(method, generator=generator(options)))


def run_scaling(options: ModelOptions, output: OutputOptions, metric: MetricName, trained: bool | None) -> None:
    """Run `capalloc scaling`."""
    method = partial(capalloc.scaling, metric=metric, trained=trained)
    compute(options, output, FEW_EXAMPLES, partial(method, progress=output.bars))


def run_shattering(options: ModelOptions, output: OutputOptions, trained: bool | None) -> None:
    """Run `capalloc shattering`."""
    method = partial(capalloc.shattering, trained=trained)
    compute(options, output, FEW_EXAMPLES, partial(method, generator=generator(options)))


def compute(
    options: ModelOptions, output: OutputOptions, examples: int, method: Method, *, by_token: bool = False
) -> None:
    """Read the model and its inputs, call the method on them, and write and print what it returns."""
    check_outputs(output)
    x = read_sources(options, output, examples, by_token=by_token)
    deliver(method(x.model, x.inputs, x.outputs), output, options.model)


def generator(options: ModelOptions) -> torch.Generator:
    """Return what random probes and pairs are drawn from."""
    return torch.Generator().manual_seed(options.seed)
