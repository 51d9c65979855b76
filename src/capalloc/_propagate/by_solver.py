"""Each solver's answer as an `Allocation`."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from capalloc._energy import hessian, markov
from capalloc._energy.batches import Batches
from capalloc._energy.carriers import SQUARED, find
from capalloc._energy.decoupled import Decoupled
from capalloc._energy.rules import UnsupportedOperatorError
from capalloc._energy.rules.linearised import BY_JACOBIAN
from capalloc._energy.symmetries.fixed_maps import has_fixed_maps
from capalloc._graph.capture import capture
from capalloc._model.input_metric import InputMetric
from capalloc._model.places import axis_names
from capalloc._model.problem import Problem
from capalloc._operators.calls import arguments_of
from capalloc._operators.records import BLOCKING, record
from capalloc._propagate import segments
from capalloc._propagate.gate_moves import moved_by_gates
from capalloc._settings import Hessian, Segments
from capalloc.results.allocation import Allocation
from capalloc.results.view import named

#: Parameter tensors times numbers in a batch up to which the table is made by default: some seconds of work.
TABLE_LIMIT = 2**26
#: Share of the path energy above which one example is said to rule the map.
DOMINATED = 0.5
LOWER_BOUND = "symmetries: lower bound"
AS_HELD = "symmetries are counted with norms, gates and curves held at their values: the total is a guide, no bound"
MORE = "symmetries: linear layers in a row have more of them (solver='segments' counts these)"
FIXED = "symmetries: differences, sums or fixed maps of what linear layers make may have more of them"
#: What the rank of linear segments counts.
BY_RANK = (LOWER_BOUND, MORE, FIXED)
TOKENS = (
    "symmetries: a bias behind the vectors of tokens may be one more, as each example has one vector at every place"
)
DECOUPLED = "assumes total decoupling: a rough guide, and an upper one for the bias (solver='block' knows how near)"


#: What is written down about parameters and symmetries.
Counts = dict[str, Any]


def by_markov(
    problem: Problem,
    batches: Batches,
    layers: bool,
    table: bool | str,
    *,
    linear: bool = False,
    table_limit: int = TABLE_LIMIT,
) -> Allocation:
    """The Markov rule; `linear` also takes away what linear segments lose beside rescalings."""
    if isinstance(table, str):
        table = len(problem.params) * batches.graph.entries() <= table_limit
    result = markov.solve(batches, single=batches.number == 1, layers=layers, table=table, linear=linear)
    reasons = {
        LOWER_BOUND: not result.exact_symmetries,
        AS_HELD: holds_gates(batches, result),
        MORE: result.more,
        FIXED: has_fixed_maps(batches.graph, batches.carriers),
        TOKENS: problem.layout is not None and bool(problem.layout.tokens),
    }
    inexact = [reason for reason, holds in reasons.items() if holds]
    attrs: Counts = {"symmetries": result.symmetries, "symmetries_exact": not inexact}
    attrs["notes"] = [DECOUPLED, *inexact, *batches.carriers.notes(), *batches.graph.notes]
    attrs["notes"] += [*_dominated(result.by_example), *_by_jacobian(batches)]
    _count_params(problem, batches, result, attrs)
    return _allocation(problem, result, attrs, table)


def holds_gates(batches: Batches, result: markov.MarkovCapacity) -> bool:
    """Tell whether something is held at its value that parameters move: other symmetries than the network's count."""
    calls = [(record(node.target), node) for node in batches.graph.calls()]
    norms = any(known.kind == "normalisation" and not known.steady(arguments_of(node)) for known, node in calls)
    sums = any(known.kind in ("softmax", "statistic") for known, _ in calls)
    signals = batches.carriers.signals
    cuts = any(node.target in BLOCKING and any(used in signals for used in node.all_input_nodes) for _, node in calls)
    return bool(norms or sums or cuts or result.bent or batches.carriers.frozen or batches.carriers.unseen)


