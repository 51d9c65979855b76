"""Propagated capacity: docs/theory.md, section 4, from a model and examples to an `Allocation`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm import tqdm

from capalloc.allocation import Allocation
from capalloc.energy import hessian, sweep
from capalloc.energy.capture import Graph, capture
from capalloc.energy.gates import GATE_SOURCES, GateSource
from capalloc.energy.program import Program
from capalloc.energy.trace import trace
from capalloc.problem import OutputSelection, ParamSelection, Problem, axis_names, prepare, seeded

SOLVERS = ("markov", "hessian")
#: The Hessian identity holds p x p matrices for every pass; above this it would take minutes.
HESSIAN_LIMIT = 2000


def propagate(
    model: nn.Module,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    gates: GateSource = "data",
    solver: Literal["markov", "hessian"] = "markov",
    *,
    params: ParamSelection = None,
    layers: bool = False,
    table: bool = True,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = False,
) -> Allocation:
    """Capacity carried down the layers by the Markov rule of total decoupling.

    kappa_i = sum_theta P(Z_0 = i | path uses theta) - sum_symmetries P(Z_0 = i | path passes the channel),
    docs/theory.md, section 4 (Donier 2019, arXiv 1902.08572), in a few forward and backward passes.

    Args:
        model: any module that `torch.export` captures; a private copy in evaluation mode is used.
        inputs: examples (examples, *inputs), or an iterable of such batches; labels in (x, y) are ignored.
        outputs: from what the model returns to the tensor of constraint outputs.
        gates: squared slopes of the activations: "data", on the examples; "gaussian", E[a^2] for unit Gaussian
            pre-activations, which needs the inputs' shape alone; "unit", 1.
        solver: "markov", or "hessian", the exact identity for networks of up to 2000 parameters.
        params: names of the free parameters, or a predicate on names; the rest are fixed.
        layers: also give the capacity that the units of every layer hold on its way down.
        table: also give capacity by (parameter, input); costs one more sweep for each parameter tensor.
        batch_size: examples walked at once.
        progress: show a progress bar over batches.

    Returns:
        Allocation in units of parameters; `attrs["symmetries"]` counts the rescaling symmetries, and
        `attrs["symmetries_exact"]` says whether that count is exact or a lower bound.

    Raises:
        UnsupportedOperatorError: an operator has no rule; names it, its module, and how to add one.
        ValueError, TypeError: bad input, or a model that `torch.export` cannot capture.

    """
    started = time.perf_counter()
    _check(gates, solver, batch_size)
    problem = prepare(model, inputs, outputs, params)
    size = _batch_size(problem, gates, batch_size)
    graph = capture(problem, size)
    attrs: dict[str, Any] = {"kind": "propagated", "solver": solver, "gates": gates, "num_params": problem.num_params}
    if solver == "hessian":
        result = _hessian(problem, graph, gates, attrs)
    else:
        result = _markov(problem, graph, gates, attrs, layers=layers, table=table, progress=progress)
    result.attrs["seconds"] = time.perf_counter() - started  # type: ignore[index]
    return result


def _check(gates: str, solver: str, batch_size: int | str) -> None:
    if gates not in GATE_SOURCES:
        raise ValueError(f"gates must be one of {GATE_SOURCES}, got {gates!r}")
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}")
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size > 0):
        raise ValueError(f"batch_size must be 'auto' or a positive integer, got {batch_size!r}")


def _batch_size(problem: Problem, gates: GateSource, batch_size: int | str) -> int:
    if gates != "data":
        return 1  # every example would give the same energies
    count = problem.count()
    return min(count, batch_size if isinstance(batch_size, int) else 64)


def _programs(problem: Problem, graph: Graph, gates: GateSource) -> Iterator[tuple[Program, Tensor]]:
    """The energy network of each batch and the seed of its outputs: 1, and 0 for the examples that pad it."""
    batches = problem.batches(graph.batch_size) if gates == "data" else iter([problem.probe])
    selected = set(problem.params)
    for k, batch in enumerate(batches):
        missing = graph.batch_size - len(batch)
        padded = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch
        with seeded(k, batch.device):
            program = trace(graph, padded, gates, selected)
        seed = torch.ones_like(program.values[program.output])
        seed[len(batch) :] = 0
        yield program, seed


def _markov(
    problem: Problem, graph: Graph, gates: GateSource, attrs: dict[str, Any], *, layers: bool, table: bool, progress: bool
) -> Allocation:
    count = problem.count() if gates == "data" else 1
    num_batches = -(-count // graph.batch_size)
    bar = tqdm(total=2 * num_batches if num_batches > 1 else 1, disable=not progress, desc="propagate")
    usage: sweep.Usage | None = None
    kept: tuple[Program, Tensor, sweep.Flow] | None = None
    for program, seed in _programs(problem, graph, gates):
        if usage is None:
            usage = sweep.Usage(program.channels.components())
        flow = sweep.law(program, seed * usage.output_weight(program))
        sweep.add_usage(usage, program, flow)
        kept = (program, seed, flow)
        bar.update()
    assert usage is not None
    assert kept is not None
    program = kept[0]
    shares = sweep.shares(program, usage)
    alive = shares.rescaled.sum(0) > 0
    names = shares.names
    loss = shares.loss if table else alive.to(torch.float64)[None]
    rows = {name: k if table else 0 for k, name in enumerate(names)}
    total = torch.zeros(len(loss), *problem.input_shape, dtype=program.dtype)
    bias = torch.zeros(len(loss), dtype=program.dtype)
    held: dict[str, Tensor] = {}
    again = [kept] if num_batches == 1 else ((p, s, None) for p, s in _programs(problem, graph, gates))
    for program, seed, known in again:
        flow = known if known is not None else sweep.law(program, seed * usage.output_weight(program))
        slots = program.layers if layers else {}
        at = sweep.capacity(program, flow, usage, 1.0, loss, rows, tuple(slots.values()))
        if program.input in at:
            total += at[program.input].sum(1).cpu()
        if program.constant in at:
            bias += at[program.constant].cpu()
        for name, slot in slots.items():
            if slot in at:
                whole = at[slot].sum(0)
                whole = whole.sum(0) if len(whole) == graph.batch_size else whole
                held[name] = held[name] + whole if name in held else whole
        bar.update()
    bar.close()
    attrs["num_examples"] = count
    attrs["symmetries"] = int(alive.sum())
    attrs["symmetries_exact"] = program.channels.exact
    attrs["dead_params"] = problem.num_params - int(shares.alive.sum())
    by_parameter = shares.alive - shares.loss.sum(1)
    return _allocation(problem, names, total, bias, by_parameter, table, held, attrs)


def _hessian(problem: Problem, graph: Graph, gates: GateSource, attrs: dict[str, Any]) -> Allocation:
    if problem.num_params > HESSIAN_LIMIT:
        raise ValueError(
            f"solver='hessian' holds p x p matrices and serves up to {HESSIAN_LIMIT} parameters; this model has "
            f"{problem.num_params}. Use solver='markov', or choose fewer with params="
        )
    programs = list(_programs(problem, graph, gates))
    exact = hessian.solve(programs)
    names = tuple(programs[0][0].params)
    by_input = exact.table[:, :-1].reshape(len(names), *problem.input_shape)
    attrs["num_examples"] = problem.count() if gates == "data" else 1
    attrs["rank"] = exact.rank
    return _allocation(problem, names, by_input, exact.table[:, -1], exact.table.sum(1), True, {}, attrs)


def _allocation(
    problem: Problem,
    names: tuple[str, ...],
    by_input: Tensor,
    bias: Tensor,
    by_parameter: Tensor,
    table: bool,
    held: dict[str, Tensor],
    attrs: dict[str, Any],
) -> Allocation:
    dims = axis_names(len(problem.input_shape))
    capacity = xr.DataArray(by_input.sum(0).clamp(min=0).numpy(), dims=dims)
    joint = xr.DataArray(
        by_input.numpy(), dims=("parameter", *dims), coords={"parameter": list(names), "bias": ("parameter", bias.numpy())}
    ) if table else None
    layers = {
        name: xr.DataArray(np.asarray(units), dims=_unit_axes(units.ndim)) for name, units in held.items()
    }
    return Allocation(
        capacity=capacity,
        bias=float(bias.sum()),
        by_parameter=xr.DataArray(by_parameter.numpy(), dims=("parameter",), coords={"parameter": list(names)}),
        table=joint,
        layers=layers,
        attrs=attrs,
    )


def _unit_axes(ndim: int) -> tuple[str, ...]:
    return ("units",) if ndim == 1 else axis_names(ndim)
