"""Shattering of a model's gradients: measured at some inputs, and predicted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from capalloc._decoupling.sites import example_axes, first_axes
from capalloc._depth.observe_gradients import Observer
from capalloc._depth.points import Pairs, correlation, error, examples_and_neighbours, lags, line
from capalloc._depth.predict_correlation import Prediction
from capalloc._depth.starting_point import described
from capalloc._energy.batches import Batches
from capalloc._energy.carriers import Products
from capalloc._energy.markov import FloatRangeError
from capalloc._energy.residual import Trails
from capalloc._energy.trace import Watch
from capalloc._graph.capture import capture
from capalloc._model.made_from import recorded
from capalloc._model.problem import ModelLike, OutputSelection, Problem, prepare
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.results.shattering import Shattering

#: What lines tell.
LINES = ("measured_line", "measured_line_error", "predicted_line")

#: Defaults: examples compared, the share of the way to a neighbour, and random combinations of the outputs.
COMPARED_EXAMPLES, STEP_TO_NEIGHBOUR, PROBES_OF_OUTPUTS = 8, 0.1, 8


@checked
@recorded
@undisturbed()
def shattering(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    num_examples: int = COMPARED_EXAMPLES,
    step: float = STEP_TO_NEIGHBOUR,
    num_lines: int = 4,
    num_probes: int = PROBES_OF_OUTPUTS,
    generator: torch.Generator | None = None,
    products: Products | None = None,
    trained: bool | None = None,
) -> Shattering:
    """Compare the gradients at different inputs, by depth and along lines: measured, and predicted.

    The correlation of the gradients at two inputs is the path average of the gate correlations met on the way,
    $<prod_l (1 - d_l)>$, with $d_l$ the decoupling of the two inputs at gate l (docs/theory.md, section 6). It is exact
    on average over random signs of the weights; training, and paths that share weights, show as a difference. Gates and
    gradients are those of the real network on the examples.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2; a private
            copy in evaluation mode is used.
        inputs: examples (examples, *inputs), at least two, or an iterable of such batches; labels are ignored.
        outputs: whose gradients are compared, as in `measure`.
        num_examples: examples compared with one another, the first ones; twice as many points are held at once.
        step: how far a nearby point lies, as a share of the way to the next example.
        num_lines: lines from one example to the next, on which autocorrelations are measured.
        num_probes: random signs of the outputs, summed over; lines have them together; one for a single output.
        generator: draws the signs; a fixed seed by default.
        products: as in `propagate`.
        trained: as in `scaling`.

    Returns:
        Shattering, with standard errors over examples, or over lines; not over the weights.

    Raises:
        ValueError: bad settings, fewer than two examples, or a model that `torch.export` cannot capture.
        UnsupportedOperatorError, TypeError: as `propagate`.

    Reference: D. Balduzzi et al., The shattered gradients problem, ICML 2017.

    """
    _check(num_examples, step, num_lines, num_probes)
    problem = prepare(model, inputs, outputs, traced=True, by_input=True)
    return shatter(problem, num_lines, num_examples, step, num_probes, generator, products, trained)


def shatter(
    problem: Problem,
    num_lines: int,
    num_examples: int = COMPARED_EXAMPLES,
    step: float = STEP_TO_NEIGHBOUR,
    num_probes: int = PROBES_OF_OUTPUTS,
    generator: torch.Generator | None = None,
    products: Products | None = None,
    trained: bool | None = None,
) -> Shattering:
    """Compare gradients of a checked problem; on no line for `num_lines` 0."""
    started = time.perf_counter()
    if problem.layout is not None:
        problem.layout.check_alike("a line from one example to another")
    compared = _Compared.of(problem, _first(problem, num_examples), products)
    generator = generator or torch.Generator().manual_seed(0)
    state = generator.get_state()
    try:
        found = compared.correlations(step, num_lines, num_probes, generator)
    except FloatRangeError:
        double = replace(compared, batches=replace(compared.batches, dtype=torch.float64))
        found = double.correlations(step, num_lines, num_probes, generator.set_state(state))
    settings = {"step": step, "num_lines": num_lines, "num_probes": num_probes}
    attrs: dict[str, Any] = {
        "num_examples": len(compared.examples),
        **settings,
        "seconds": time.perf_counter() - started,
    }
    attrs |= described(compared.batches.graph, trained)
    return Shattering(found.assign_attrs(attrs))


@dataclass(frozen=True)
class _Compared:
    """A captured model, and the examples whose gradients are compared."""

    batches: Batches
    observer: Observer
    examples: Tensor

    @classmethod
    def of(cls, problem: Problem, examples: Tensor, products: Products | None) -> _Compared:
        """Captured for the examples, fewer where memory holds not twice as many; a fixed program runs by batches."""
        alone = replace(problem, inputs=examples, params={})
        batches = Batches.of(alone, "data", "auto", products=products)
        fitting = batches.graph.batch_size
        if fitting < len(examples):
            batches = Batches.of(alone, "data", max(2, fitting // 2), products=products)
        graph = batches.graph
        other = capture(problem, 3 if graph.batch_size == 2 else 2)
        fixed = other.batch_size == graph.batch_size
        axes = first_axes(graph) if fixed else example_axes(graph, other)
        number = len(examples) if fixed else graph.batch_size
        return cls(batches, Observer.of(Trails.of(graph, batches.carriers), axes), examples[:number])

    def correlations(self, step: float, num_lines: int, num_probes: int, generator: torch.Generator) -> xr.Dataset:
        """Correlations at examples and neighbours, and on lines; those predicted by the energies at the examples."""
        points, apart, near = examples_and_neighbours(self.examples, step)
        prediction = self.predict(self.examples)

        def grams(points: Tensor, num_probes: int, num_places: int | None = None) -> tuple[Tensor, Tensor]:
            return self.observer(self.at(points).problem, prediction.weights, num_probes, generator, num_places)

        def on_line(points: Tensor) -> tuple[Tensor, Tensor]:
            return grams(points, -(-num_probes // num_lines), 1)

        found = _at_examples(prediction, *grams(points, num_probes), apart, near)
        return xr.merge([found, _on_lines(prediction, on_line, self.examples, num_lines)])

    def predict(self, points: Tensor) -> Prediction:
        """The energy network of some points."""
        observer = self.observer
        entries = {observer.entry(gate) for gate in observer.gates}
        watch = Watch(frozenset({*(place.node for place in observer.places), *observer.gates, *entries}))
        return Prediction.of(replace(self.at(points), watch=watch), observer)

    def at(self, points: Tensor) -> Batches:
        """The batches of some points in the place of the examples."""
        return replace(self.batches, problem=replace(self.batches.problem, inputs=points))


Grams = Callable[[Tensor], tuple[Tensor, Tensor]]  # of the points of a line: gradients at the inputs, gates by gate


def _at_examples(prediction: Prediction, gradients: Tensor, gates: Tensor, apart: Pairs, near: Pairs) -> xr.Dataset:
    """Correlations by place and by gate."""
    places, gate_names = prediction.observer.places, prediction.observer.gate_names
    columns: dict[str, Any] = {"kind": ("place", np.array([place.kind for place in places], object))}
    for name, pairs, column in (("independent", apart, "decoupling"), ("nearby", near, "decoupling_nearby")):
        kept = correlation(gates, pairs.index)
        columns[f"measured_{name}"] = ("place", correlation(gradients, pairs.index).numpy())
        columns[f"measured_{name}_error"] = ("place", error(gradients, pairs).numpy())
        columns[f"predicted_{name}"] = ("place", prediction.correlations(kept).numpy())
        columns[column] = ("gate", (1 - kept.abs()).clamp(0, 1).numpy())
    columns["crossing"] = ("gate", prediction.crossing().numpy())
    coords = {
        "place": np.array([place.name for place in places], object),
        "gate": np.array(gate_names, object),
    }
    return xr.Dataset(columns, coords)


def _on_lines(prediction: Prediction, grams: Grams, examples: Tensor, num_lines: int) -> xr.Dataset:
    """Autocorrelation of the gradient at the inputs, by distance."""
    count = 2 * len(examples)
    measured, kept = [], []
    if not num_lines:
        return xr.Dataset({name: ("distance", np.zeros(0)) for name in LINES}, coords={"distance": np.zeros(0)})
    for k in range(min(num_lines, len(examples))):
        gradients, gates = grams(line(examples[k], examples[(k + 1) % len(examples)], count))
        measured.append(torch.stack([correlation(gradients[0], index) for index in lags(count)]))
        kept.append(torch.stack([correlation(gates, index) for index in lags(count)]))
    over = torch.stack(measured)
    between = over.std(0) / len(over) ** 0.5 if len(over) > 1 else torch.full_like(over[0], torch.nan)
    predicted = [prediction.correlations(c, 1)[0] for c in torch.stack(kept).nanmean(0)]
    values = (over.mean(0).numpy(), between.numpy(), torch.stack(predicted).numpy())
    columns = {name: ("distance", found) for name, found in zip(LINES, values, strict=True)}
    return xr.Dataset(columns, coords={"distance": np.arange(1, count) / (count - 1)})


def _first(problem: Problem, number: int) -> Tensor:
    """The first examples."""
    taken = next(problem.batches(number))
    if len(taken) < 2:
        raise ValueError("inputs hold 1 example, and shattering compares gradients at several: pass at least 2")
    return taken


def _check(num_examples: int, step: float, num_lines: int, num_probes: int) -> None:
    for name, value, lowest in (
        ("num_examples", num_examples, 2),
        ("num_lines", num_lines, 1),
        ("num_probes", num_probes, 1),
    ):
        if not isinstance(value, int) or value < lowest:
            raise ValueError(f"{name} must be an integer of at least {lowest}, got {value!r}")
    if not 0 < step <= 1:
        raise ValueError(f"step must be a share of the way between two examples, in (0, 1], got {step!r}")