def _by_jacobian(batches: Batches) -> list[str]:
    """Note the curved operators that have no rule."""
    found = batches.graph.found.get(BY_JACOBIAN)
    return [f"{BY_JACOBIAN}: {named(found)}"] if found else []


def _dominated(by_example: tuple[float, ...]) -> list[str]:
    """Note an example that holds most of the path energy, as one may whose norm divides by next to nothing."""
    total = sum(by_example)
    share = max(by_example) / total if len(by_example) > 2 and total > 0 else 0.0
    if share <= DOMINATED:
        return []
    return [
        f"example {by_example.index(max(by_example))} holds {100 * share:.0f} % of the path energy of all "
        f"{sum(energy > 0 for energy in by_example)}: the map is mostly its own; leave it out, or take solver='block'"
    ]


def by_segments(problem: Problem, batches: Batches, settings: Segments, table: bool, metric: InputMetric) -> Allocation:
    """Linear segments whole: all rows of the decoupled network, or the Markov rule's map where those are too many."""
    counted = by_markov(problem, batches, layers=False, table=False, linear=True)
    attrs = {**counted.attrs}
    if problem.num_params > settings.max_params:
        note = (
            f"more than {settings.max_params} parameters: the map is the Markov rule's, scaled to the count of linear "
            "segments"
        )
        return counted.replace(attrs={**attrs, "notes": [*attrs["notes"], note]})
    if curved := _by_jacobian(batches):
        raise UnsupportedOperatorError(f"linear segments end at gates that are known: {curved[0]}; use solver='markov'")
    graph = capture(problem, 1)
    network = Decoupled(graph, find(graph, batches.products))
    generator = torch.Generator().manual_seed(settings.seed)
    found = segments.solve(problem, network, settings.num_probes, generator, metric)
    used = problem.num_params - attrs["unused_params"] - attrs["unseen_params"]
    attrs |= {
        "num_probes": settings.num_probes,
        "rank": found.rank,
        "symmetries": used - found.rank,
        # Gates are taken to be independent, which those of differences may not be.
        "symmetries_exact": AS_HELD not in attrs["notes"] and not (network.boundaries() and FIXED in attrs["notes"]),
        # Amplitudes of a signal and itself add up before they are squared.
        "notes": [note for note in attrs["notes"] if note not in BY_RANK and not note.startswith(SQUARED)],
        "bias_standard_error": float(found.error[-1]),
    }
    names = list(problem.params)
    joint = found.table[:, :-1].reshape(len(names), *problem.input_shape)
    result = markov.MarkovCapacity(
        names=tuple(names),
        by_input=joint,
        bias=found.table[:, -1],
        by_parameter=found.table.sum(1),
    )
    whole = _allocation(problem, result, attrs, table)
    error = (whole.capacity.dims, found.error[:-1].reshape(problem.places.shape).numpy())
    return whole.replace(capacity=whole.capacity.assign_coords(standard_error=error))


def by_hessian(problem: Problem, batches: Batches, settings: Hessian, metric: InputMetric) -> Allocation:
    """The Hessian identity."""
    if metric.root is not None and metric.root.ndim == 2:
        raise ValueError(
            "solver='hessian' takes path energies as polynomials of squared weights, which they are not with "
            "covariances: use metric='variance', or solver='segments'"
        )
    if problem.num_params > settings.max_params:
        raise ValueError(
            f"solver='hessian' holds p x p matrices and serves up to {settings.max_params} parameters; this model has "
            f"{problem.num_params}. Use solver='markov', choose fewer with params=, or allow more with "
            "capalloc.solvers.Hessian(max_params=)"
        )
    programs = list(batches())
    exact = hessian.solve(programs)
    names = tuple(programs[0][0].params)
    by_input = exact.table[:, :-1].reshape(len(names), *problem.input_shape)
    result = markov.MarkovCapacity(
        names=names,
        by_input=by_input,
        bias=exact.table[:, -1],
        by_parameter=exact.table.sum(1),
        symmetries=int(exact.alive.sum()) - exact.rank,
        alive=exact.alive,
    )
    attrs: Counts = {"rank": exact.rank, "notes": [*batches.carriers.notes(), *batches.graph.notes]}
    _count_params(problem, batches, result, attrs)
    return _allocation(problem, result, attrs, True)


