"""Everything that can be said about one model in one go, within a number of seconds that is forecast."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from capalloc._audit.observe_channels import SAMPLES_A_CHANNEL, ReadChannels, observe
from capalloc._depth.diagnose_depth import diagnose
from capalloc._energy.carriers import Products
from capalloc._graph.capture import export_once
from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._measure.forecast import check_seconds, duration, graph_seconds, num_nodes, pass_seconds
from capalloc._measure.work_plan import Size
from capalloc._model.input_metric import InputMetricLike, input_metric
from capalloc._model.made_from import recorded
from capalloc._model.problem import ModelLike, OutputSelection, Problem, prepare
from capalloc._model.selected_params import ParamSelection
from capalloc._propagate.by_constraints import EXACT_SECONDS, exact_seconds, numbers_in_use
from capalloc._propagate.effort import LARGE_PARAMS, forecast_seconds, seconds_of_large
from capalloc._propagate.propagate import propagate
from capalloc._propagate.prune_scores import prune_scores
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc._settings import Block
from capalloc.results.allocation import Allocation
from capalloc.results.audit_findings import LEFT_OUT, Audit, as_data, within
from capalloc.results.evidence import Evidence, layer_table
from capalloc.results.findings import findings

#: Seconds that the capacity takes at most where there are as many: the limit of `propagate`, and what comes before.
CAPACITY = 40.0
#: Passes of each example that the answer of the blocks takes at least, of a few networks, and rough: what is more than
#: so many times the time that there is will not be done in it.
LEAST_PASSES, CLEARLY = 1000, 2.0
#: Seconds that the first capacity of a process takes besides, of processor time.
FIRST_ANSWER = 0.4
EXAMPLES_AT_ONCE = 64
#: Times its forecast, or the limit, beyond which what was taken is told.
LATE = 1.25


@dataclass
class _Clock:
    """The seconds that there are, and what was left out for want of them or failed."""

    seconds: float
    started: float
    notes: list[str] = field(default_factory=list)
    failed: dict[str, list[str]] = field(default_factory=dict)  # parts, by the reason
    planned: float = 0.0  # what was forecast of the parts so far
    taken: float = 0.0  # what they took
    captured: float = 0.0  # what came before the parts

    @property
    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.started)

    def run(self, what: str, forecast: float, part: Callable[[], Any], *, fits: bool) -> Any:
        """Return what a part finds; None, with a note, where there is no time for it or it cannot be found."""
        if self.left < 0 or (not fits and forecast > self.left):
            left = f"{max(0.0, self.left):.0f} of {self.seconds:.0f} s are left"
            slow = f" (what came before took {self.taken:.0f} s, {self.planned:.0f} were forecast)"
            late = slow * (self.taken > LATE * self.planned + 1)
            late = late or f" (capturing the model took {self.captured:.0f} s)" * (self.captured > self.seconds / 2)
            self.notes.append(f"{what}{LEFT_OUT}about {max(1.0, forecast):.0f} s more, and {left}{late}")
            return None
        started = time.perf_counter()
        try:
            return part()
        except (ValueError, TypeError, RuntimeError) as error:
            self.failed.setdefault(str(error).splitlines()[0], []).append(what)
            return None
        finally:
            self.planned, self.taken = self.planned + forecast, self.taken + time.perf_counter() - started

    def overrun(self) -> list[str]:
        """A note where it took longer than it may."""
        took = self.seconds - self.left
        return [f"seconds={self.seconds:g} was not held: it took {took:.0f} s"] * (took > LATE * self.seconds)


@checked
@recorded
@undisturbed()
def audit(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    params: ParamSelection = None,
    metric: InputMetricLike = DEFAULT_METRIC,
    seconds: float = 60.0,
    generator: torch.Generator | None = None,
    products: Products | None = None,
    trained: bool | None = None,
    progress: bool = False,
) -> Audit:
    """Find what is wrong with a model, what it does not need and what it does not see, the most serious first.

    Put together from `propagate` (use of layers, inputs by their share), `prune_scores` (dead units), `diagnose`
    (depth, gradients, field) and the channels that each layer reads. Findings go by limits that docs/how-to/audit.md
    lists, each with its number and error (docs/theory.md, sections 2 to 6).

    Args:
        model: any module; what needs its graph is left out, with a note, where `torch.export` cannot capture it.
        inputs: examples (examples, *inputs), at least two, or an iterable of such batches; labels are ignored. Several
            inputs, and token ids, as in `measure`.
        outputs: the constraint outputs, as in `measure`.
        params: the parameters that count, as in `measure`; layers without any are left out.
        metric: energies of the inputs, as in `propagate`.
        seconds: how long it may take. Parts that would take longer by the forecast are left out with a note.
        generator: as in `shattering`.
        products: as in `propagate`.
        trained: as in `scaling`: no advice on initial weights is given for a trained network.
        progress: show a bar over the parts, with the forecast.

    Returns:
        Audit: findings, a table of layers, what `diagnose` returns as `diagnosis`, and in `forecast_seconds` what was
        forecast once the model was captured. The model is captured once for all parts (`capalloc.export`).

    Raises:
        ValueError, TypeError: bad input.

    """
    check_seconds(seconds)
    clock = _Clock(float(seconds), time.perf_counter())
    if isinstance(inputs, Iterator):  # the parts need more than one pass
        inputs = list(inputs)
    problem = export_once(prepare(model, inputs, outputs, params, traced=True, by_input=True))
    problem = replace(problem, source=problem.model)  # parts keep the words for axes that it gives
    input_metric(metric, problem)  # which the parts would leave out with a note
    x, number = problem.inputs, problem.count()
    costs, exact, least = _costs(problem, number, clock)
    clock.captured = clock.seconds - clock.left
    forecast = min(clock.seconds, clock.seconds - clock.left + sum(costs.values()))

    if progress:
        tqdm.write(f"audit: about {duration(forecast)}, and at most {duration(seconds)}", file=sys.stderr)

    def capacity() -> Allocation:
        there_are = clock.left - (0.0 if early else costs["depth"])  # half of it for what comes before the first step
        if exact > there_are and least > CLEARLY * there_are:
            left = f"a nearer answer takes about {least:.0f} s, and {max(0.0, there_are):.0f} s are left for it"
            clock.notes.append(f"capacity by the rule of total decoupling, a guide: {left}")
            return propagate(problem, x, solver="markov", metric=metric)
        solver: Any = "auto" if there_are > min(CAPACITY, exact) else Block(max_seconds=max(1.0, there_are / 2))
        given = x if problem.layout is None else inputs
        return propagate(model, given, outputs, params=params, solver=solver, metric=metric)

    early = costs["depth"] < costs["capacity"]  # the capacity takes what is left, and would take its time too
    parts: dict[str, Callable[[], Any]] = {
        "channels": lambda: observe(problem, problem.batches(EXAMPLES_AT_ONCE)),
        "paths": lambda: prune_scores(problem, x, metric=metric, products=products),
        "capacity": capacity,
        "depth": lambda: diagnose(problem, x, metric=metric, generator=generator, products=products, trained=trained),
    }
    if early:
        parts["capacity"] = parts.pop("capacity")  # the last one
    found: dict[str, Any] = {}
    for what, part in tqdm(parts.items(), disable=not progress, desc="audit"):
        found[what] = clock.run(what, costs[what], part, fits=what == "capacity")
    evidence = _evidence(problem, found)
    clock.notes += [*_too_few(found["channels"] or {}), *clock.overrun()]
    attrs = _attrs(evidence, number) | {"forecast_seconds": forecast, "seconds": time.perf_counter() - clock.started}
    failed = [f"{' and '.join(parts)}{LEFT_OUT}{reason}" for reason, parts in clock.failed.items()]
    attrs["notes"] = [*clock.notes, *failed, *attrs["notes"]]
    columns = {name: ("layer", evidence.layers[name].to_numpy(float)) for name in Audit.COLUMNS}
    data = xr.Dataset(columns, {"layer": list(evidence.layers.index)}, attrs)
    if evidence.diagnosis is not None:
        data = xr.merge([data, within(evidence.diagnosis)], combine_attrs="no_conflicts")
    return Audit(data)


def _evidence(problem: Problem, found: Mapping[str, Any]) -> Evidence:
    """Everything that the parts found."""
    channels = found["channels"] or {}
    read = {name: (one.number, one.directions()) for name, one in channels.items()}
    layers = layer_table(problem.parameter_sizes, found["capacity"], found["paths"], read)
    repeats = {name: pairs for name, one in channels.items() if name in layers.index and (pairs := one.repeats())}
    parts = (found["capacity"], found["paths"], found["depth"])
    return Evidence(layers, problem.num_params, _lengths(problem), *parts, repeats)


def _too_few(channels: Mapping[str, ReadChannels]) -> list[str]:
    """A note where directions of some layers' channels are not known for want of samples."""
    few = {name: len(one.total) for name, one in channels.items() if one.few}
    if not few:
        return []
    widest = max(few, key=lambda name: few[name])
    number = f"{len(few)} layer{'s read' if len(few) > 1 else ' reads'}"
    return [
        f"{number} too many channels for these examples to tell whether they repeat one another: it takes "
        f"{SAMPLES_A_CHANNEL} samples a channel, {SAMPLES_A_CHANNEL * few[widest]:,} for layer {widest}"
    ]


