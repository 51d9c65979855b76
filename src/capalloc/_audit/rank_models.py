"""Architectures side by side before any training: capacity and depth beside the known zero-cost scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm import tqdm

from capalloc._audit.functional_dimension import dimension_seconds, functional_dimension
from capalloc._audit.zero_cost import flops, grad_norm, naswot, ntk_condition, synflow
from capalloc._depth.balance_depth import scale
from capalloc._depth.compare_gradients import shatter
from capalloc._energy.batches import Batches
from capalloc._graph.capture import export_once
from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._measure.forecast import (
    announce,
    check_seconds,
    duration,
    graph_seconds,
    num_nodes,
    over_limit,
    pass_seconds,
)
from capalloc._model.given_examples import kept_inputs
from capalloc._model.input_metric import InputMetricLike, input_metric
from capalloc._model.input_moments import InputMoments, still_inputs
from capalloc._model.made_from import recorded
from capalloc._model.problem import ModelLike, OutputSelection, Problem, prepare
from capalloc._propagate.propagate import propagate
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc._settings import PROPAGATE_SOLVERS, PropagateSolver, is_auto, settings_of
from capalloc.results.allocation import Allocation
from capalloc.results.ranking import RANKED_BY, Ranking
from capalloc.results.scaling import Scaling

#: Examples that scores are taken from, the first ones, and those of the neural tangent kernel.
SCORED, OF_KERNEL = 64, 32
#: Parameters up to which the functional dimension is measured: some seconds.
MEASURED_PARAMS = 2500


@checked
@recorded
@undisturbed()
def rank(
    models: Mapping[str, Any] | Iterable[Any],
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    by: str = RANKED_BY,
    labels: Tensor | None = None,
    metric: InputMetricLike = DEFAULT_METRIC,
    solver: PropagateSolver = "markov",
    seconds: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Ranking:
    """Put architectures in an order before any of them is trained, by one of several columns.

    Capacity is the functional dimension, the number of parameters that count independently near the examples: the rank
    of the output Jacobian at points around them (docs/theory.md, section 2), or for more parameters than 2500 the total
    of `propagate`. Beside it stand parameters, operations, the verdict on depth and the known scores of untrained
    networks. By the study in docs/validation.md, "Ranking architectures before training", capacity beats the count of
    parameters on three data sets of four, and hardly so among networks that are all good.

    Args:
        models: by name, or one after the other: anything that `propagate` takes, at its initial weights.
        inputs: examples (examples, *inputs) for all of them, at least two, or an iterable of such batches; the first 64
            count. Several inputs, and token ids, as in `measure`.
        outputs: which outputs, as in `measure`.
        by: the column to order by, of `Ranking.COLUMNS`: the most first, but for "ntk_condition" the least.
        labels: the class of each example, (examples,), for "grad_norm"; without them random signs stand for the
            derivatives of the loss.
        metric: energies of the inputs, as in `propagate`.
        solver: of the map that "informative" is read from, as in `propagate`; the default is a quick guide.
        seconds: how long it may take. Where the forecast is longer, capacities are those of `propagate` and not
            measured, the longest first, with a note.
        seed: of points, of combinations of outputs, and of signs.
        progress: say how long it takes, where that is more than some seconds, and show a bar over the models.

    Returns:
        Ranking: a row for each model, the best first. What cannot be found out for one is NaN, with a note.

    Raises:
        ValueError, TypeError: bad input, or no model.

    Reference: M. Abdelfattah et al., Zero-cost proxies for lightweight NAS, ICLR 2021.

    """
    if by not in Ranking.COLUMNS:
        raise ValueError(f"by must be one of {', '.join(Ranking.COLUMNS)}, got {by!r}")
    if not is_auto(solver):
        settings_of(solver, PROPAGATE_SOLVERS)
    check_seconds(seconds)
    started, named = time.perf_counter(), _named(models)
    examples = kept_inputs(inputs)
    rows, notes = [], []
    candidates = {}
    for name, model in named.items():
        try:
            candidates[name] = Candidate.of(model, examples, outputs, labels, metric, seed)
        except Exception as error:
            if type(error) in (ValueError, TypeError):
                error.args = (f"{name}: {error}",)
            else:  # the user's own, whose words stay as they are
                error.add_note(f"of {name}")
            raise
    if seconds is not None:
        notes += _in_time(candidates, seconds, started)
    if progress:
        announce("rank", sum(candidate.seconds for candidate in candidates.values()), progress)
    for name, candidate in tqdm(candidates.items(), disable=not progress, desc="models"):
        rows.append(candidate.row(solver))
        notes += [f"{name}: {note}" for note in candidate.notes]
    columns = {column: ("model", np.array([row[column] for row in rows], float)) for column in Ranking.COLUMNS}
    depths = {"depth": ("model", np.array([row["depth"] for row in rows], object))}
    measured = {"measured": ("model", np.array([row["measured"] for row in rows], np.int8))}
    attrs = {"by": by, "labelled": labels is not None, "num_examples": len(candidate.x), "notes": notes}
    return Ranking(xr.Dataset({**columns, **depths, **measured}, {"model": list(named)}, attrs))


def _named(models: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    if isinstance(models, (nn.Module, str, Tensor)):  # a stack of layers can be gone through too
        raise TypeError(f"models must be several, by name or in a list, got one {type(models).__name__}")
    named = dict(models) if isinstance(models, Mapping) else {f"model {k}": m for k, m in enumerate(models, start=1)}
    if not named:
        raise ValueError("models must hold at least one model")
    return named


def _in_time(candidates: Mapping[str, Candidate], seconds: float, started: float) -> list[str]:
    """Measure no dimension that there is no time for; a note where what remains takes too long as well."""
    longest_first = sorted(candidates.values(), key=lambda one: -one.dimension_seconds)
    left = seconds - (time.perf_counter() - started)
    for one in longest_first:
        if sum(candidate.seconds for candidate in candidates.values()) > left and one.measures:
            why = f"about {duration(one.dimension_seconds)}, of seconds={seconds:g} for all"
            one.notes.append(f"the functional dimension left out: {why}")
            one.measures = False
    return over_limit(sum(candidate.seconds for candidate in candidates.values()) + seconds - left, seconds, "seconds")


@dataclass
class Candidate:
    """One model, its examples, and what could not be found out."""

    problem: Problem
    x: Tensor
    labels: Tensor | None
    metric: InputMetricLike
    seed: int
    notes: list[str]
    measures: bool  # the functional dimension

    @classmethod
    def of(
        cls,
        model: ModelLike,
        inputs: Tensor | Iterable[Any],
        outputs: OutputSelection,
        labels: Tensor | None,
        metric: InputMetricLike,
        seed: int,
    ) -> Candidate:
        problem = export_once(prepare(model, inputs, outputs, None, traced=True, by_input=True))
        x = torch.cat(list(islice(problem.batches(SCORED), 1)))
        if len(x) < 2:
            raise ValueError("inputs must hold at least two examples, which are compared, got 1")
        if labels is not None:
            if labels.ndim != 1 or len(labels) < len(x) or labels.dtype.is_floating_point:
                raise ValueError(f"labels must be whole numbers, one an example, got shape {tuple(labels.shape)}")
            labels = labels[: len(x)].long()
        input_metric(metric, problem)
        problem = replace(problem, inputs=x)
        measures = problem.num_params <= MEASURED_PARAMS
        return cls(problem, x, labels, metric, seed, list(problem.notes), measures)

    @cached_property
    def of_pass(self) -> float:
        """Seconds of a pass, timed where they are asked for."""
        return pass_seconds(self.problem)[0]

    @property
    def dimension_seconds(self) -> float:
        """The forecast of the functional dimension."""
        return dimension_seconds(self.problem, self.x, self.of_pass) if self.measures else 0.0

    @property
    def seconds(self) -> float:
        """The forecast of a row."""
        return self.dimension_seconds + graph_seconds("scores", self.of_pass * len(self.x), num_nodes(self.problem))

    def known(self, what: str, part: Callable[[], Any]) -> Any:
        """Return what a part finds; None, with a note, where it cannot be found."""
        try:
            return part()
        except (ValueError, TypeError, RuntimeError, MemoryError) as error:
            self.notes.append(f"{what} left out: {str(error).splitlines()[0]}")
            return None

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def row(self, solver: PropagateSolver, *, depth: bool = True) -> dict[str, Any]:
        """Every column of one model; that of depth, which takes longest, where it is asked for."""
        problem, x, known = self.problem, self.x, self.known
        with torch.no_grad():
            double = known("scores in float64", lambda: _in_double(problem, x))
        allocation = known("the map", lambda: self._map(solver))
        told = known("depth", self._depth) if depth else None
        dimension = None
        if double is not None and self.measures:
            dimension = known("the functional dimension", lambda: self._dimension(double))
        total = math.nan if allocation is None else allocation.total
        found = {
            "parameters": problem.num_params,
            "flops": known("operations", lambda: flops(problem)),
            "capacity": total if dimension is None else dimension,
            "informative": None if allocation is None else _informative(allocation, problem, x),
            "alike": None if told is None else told.correlation,
            "synflow": known("SynFlow", lambda: synflow(problem)),
            "naswot": known("NASWOT", lambda: naswot(problem, x)),
            "grad_norm": known("GradNorm", lambda: grad_norm(problem, x, self.labels, self.generator())),
            "ntk_condition": double and known("the kernel", lambda: ntk_condition(double, x[:OF_KERNEL])),
        }
        numbers = {name: math.nan if value is None else float(value) for name, value in found.items()}
        return {**numbers, "depth": _verdict(told), "measured": dimension is not None}

    def _depth(self) -> Scaling:
        """Scaling with the correlation of gradients: what `diagnose` says in a word, without lines and multipliers."""
        problem = self.problem
        shattered = shatter(problem, num_lines=0, trained=False)
        scaled = scale(Batches.of(problem, "data", "auto"), input_metric(self.metric, problem), False, balanced=False)
        return Scaling(scaled.data.assign_attrs(correlation=shattered.kept))

    def _map(self, solver: PropagateSolver) -> Allocation:
        problem = self.problem if solver == "markov" else _in_double(self.problem, self.x)
        return propagate(problem, self.x, solver=solver, metric=self.metric)

    def _dimension(self, double: Problem) -> int:
        x = self.x.double()
        moves = double.places.signals.to(x.device)
        variance = input_metric(self.metric, double).variances.where(moves, 0.0)
        if self.metric == "identity" or self.metric is None:
            variance = variance * InputMoments.of(x).variance[moves].mean()
        return functional_dimension(double, x, variance.sqrt().to(x), self.generator())


def _in_double(problem: Problem, x: Tensor) -> Problem:
    double = prepare(problem.model, x, problem.outputs, list(problem.params), dtype=torch.float64)
    return replace(double, notes=problem.notes, layout=problem.layout)


def _informative(allocation: Allocation, problem: Problem, x: Tensor) -> float:
    """The share of capacity on inputs that vary in the data."""
    still = still_inputs(x)
    assert still is not None
    varying = problem.places.holds(~still.cpu()).numpy()
    return float(allocation.capacity.to_numpy()[varying].sum() / allocation.total)


def _verdict(scaled: Scaling | None) -> str:
    """The phase of residual networks; of plain ones whether energy stays in the range that training needs."""
    if scaled is None:
        return "unknown"
    if scaled.phase != "plain":
        return scaled.phase
    return "plain" if scaled.keeps_energy else "plain, fading" if scaled.total_gain < 1 else "plain, growing"
