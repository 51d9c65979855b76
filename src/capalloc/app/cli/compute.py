"""Commands that compute: read a model and inputs, run a method on them, deliver its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
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
from capalloc.app.cli.errors import UsageError
from capalloc.app.cli.input_source import parse_position, read_array
from capalloc.app.cli.lines_in_a_log import lines_in_a_log
from capalloc.app.cli.options import FileOptions, InputOptions, ModelOptions, OutputOptions
from capalloc.app.cli.sources import read_sources
from capalloc.results.ranking import RANKED_BY, Ranking

#: Gaussian examples where the command line names no number.
FEW_EXAMPLES, MANY_EXAMPLES = 8, 64

Method = Callable[..., Any]  # (model, inputs, outputs) -> result


def run_audit(
    options: ModelOptions,
    output: OutputOptions,
    metric: MetricName,
    seconds: float,
    params: str | None,
    trained: bool | None,
) -> None:
    """Run `capalloc audit`."""
    method = partial(capalloc.audit, metric=metric, seconds=seconds, trained=trained, generator=generator(options))
    compute(options, output, MANY_EXAMPLES, method, params=params)


def run_rank(
    models: list[str],
    inputs: InputOptions,
    output: FileOptions,
    arg: list[str] | None,
    by: str | None,
    labels: Path | None,
    metric: MetricName,
    seconds: float | None,
) -> None:
    """Run `capalloc rank`."""
    check_outputs(output)
    if by is not None and by not in Ranking.COLUMNS:
        raise UsageError(f"--by must be one of {', '.join(Ranking.COLUMNS)}, got {by!r}")
    alike = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    named_args = arguments_of_each(models, arg or [])
    read = {
        label: read_sources(ModelOptions(name, own, **alike), output, MANY_EXAMPLES)
        for label, (name, own) in named_args.items()
    }
    first = next(iter(read.values()))
    tensors = [found.inputs for found in read.values() if isinstance(found.inputs, torch.Tensor)]
    if len(shapes := {tuple(x.shape[1:]) for x in tensors}) > 1:
        raise UsageError(f"models are made for inputs of shapes {sorted(shapes)}; give --shape, or --data, for all")
    x = min(tensors, key=_highest, default=first.inputs)  # ids of the smallest vocabulary, which all models know
    known = None if labels is None else read_array(labels, inputs.examples)
    by_name = {name: source.model for name, source in read.items()}
    method = partial(capalloc.rank, labels=known, metric=metric, seed=inputs.seed, progress=output.progress)
    with lines_in_a_log(output):
        found = method(by_name, x, first.outputs, by=by or RANKED_BY, seconds=seconds)
    deliver(found, output, ", ".join(read))


def arguments_of_each(models: Sequence[str], given: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """Models and their `name=value`, by the name that a table shows: with the arguments, where one stands twice.

    Args:
        models: as the command line names them.
        given: `name=value` of all models; with `model:` or the model's place in the line, from 1, before it, of one.

    Raises:
        UsageError: an argument of another form or of no model, or models that are alike.

    """
    own: list[dict[str, str]] = [{} for _ in models]
    for text in sorted(given, key=lambda text: ":" in text.partition("=")[0]):  # what is said of one counts
        target, equals, value = text.partition("=")
        model, colon, name = target.rpartition(":")
        if not equals or not name.isidentifier():
            raise UsageError(f"--arg must be name=value or model:name=value, got {text!r}")
        places = [k for k, source in enumerate(models) if not colon or model in (source, str(k + 1))]
        if not places:
            raise UsageError(f"--arg {text} is of no model in the line: {', '.join(models)}")
        for k in places:
            own[k][name] = value
    found: dict[str, tuple[str, list[str]]] = {}
    for source, named in zip(models, own, strict=True):
        told = [f"{name}={value}" for name, value in named.items()]
        label = " ".join([source, *told]) if models.count(source) > 1 else source
        if label in found:
            raise UsageError(f"{label} stands twice; give each its own --arg, such as 2:depth=8 for the second")
        found[label] = source, told
    return found


def _highest(x: torch.Tensor) -> float:
    return float(x.max()) if x.numel() else 0.0


def run_propagate(
    options: ModelOptions,
    output: OutputOptions,
    solver: Literal["auto", "block", "markov", "segments", "hessian"],
    gates: GateSource,
    metric: MetricName,
    num_probes: int | None,
    num_steps: int | None,
    table: bool,
    seconds: float | None,
    params: str | None,
) -> None:
    """Run `capalloc propagate`."""
    given = {"--num-probes": num_probes, "--num-steps": num_steps, "--seconds": seconds}
    told = [name for name, value in given.items() if value is not None]
    word = "block" if told and solver == "auto" else solver
    for name in told:
        if word != "block" and not (name == "--num-probes" and word == "segments"):
            raise UsageError(f"{name} is for --solver block, and --solver {word} has none")
    if word == "block" and (gates != "data" or table):
        raise UsageError(f"{'--table' if gates == 'data' else '--gates'} is for --solver markov, and block has none")
    steps: int | Literal["auto"] = "auto" if num_steps is None else num_steps
    limit = Block.max_seconds if seconds is None else seconds
    drawn: dict[str, PropagateSolver] = {
        "block": Block(steps, num_probes or "auto", max_seconds=limit, seed=options.seed),
        "segments": Segments(num_probes or Segments.num_probes, options.seed),
    }
    method = partial(
        capalloc.propagate, gates=gates, solver=drawn.get(word, word), metric=metric, table=table or "auto"
    )
    compute(options, output, FEW_EXAMPLES, method, params=params)


def run_measure(
    options: ModelOptions,
    output: OutputOptions,
    metric: MetricName,
    ridge: float | Literal["auto"],
    coordinates: Coordinates,
    solver: str,
    rtol: float | None,
    seconds: float | None,
    checkpoint: Path | None,
    params: str | None,
) -> None:
    """Run `capalloc measure`."""
    check_targets(checkpoint)
    exact = solver == "dense" or (solver == "auto" and ridge == 0)
    if exact and (rtol is not None or seconds is not None):
        name = "--rtol" if seconds is None else "--seconds"
        raise UsageError(f"{name} is for --solver stochastic, which --ridge lets take over; the exact one has none")
    if solver == "stochastic" and ridge == 0:
        raise UsageError("--solver stochastic needs a --ridge: auto, or a number > 0")
    dense = Dense(coordinates=coordinates)
    stochastic = Stochastic(rtol or Stochastic.rtol, max_seconds=seconds, coordinates=coordinates)
    asked: dict[str, MeasureSolver] = {"auto": Auto(dense, stochastic), "dense": dense, "stochastic": stochastic}
    run = Run(checkpoint, progress=output.progress)
    drawn = partial(capalloc.measure, generator=generator(options))
    method = partial(drawn, metric=metric, ridge=ridge, solver=asked[solver], run=run)
    compute(options, output, MANY_EXAMPLES, method, params=params, bar=False)


def run_decoupling(options: ModelOptions, output: OutputOptions, metric: MetricName, num_pairs: int) -> None:
    """Run `capalloc decoupling`."""
    method = partial(capalloc.decoupling, metric=metric, num_pairs=num_pairs, generator=generator(options))
    compute(options, output, MANY_EXAMPLES, method)


def run_receptive_field(
    options: ModelOptions,
    output: OutputOptions,
    position: str | None,
    layer: str | None,
    layers: bool,
    of: Literal["energy", "capacity"],
    gates: GateSource,
    metric: MetricName,
    check: bool,
) -> None:
    """Run `capalloc receptive-field`."""
    chosen = None if position is None else parse_position(position)
    method = partial(capalloc.receptive_field, output_position=chosen, gates=gates, of=of, metric=metric, check=check)
    examples = 1 if metric == "identity" else FEW_EXAMPLES  # that it is taken from
    compute(options, output, examples, partial(method, layer=layer, layers=layers))


def run_diagnose(
    options: ModelOptions, output: OutputOptions, metric: MetricName, trained: bool | None, seconds: float | None
) -> None:
    """Run `capalloc diagnose`."""
    method = partial(capalloc.diagnose, metric=metric, trained=trained, seconds=seconds)
    compute(options, output, FEW_EXAMPLES, partial(method, generator=generator(options)))


def run_scaling(options: ModelOptions, output: OutputOptions, metric: MetricName, trained: bool | None) -> None:
    """Run `capalloc scaling`."""
    method = partial(capalloc.scaling, metric=metric, trained=trained)
    compute(options, output, FEW_EXAMPLES, method)


def run_shattering(options: ModelOptions, output: OutputOptions, trained: bool | None) -> None:
    """Run `capalloc shattering`."""
    method = partial(capalloc.shattering, trained=trained)
    compute(options, output, FEW_EXAMPLES, partial(method, generator=generator(options)), bar=False)


def compute(
    options: ModelOptions,
    output: OutputOptions,
    examples: int,
    method: Method,
    *,
    params: str | None = None,
    bar: bool = True,
) -> None:
    """Read the model and its inputs, call the method on them, and write and print what it returns.

    Methods with a `bar` take `progress`; `params` is for those that take some.
    """
    check_outputs(output)
    x = read_sources(options, output, examples)
    more: dict[str, Any] = {"progress": output.progress} if bar else {}
    if params is not None:
        more["params"] = params if params == "all" else params.split(",")
    with lines_in_a_log(output):
        found = method(x.model, x.inputs, x.outputs, **more)
    deliver(found, output, options.model)


def generator(options: ModelOptions) -> torch.Generator:
    """Return what random probes and pairs are drawn from."""
    return torch.Generator().manual_seed(options.seed)