def _costs(problem: Problem, number: int, clock: _Clock) -> tuple[dict[str, float], float, float]:
    """Seconds that each part takes, that the exact capacity takes, and the answer of the blocks at least."""
    of_pass, outputs = pass_seconds(problem)
    nodes = num_nodes(problem)
    costs = {what: graph_seconds(what, of_pass * number, nodes) for what in ("channels", "paths", "depth")}
    left = max(1.0, clock.left - sum(costs.values()))
    size = Size(number, outputs, math.prod(problem.input_shape) + 1, problem.num_params)
    exact = exact_seconds(size, numbers_in_use(problem))
    large = problem.num_params > LARGE_PARAMS
    least = seconds_of_large(problem, number, of_pass) if large else of_pass * LEAST_PASSES * number
    if exact < min(left, EXACT_SECONDS):
        capacity = exact
    elif least > CLEARLY * left:
        capacity = costs["paths"]
    else:
        limit = (left > CAPACITY and Block.max_seconds) or left / 2
        capacity = forecast_seconds(problem, size, of_pass, limit) + costs["paths"]  # which count the symmetries
    return costs | {"capacity": capacity + FIRST_ANSWER}, exact, least


def _attrs(known: Evidence, num_examples: int) -> dict[str, Any]:
    a = known.allocation
    return {
        "found": as_data(findings(known)),
        "num_params": known.num_params,
        "num_examples": num_examples,
        "total": None if a is None else a.total,
        "total_standard_error": None if a is None else a.attrs.get("total_standard_error"),
        "certainty": None if a is None else a.certainty,
        "notes": [] if a is None else [note for note in a.attrs["notes"] if not note.startswith("max_seconds=")],
    }


def _lengths(problem: Problem) -> dict[str, int]:
    """The lengths of the inputs' axes."""
    places = problem.places
    sides = [(places.dims, places.shape)]
    if len(places.inputs) > 1:
        sides = [(places.axes_of(one.name), one.shape) for one in places.inputs]
    return {axis: n for axes, shape in sides for axis, n in zip(axes, shape, strict=True)}