def _count_params(problem: Problem, batches: Batches, result: markov.MarkovCapacity, attrs: Counts) -> None:
    """Count the parameters that no path uses, those that steer gates apart from those in no use."""
    idle = {
        name: problem.params[name].numel() - round(alive)
        for name, alive in zip(result.names, result.alive.tolist(), strict=True)
    }
    moved = moved_by_gates(problem, batches, [name for name, number in idle.items() if number])
    still = {name: int((~by_entry).sum()) for name, by_entry in moved.items()}
    unseen = {
        name: number - still.get(name, 0)
        for name, number in idle.items()
        if number > still.get(name, 0) and (name in moved or name in batches.carriers.unseen)
    }
    number = sum(unseen.values())
    attrs["unseen_params"] = number
    attrs["unseen_share"], attrs["unseen_by_parameter"] = number / problem.num_params, unseen
    attrs["unused_params"] = problem.num_params - round(float(result.alive.sum())) - number
    if unseen:
        attrs["notes"].append(
            f"not seen by paths: {len(unseen)} parameter tensors, {100 * number / problem.num_params:.0f} % of "
            f"parameters (queries, keys, gating branches, weights of complex numbers): {named(unseen)}"
        )


def _allocation(problem: Problem, result: markov.MarkovCapacity, attrs: Counts, table: bool) -> Allocation:
    dims, names = problem.places.dims, list(result.names)
    by_input = problem.places.pooled(result.by_input.double()).reshape(-1, *problem.places.shape)
    joint = None
    if table:
        rows = torch.cat([by_input.flatten(1), result.bias[:, None].double()], 1)
        rows = _without_debts(rows) if bool((rows < 0).any()) else rows
        coords = {"parameter": names, "bias": ("parameter", rows[:, -1].numpy())}
        joint = xr.DataArray(rows[:, :-1].reshape(by_input.shape).numpy(), dims=("parameter", *dims), coords=coords)
    # Rounding leaves zeros at -1e-17 or so where a source and a symmetry cancel.
    capacity = xr.DataArray(by_input.sum(0).clamp(min=0).numpy(), dims=dims)
    return Allocation(
        capacity=capacity,
        bias=max(float(result.bias.sum()), 0.0),
        by_parameter=xr.DataArray(
            _none_below_zero(result.by_parameter).numpy(), dims=("parameter",), coords={"parameter": names}
        ),
        table=joint,
        layers={
            name: xr.DataArray(units.numpy(), dims=unit_names(units.ndim)) for name, units in result.layers.items()
        },
        attrs=attrs,
    )


def _none_below_zero(by_parameter: Tensor) -> Tensor:
    """Give tensors of the same sum, none below zero: of a shared one symmetries may take more than it has."""
    positive = by_parameter.clamp(min=0)
    return positive * (by_parameter.sum() / positive.sum().clamp(min=torch.finfo(positive.dtype).tiny)).clamp(min=0)


def _without_debts(table: Tensor, rounds: int = 1000) -> Tensor:
    """Give a table of the same sums by row, none below zero, and by column, in which no entry is negative.

    A symmetry is taken from tensors by their numbers of parameters, where its paths start, and a tensor may bring less
    to such a place than that: others make up for it there, in proportion to what they bring; as it is if they cannot.
    """
    rows, columns = _none_below_zero(table.sum(1, keepdim=True)), table.sum(0, keepdim=True).clamp(min=0)
    found = table.clamp(min=0)
    for _ in range(rounds):
        found = found * (columns / found.sum(0, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny))
        short = rows / found.sum(1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
        if bool(((short - 1).abs() * rows < 1e-12 * rows.sum()).all()):
            return found
        found = found * short
    return table


def unit_names(ndim: int) -> tuple[str, ...]:
    """Axis names of a layer's units."""
    return ("unit",) if ndim == 1 else axis_names(ndim)
