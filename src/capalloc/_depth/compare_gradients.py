"""Shattering of a model's gradients: measured at some inputs, and predicted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from capalloc._decoupling.sites import example_axes, first_axes
from capalloc._depth.observe_gradients import Observer
from capalloc._depth.points import correlation, error, examples_and_neighbours, lags, line
from capalloc._depth.predict_correlation import Prediction
from capalloc._energy.batches import Batches
from capalloc._energy.carriers import NO_PRODUCTS, Products
from capalloc._energy.residual import Trails
from capalloc._energy.rules import RULES
from capalloc._energy.trace import Watch, trace
from capalloc._graph.capture import capture
from capalloc._model.problem import ModelLike, OutputSelection, Problem, prepare, seeded
from capalloc.results.shattering import Shattering


def shattering(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    num_examples: int = 8,
    step: float = 0.1,
    num_lines: int = 4,
    num_probes: int = 8,
    generator: torch.Generator | None = None,
    products: Products | None = None,
) -> Shattering:
    """How far the gradients at different inputs are alike, by depth and along lines: measured, and predicted.

    The correlation of the gradients at two inputs is the path average of the gate correlations met on the way,
    <prod_l (1 - d_l)>, with d_l the decoupling of the two inputs at gate l (docs/theory.md, section 6). It is exact on
    average over random signs of the weights; training, and paths that share weights, show as a difference. Gates and
    gradients are those of the real network on the examples.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2; a private
            copy in evaluation mode is used.
        inputs: examples (examples, *inputs), at least two, or an iterable of such batches; labels are ignored.
        outputs: from what the model returns to the tensor whose gradients are compared.
        num_examples: examples compared with one another, the first ones; twice as many points are held at once.
        step: how far a nearby point lies, as a share of the way to the next example.
        num_lines: lines from one example to the next, on which autocorrelations are measured.
        num_probes: random signs of the outputs, summed over; one for a single output.
        generator: draws the signs; a fixed seed by default.
        products: as in `propagate`.

    Returns:
        Shattering, with standard errors over examples, or over lines; not over the weights.

    Raises:
        ValueError: bad settings, fewer than two examples, or a model that `torch.export` cannot capture.
        UnsupportedOperatorError, TypeError: as `propagate`.

    Reference: D. Balduzzi et al., The shattered gradients problem, ICML 2017.

    """
    started = time.perf_counter()
    _check(num_examples, step, num_lines, num_probes)
    problem = prepare(model, inputs, outputs, traced=True)
    study = _Study.of(problem, _first(problem, num_examples), products or NO_PRODUCTS)
    generator = generator or torch.Generator().manual_seed(0)
    found = study.at_examples(step, num_probes, generator)
    lines = study.on_lines(num_lines, num_probes, generator)
    attrs = {
        "num_examples": len(study.examples),
        "step": step,
        "num_lines": num_lines,
        "num_probes": num_probes,
        "seconds": time.perf_counter() - started,
    }
    return Shattering(xr.merge([found, lines]).assign_attrs(attrs))


@dataclass
class _Study:
    """A captured model, and the energy network of the examples once they have been seen."""

    batches: Batches
    observer: Observer
    examples: Tensor
    predictions: list[Prediction] = field(default_factory=list)

    @classmethod
    def of(cls, problem: Problem, examples: Tensor, products: Products) -> _Study:
        """Captured for two points by example, fewer where memory is short; a fixed program runs batch by batch."""
        twice = replace(problem, inputs=torch.cat([examples, examples]))
        batches = Batches.of(twice, "data", "auto", progress=False, products=products)
        fitting = batches.graph.batch_size
        if fitting < 2 * len(examples):
            batches = Batches.of(twice, "data", max(4, fitting // 2 * 2), progress=False, products=products)
        graph = batches.graph
        other = capture(problem, 3 if graph.batch_size == 2 else 2, RULES)
        fixed = other.batch_size == graph.batch_size
        axes = first_axes(graph) if fixed else example_axes(graph, other)
        number = len(examples) if fixed else graph.batch_size // 2
        return cls(batches, Observer.of(Trails.of(graph, batches.carriers), axes), examples[:number])

    def at_examples(self, step: float, num_probes: int, generator: torch.Generator) -> xr.Dataset:
        """By place and by gate."""
        points, apart, near = examples_and_neighbours(self.examples, step)
        prediction = self._predict(points)
        gradients, gates = self.observer(points, prediction.weights, num_probes, generator)
        columns: dict[str, Any] = {"kind": ("place", np.array([p.kind for p in self.observer.places], dtype=object))}
        for name, pairs in (("independent", apart), ("nearby", near)):
            kept = correlation(gates, pairs.index)
            columns[f"measured_{name}"] = ("place", correlation(gradients, pairs.index).numpy())
            columns[f"measured_{name}_error"] = ("place", error(gradients, pairs).numpy())
            columns[f"predicted_{name}"] = ("place", prediction.correlations(kept).numpy())
            columns["decoupling" if name == "independent" else "decoupling_nearby"] = (
                "gate",
                (1 - kept.abs()).clamp(0, 1).numpy(),
            )
        columns["crossing"] = ("gate", prediction.crossing().numpy())
        coords = {
            "place": np.array([p.name for p in self.observer.places], dtype=object),
            "gate": np.array(self.observer.gate_names, dtype=object),
        }
        self.predictions.append(prediction)
        return xr.Dataset(columns, coords=coords)

    def on_lines(self, num_lines: int, num_probes: int, generator: torch.Generator) -> xr.Dataset:
        """Autocorrelation of the gradient at the inputs, by distance."""
        examples = self.examples
        count = 2 * len(examples)
        measured, kept = [], []
        for k in range(min(num_lines, len(examples))):
            points = line(examples[k], examples[(k + 1) % len(examples)], count)
            gradients, gates = self.observer(points, self.predictions[0].weights, num_probes, generator)
            measured.append(torch.stack([correlation(gradients[0], index) for index in lags(count)]))
            kept.append(torch.stack([correlation(gates, index) for index in lags(count)]))
        over = torch.stack(measured)
        between = over.std(0) / len(over) ** 0.5 if len(over) > 1 else torch.full_like(over[0], torch.nan)
        predicted = [self.predictions[0].correlations(c)[0] for c in torch.stack(kept).nanmean(0)]
        columns = {
            "measured_line": ("distance", over.mean(0).numpy()),
            "measured_line_error": ("distance", between.numpy()),
            "predicted_line": ("distance", torch.stack(predicted).numpy()),
        }
        return xr.Dataset(columns, coords={"distance": np.arange(1, count) / (count - 1)})

    def _predict(self, points: Tensor) -> Prediction:
        observer, batches = self.observer, self.batches
        entries = {observer.entry(gate) for gate in observer.gates}
        watch = Watch(frozenset({*(place.node for place in observer.places), *observer.gates, *entries}))
        with seeded(0, points.device), sdpa_kernel(SDPBackend.MATH):
            programs = [
                (
                    trace(
                        batches.graph,
                        part,
                        "data",
                        set(),
                        batches.dtype,
                        layers=False,
                        carriers=batches.carriers,
                        watch=watch,
                    ),
                    count,
                )
                for part, count in observer.batches(points)
            ]
        return Prediction.of(programs, observer)


def _first(problem: Problem, number: int) -> Tensor:
    """The first examples."""
    taken: list[Tensor] = []
    for batch in problem.batches(number):
        taken.append(batch)
        break
    if len(taken[0]) < 2:
        raise ValueError("inputs hold 1 example, and shattering compares gradients at several: pass at least 2")
    return taken[0]


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
