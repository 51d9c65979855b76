"""Propagated capacity: docs/theory.md, section 4, from a model and examples to an `Allocation`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
import xarray as xr
from torch import Tensor

from capalloc._derivatives import exact_derivatives
from capalloc._energy import markov
from capalloc._energy.batches import Batches, Precision, check_walk, solve_in_range
from capalloc._energy.carriers import Products
from capalloc._energy.gate_sources import GateSource
from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._measure.forecast import announce, announce_graph, pass_seconds
from capalloc._measure.task import make_task, with_notes
from capalloc._model.examples_digest import digest_of_examples
from capalloc._model.input_metric import InputMetric, InputMetricLike, input_metric
from capalloc._model.made_from import recorded
from capalloc._model.problem import ModelLike, OutputSelection, Problem, prepare
from capalloc._model.selected_params import ParamSelection
from capalloc._propagate.by_constraints import by_blocks, exact_seconds, exactly, is_small, numbers_in_use, planned
from capalloc._propagate.by_solver import by_hessian, by_markov, by_segments, unit_names
from capalloc._propagate.effort import forecast_seconds
from capalloc._runtime.arguments import checked
from capalloc._runtime.phases import Phases
from capalloc._runtime.surroundings import undisturbed
from capalloc._settings import (
    PROPAGATE_SOLVERS,
    Block,
    Hessian,
    Markov,
    PropagateSolver,
    Segments,
    is_auto,
    settings_of,
    word_of,
)
from capalloc.results.allocation import Allocation
from capalloc.results.law_of_walk import Walk

AnySolver = Markov | Block | Segments | Hessian


@checked
@recorded
@undisturbed()
def propagate(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    gates: GateSource = "data",
    solver: PropagateSolver = "auto",
    *,
    metric: InputMetricLike = DEFAULT_METRIC,
    params: ParamSelection = None,
    layers: bool = False,
    table: bool | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    products: Products | None = None,
    progress: bool = False,
) -> Allocation:
    """Capacity that a network devotes to each input, as well as is known in a short time, with how well that is.

    Small networks get the exact answer of `capalloc.measure`; others that of the blocks and of the steps that there is
    time for, $kappa_s ~ trace q_k(A) R' G_s R$, with standard errors and an estimate of what is missing. The Markov
    rule of total decoupling, `solver="markov"`, takes a few passes and is a rough guide:
    $kappa_i = sum_theta P(Z_0 = i | path uses theta)$ less $sum_symmetries P(Z_0 = i | path passes the channel)$.
    All are in docs/theory.md, section 4 (Donier 2019, arXiv 1902.08572).

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2; a private
            copy in evaluation mode is used.
        inputs: examples (examples, *inputs), or an iterable of such batches; labels in (x, y) are ignored. Several
            inputs, and token ids, as in `measure`.
        outputs: the constraint outputs, as in `measure`.
        gates: squared slopes of the activations: "data", on the examples; "gaussian", $E[a^2]$ for unit Gaussian
            pre-activations, which needs the inputs' shape alone; "unit", 1.
        solver: "auto", exact where that is quick, else "block": the coupling inside each parameter tensor, and steps
            towards the exact answer; the Markov rule where an argument is given that it alone has (`gates`, `layers`,
            `table`, `products`). Of total decoupling: "markov"; "segments", which keeps linear segments whole;
            "hessian", the exact identity. Or settings of one: `capalloc.solvers.Block`, `Markov`, `Segments`,
            `Hessian`. Those that draw probes give standard errors.
        metric: energies of the inputs, as in `measure`: "identity", "variance", "covariance" or a tensor. With all but
            the first the constant stands at the data's mean, and its paths are whole before the first gate.
        params: names of the parameters that are free, patterns such as "head.*", or a predicate on names; by default
            those that require gradients (all where none does), "all" for all; the rest are fixed.
        layers: also give the capacity that the units of every layer hold on its way down ("markov").
        table: also give capacity by (parameter, input); costs "markov" one more sweep for each parameter tensor, so by
            default small networks alone get it.
        batch_size: examples walked at once.
        products: module path -> which factor is the gate in its products of two tensors that both depend on the
            inputs: "left", "right", or "both" to let both carry in turn. By default the factor that ends more like
            a gate is one: a norm or a denominator before softmax and sigmoid, those before tanh, that before other
            activations; on a tie both carry. A gate is frozen at its value: attention weights, gating branches, and
            the queries, keys and other parameters that steer them carry no path energy.
        progress: say how long it takes, where that is more than some seconds, and show a bar over batches.

    Returns:
        Allocation in units of parameters. By paths `attrs["symmetries"]` counts the rescaling symmetries, and
        `attrs["symmetries_exact"]` says whether these are all that it has if gates move apart (a note says why not);
        one from constraints counts the directions of used parameters that change nothing on these examples.
        `attrs["unseen_params"]` and `attrs["unseen_share"]` count the parameters that only steer gates,
        `attrs["unused_params"]` those in no use on these examples, whose units are closed or saturated on all of them.
        `attrs["phases"]` says what shares of the time went where (capturing the model is one: `capalloc.export`).
        With gates of data `attrs["data_digest"]` marks the examples, in any order, as in `measure`.

    Raises:
        UnsupportedOperatorError: an operator has no rule; names it, its module, and how to add one.
        ValueError, TypeError: bad input, or a model that `torch.export` cannot capture.

    """
    started, phases = time.perf_counter(), Phases()
    check_walk(gates, batch_size)
    of_paths = gates != "data" or layers or table is True or products is not None
    automatic = is_auto(solver)
    asked = _settings("markov" if automatic and of_paths else "block" if automatic else solver, of_paths, gates)
    if isinstance(asked, Block):
        found = _by_constraints(model, inputs, outputs, params, metric, batch_size, asked, progress, exact=automatic)
        return found.replace(attrs={**found.attrs, "seconds": time.perf_counter() - started})
    problem = prepare(model, inputs, outputs, params, traced=True, by_input=True)
    if isinstance(asked, Segments):
        problem = _for_segments(problem, asked)
    space = input_metric(metric, problem)
    phases("checks")
    dtype = asked.dtype if isinstance(asked, Markov) else torch.float64 if isinstance(asked, Hessian) else "auto"
    settings: dict[str, Any] = {"progress": progress, "products": products, "metric": space}
    settings["table_rows"] = len(problem.params) if table is True else 0

    def walked(batches: Batches) -> Allocation:
        phases("capture")
        announce_graph("propagate", "paths", problem, len(batches.graph.nodes), batches.examples, progress)
        try:
            return _by_paths(problem, batches, asked, layers, table, space)
        finally:
            phases("walk")

    found, batches = solve_in_range(
        lambda dtype: Batches.of(problem, gates, batch_size, dtype=dtype, **settings), walked, dtype
    )
    attrs = {
        "kind": "propagated",
        "solver": word_of(asked),
        "gates": gates,
        "num_params": problem.num_params,
        "parameter_sizes": problem.parameter_sizes,
        "num_examples": batches.examples,
        "metric": space.word,
    }
    if gates == "data":
        attrs["data_digest"] = digest_of_examples(problem.inputs)
    found = with_notes(found, problem, problem.inputs)
    return found.replace(
        attrs={**attrs, **found.attrs, "phases": phases.shares(), "seconds": time.perf_counter() - started}
    )


def _settings(solver: PropagateSolver, of_paths: bool, gates: str) -> AnySolver:
    """Return the settings of a solver that can do what is asked of it."""
    asked: AnySolver = settings_of(solver, PROPAGATE_SOLVERS)
    if isinstance(asked, Block) and of_paths:
        raise ValueError("gates, layers, table and products are not for solver='block'; use solver='markov'")
    if isinstance(asked, Segments) and gates != "data":
        raise ValueError(
            f"solver='segments' draws signs for the gates of real examples: it needs gates='data', got {gates!r}"
        )
    return asked


def _for_segments(problem: Problem, settings: Segments) -> Problem:
    """Return the problem in float64, where ranks are decided, unless there are too many parameters for them."""
    if problem.layout is not None:
        problem.layout.check_alike("solver='segments'")
    if problem.num_params > settings.max_params:
        return problem
    double = prepare(problem.model, problem.inputs, problem.outputs, list(problem.params), dtype=torch.float64)
    return replace(double, notes=problem.notes, layout=problem.layout)


def _by_paths(
    problem: Problem,
    batches: Batches,
    asked: Markov | Segments | Hessian,
    layers: bool,
    table: bool | Literal["auto"],
    space: InputMetric,
) -> Allocation:
    match asked:
        case Markov():
            return by_markov(problem, batches, layers, table)
        case Segments():
            return by_segments(problem, batches, asked, bool(table), space)
        case Hessian():
            return by_hessian(problem, batches, asked, space)


def _by_constraints(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection,
    params: ParamSelection,
    metric: InputMetricLike,
    batch_size: int | Literal["auto"],
    settings: Block,
    progress: bool,
    *,
    exact: bool,
) -> Allocation:
    """Return the answer from constraints; `exact` allows the exact one where it is quick."""
    with exact_derivatives():
        generator = torch.Generator().manual_seed(settings.seed)
        task = make_task(model, inputs, outputs, metric, params=params, batch_size=batch_size, generator=generator)
        in_use = numbers_in_use(task.problem) if exact else 0
        exact = exact and is_small(task.size, in_use)
        if progress:
            seconds = exact_seconds(task.size, in_use)
            if not exact:
                limit = (settings.num_steps == "auto" and settings.max_seconds) or math.inf
                seconds = forecast_seconds(task.problem, task.size, pass_seconds(task.problem)[0], limit)
            announce("propagate", seconds, progress)
        if exact:
            found = exactly(task)
        else:
            plan = planned(task, settings)
            task = plan.task
            found = by_blocks(plan, settings)
        return with_notes(found, task.problem, task.x)


@checked
@undisturbed()
def walk(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    gates: GateSource = "data",
    *,
    metric: InputMetricLike = DEFAULT_METRIC,
    batch_size: int | Literal["auto"] = "auto",
    dtype: Precision = "auto",
    products: Products | None = None,
    progress: bool = False,
) -> Walk:
    """The law of one unit of capacity placed at the chosen outputs, at every layer and at the inputs.

    The Markov chain of docs/theory.md, section 4, without sources: $P(k | j) = w_jk^2 e_k / sum_k' w_jk'^2 e_k'$.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2.
        inputs: examples (examples, *inputs), or an iterable of such batches.
        outputs: where the walk starts, in proportion to path energy, as in `measure`.
        gates: as in `propagate`.
        metric: as in `propagate`.
        batch_size: examples walked at once.
        dtype: of the path energies: float64, or by default that of the model where one example takes more than
            65,536 numbers. Energies are sums of positive terms, so float32 keeps 6 digits or so.
        products: as in `propagate`.
        progress: show a progress bar over batches.

    Returns:
        Walk: probabilities, one with the constant input.

    Raises:
        UnsupportedOperatorError, ValueError, TypeError: as `propagate`.

    """
    check_walk(gates, batch_size)
    problem = prepare(model, inputs, outputs, traced=True, by_input=True)
    space = input_metric(metric, problem)
    batches = Batches.of(problem, gates, batch_size, dtype=dtype, progress=progress, products=products, metric=space)
    at_inputs, constant, layers = markov.law(batches(layers=True, weights=False))
    places = problem.places
    by_place = places.pooled(at_inputs).reshape(places.shape)
    return Walk(
        inputs=xr.DataArray(by_place.numpy(), dims=places.dims, coords=places.coords, name="probability"),
        bias=float(constant),
        layers={name: xr.DataArray(p.numpy(), dims=unit_names(p.ndim), name=name) for name, p in layers.items()},
    )
