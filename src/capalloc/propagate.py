"""Propagated capacity: docs/theory.md, section 4, from a model and examples to an `Allocation`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import xarray as xr
from torch import Tensor

from capalloc import blocks
from capalloc.allocation import Allocation
from capalloc.energy import hessian, markov
from capalloc.energy.batches import Batches, Precision
from capalloc.energy.carriers import NO_PRODUCTS, Products
from capalloc.energy.gates import GATE_SOURCES, GateSource
from capalloc.problem import ModelLike, OutputSelection, ParamSelection, Problem, axis_names, prepare

SOLVERS = ("markov", "block", "hessian")
#: The Hessian identity holds p x p matrices for every pass; above this it would take minutes.
HESSIAN_LIMIT = 2000
#: Parameter tensors times numbers in a batch up to which the table is made by default: some seconds of work.
TABLE_LIMIT = 2**26


@dataclass(frozen=True)
class Walk:
    """Where a unit of capacity that starts at the outputs is found: probabilities."""

    inputs: xr.DataArray  # over the input's own axes
    bias: float  # at the constant input
    layers: Mapping[str, xr.DataArray]  # by layer, over its units; paths that start above a layer miss it


def propagate(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    gates: GateSource = "data",
    solver: Literal["markov", "block", "hessian"] = "markov",
    *,
    params: ParamSelection = None,
    layers: bool = False,
    table: bool | Literal["auto"] = "auto",
    num_probes: int = 32,
    generator: torch.Generator | None = None,
    batch_size: int | Literal["auto"] = "auto",
    dtype: Precision = "auto",
    products: Products | None = None,
    progress: bool = False,
) -> Allocation:
    """Capacity carried down the layers by the Markov rule of total decoupling.

    kappa_i = sum_theta P(Z_0 = i | path uses theta) - sum_symmetries P(Z_0 = i | path passes the channel),
    docs/theory.md, section 4 (Donier 2019, arXiv 1902.08572), in a few forward and backward passes.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2; a private
            copy in evaluation mode is used.
        inputs: examples (examples, *inputs), or an iterable of such batches; labels in (x, y) are ignored.
        outputs: from what the model returns to the tensor of constraint outputs.
        gates: squared slopes of the activations: "data", on the examples; "gaussian", E[a^2] for unit Gaussian
            pre-activations, which needs the inputs' shape alone; "unit", 1.
        solver: "markov"; "block", which keeps the coupling between the inputs of one unit that total decoupling
            drops (docs/validation.md has its figures), by random probes with a standard error in
            `capacity.standard_error`; "hessian", the exact identity for networks of up to 2000 parameters.
        params: names of the free parameters, or a predicate on names; the rest are fixed.
        layers: also give the capacity that the units of every layer hold on its way down.
        table: also give capacity by (parameter, input); costs one more sweep for each parameter tensor, so by default
            small networks alone get it.
        num_probes: random probes of "block"; its standard error falls as their root.
        generator: draws the probes; by default the same ones each time.
        batch_size: examples walked at once.
        dtype: of the path energies: float64, or by default that of the model where one example takes more than four
            million numbers. Energies are sums of positive terms, so float32 keeps 6 digits or so.
        products: module path -> which factor is the gate in its products of two tensors that both depend on the
            inputs: "left", "right", or "both" to let both carry in turn. By default the factor that ends more like
            a gate is one: a norm or a denominator before softmax and sigmoid, those before tanh, that before other
            activations; on a tie both carry. A gate is frozen at its value: attention weights, gating branches, and
            the queries, keys and other parameters that steer them carry no path energy.
        progress: show a progress bar over batches.

    Returns:
        Allocation in units of parameters; `attrs["symmetries"]` counts the rescaling symmetries, and
        `attrs["symmetries_exact"]` says whether that count is exact or a lower bound. `attrs["unseen_params"]` and
        `attrs["unseen_share"]` count the parameters that only steer gates, `attrs["unused_params"]` those in no use.

    Raises:
        UnsupportedOperatorError: an operator has no rule; names it, its module, and how to add one.
        ValueError, TypeError: bad input, or a model that `torch.export` cannot capture.

    """
    started = time.perf_counter()
    _check(gates, solver, batch_size)
    if num_probes < 2:
        raise ValueError(f"num_probes must be at least 2, for a standard error, got {num_probes}")
    problem = prepare(model, inputs, outputs, params)
    batches = Batches.of(
        problem,
        gates,
        batch_size,
        dtype=torch.float64 if solver == "hessian" else dtype,
        progress=progress,
        products=products or NO_PRODUCTS,
    )
    attrs: dict[str, Any] = {
        "kind": "propagated",
        "solver": solver,
        "gates": gates,
        "num_params": problem.num_params,
        "num_examples": batches.examples,
    }
    if solver == "hessian":
        result = _hessian(problem, batches, attrs)
    elif solver == "block":
        result = _block(problem, batches, attrs, num_probes, generator or torch.Generator().manual_seed(0))
    else:
        result = _markov(problem, batches, attrs, layers=layers, table=table)
    attrs["seconds"] = time.perf_counter() - started
    return result


def walk(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    gates: GateSource = "data",
    *,
    batch_size: int | Literal["auto"] = "auto",
    dtype: Precision = "auto",
    products: Products | None = None,
    progress: bool = False,
) -> Walk:
    """The law of one unit of capacity placed at the chosen outputs, at every layer and at the inputs.

    The Markov chain of docs/theory.md, section 4, without sources: P(k | j) = w_jk^2 e_k / sum_k' w_jk'^2 e_k'.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2.
        inputs: examples (examples, *inputs), or an iterable of such batches.
        outputs: from what the model returns to the tensor where the walk starts, in proportion to path energy.
        gates: as in `propagate`.
        batch_size: examples walked at once.
        dtype: of the path energies: float64, or by default that of the model where one example takes more than four
            million numbers. Energies are sums of positive terms, so float32 keeps 6 digits or so.
        products: as in `propagate`.
        progress: show a progress bar over batches.

    Returns:
        Walk: probabilities, one with the constant input.

    Raises:
        UnsupportedOperatorError, ValueError, TypeError: as `propagate`.

    """
    _check(gates, "markov", batch_size)
    problem = prepare(model, inputs, outputs)
    batches = Batches.of(problem, gates, batch_size, dtype=dtype, progress=progress, products=products or NO_PRODUCTS)
    at_inputs, constant, layers = markov.law(batches(layers=True), layers=True)
    return Walk(
        inputs=xr.DataArray(at_inputs.numpy(), dims=axis_names(at_inputs.ndim), name="probability"),
        bias=float(constant),
        layers={name: xr.DataArray(p.numpy(), dims=unit_names(p.ndim), name=name) for name, p in layers.items()},
    )


def _check(gates: str, solver: str, batch_size: int | str) -> None:
    if gates not in GATE_SOURCES:
        raise ValueError(f"gates must be one of {GATE_SOURCES}, got {gates!r}")
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}")
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size > 0):
        raise ValueError(f"batch_size must be 'auto' or a positive integer, got {batch_size!r}")


def _markov(
    problem: Problem, batches: Batches, attrs: dict[str, Any], *, layers: bool, table: bool | str
) -> Allocation:
    if isinstance(table, str):
        table = len(problem.params) * batches.graph.entries() <= TABLE_LIMIT
    result = markov.solve(batches, single=batches.number == 1, layers=layers, table=table)
    attrs["symmetries"] = result.symmetries
    attrs["symmetries_exact"] = result.exact_symmetries
    attrs["notes"] = [] if result.exact_symmetries else ["symmetries: lower bound"]
    _count_params(problem, batches, result, attrs)
    return _allocation(problem, result, attrs, table)


def _block(
    problem: Problem, batches: Batches, attrs: dict[str, Any], num_probes: int, generator: torch.Generator
) -> Allocation:
    """The Markov rule's total and share of each parameter tensor, on the block rule's map."""
    counted = _markov(problem, batches, attrs, layers=False, table=False)
    found = blocks.estimate(problem, batches.graph.batch_size, num_probes, generator)
    unit = counted.total / float(found.inputs.sum() + found.constant)
    attrs["num_probes"] = num_probes
    attrs["bias_standard_error"] = float(found.constant_error) * unit
    dims = axis_names(len(problem.input_shape))
    return Allocation(
        capacity=xr.DataArray(
            (found.inputs * unit).numpy(),
            dims=dims,
            coords={"standard_error": (dims, (found.inputs_error * unit).numpy())},
        ),
        bias=float(found.constant) * unit,
        by_parameter=counted.by_parameter,
        attrs=attrs,
    )


def _hessian(problem: Problem, batches: Batches, attrs: dict[str, Any]) -> Allocation:
    if problem.num_params > HESSIAN_LIMIT:
        raise ValueError(
            f"solver='hessian' holds p x p matrices and serves up to {HESSIAN_LIMIT} parameters; this model has "
            f"{problem.num_params}. Use solver='markov', or choose fewer with params="
        )
    programs = list(batches())
    exact = hessian.solve(programs)
    names = tuple(programs[0][0].params)
    by_input = exact.table[:, :-1].reshape(len(names), *problem.input_shape)
    attrs["rank"] = exact.rank
    result = markov.Markov(
        names=names,
        by_input=by_input,
        bias=exact.table[:, -1],
        by_parameter=exact.table.sum(1),
        layers={},
        symmetries=int(exact.alive.sum()) - exact.rank,
        exact_symmetries=True,
        alive=exact.alive,
    )
    attrs["notes"] = []
    _count_params(problem, batches, result, attrs)
    return _allocation(problem, result, attrs, True)


def _count_params(problem: Problem, batches: Batches, result: markov.Markov, attrs: dict[str, Any]) -> None:
    """How many parameters no path uses, those that steer gates apart from those in no use."""
    unseen: dict[str, int] = {}
    for name, alive in zip(result.names, result.alive.tolist(), strict=True):
        idle = problem.params[name].numel() - round(alive)
        if idle and name in batches.carriers.steering:
            unseen[name] = idle
    number = sum(unseen.values())
    attrs["unseen_params"] = number
    attrs["unseen_share"] = number / problem.num_params
    attrs["unused_params"] = problem.num_params - round(float(result.alive.sum())) - number
    if unseen:
        shown = ", ".join(list(unseen)[:3]) + (f" and {len(unseen) - 3} more" if len(unseen) > 3 else "")
        attrs["notes"].append(
            f"not seen by paths: {len(unseen)} parameter tensors, {100 * number / problem.num_params:.0f} % of "
            f"parameters (queries, keys, gating branches): {shown}"
        )


def _allocation(problem: Problem, result: markov.Markov, attrs: dict[str, Any], table: bool) -> Allocation:
    dims = axis_names(len(problem.input_shape))
    names = list(result.names)
    joint = None
    if table:
        coords = {"parameter": names, "bias": ("parameter", result.bias.numpy())}
        joint = xr.DataArray(result.by_input.numpy(), dims=("parameter", *dims), coords=coords)
    # Rounding leaves zeros at -1e-17 or so where a source and a symmetry cancel.
    capacity = xr.DataArray(result.by_input.sum(0).clamp(min=0).numpy(), dims=dims)
    return Allocation(
        capacity=capacity,
        bias=max(float(result.bias.sum()), 0.0),
        by_parameter=xr.DataArray(result.by_parameter.numpy(), dims=("parameter",), coords={"parameter": names}),
        table=joint,
        layers={
            name: xr.DataArray(units.numpy(), dims=unit_names(units.ndim)) for name, units in result.layers.items()
        },
        attrs=attrs,
    )


def unit_names(ndim: int) -> tuple[str, ...]:
    """Axis names of a layer's units."""
    return ("unit",) if ndim == 1 else axis_names(ndim)
