"""Everything that depth does to one model, with advice: scaling, shattering, receptive field."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from capalloc._depth.balance_depth import scaling
from capalloc._depth.compare_gradients import COMPARED_EXAMPLES, shattering
from capalloc._depth.locate_field import locate
from capalloc._energy.batches import Batches
from capalloc._energy.carriers import Products
from capalloc._graph.capture import export_once
from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._measure.forecast import (
    announce_graph,
    check_seconds,
    duration,
    graph_seconds,
    num_nodes,
    over_limit,
    pass_seconds,
)
from capalloc._model.input_metric import InputMetricLike, input_metric
from capalloc._model.made_from import recorded
from capalloc._model.problem import ModelLike, OutputSelection, Problem, prepare
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.results.diagnosis import FIELD, Diagnosis
from capalloc.results.receptive_field import Extent


@checked
@recorded
@undisturbed()
def diagnose(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    metric: InputMetricLike = DEFAULT_METRIC,
    num_examples: int = COMPARED_EXAMPLES,
    generator: torch.Generator | None = None,
    products: Products | None = None,
    trained: bool | None = None,
    seconds: float | None = None,
    progress: bool = False,
) -> Diagnosis:
    """`scaling`, `shattering` and `receptive_field` of one model, with advice in words.

    docs/theory.md, sections 5 and 6.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2; a private
            copy in evaluation mode is used.
        inputs: examples (examples, *inputs), at least two, or an iterable of such batches; labels are ignored.
        outputs: where paths end, as in `measure`.
        metric: energies of the inputs for `scaling` and `receptive_field`; `shattering` takes none.
        num_examples: examples whose gradients are compared, the first ones.
        generator: as in `shattering`.
        products: as in `propagate`.
        trained: as in `scaling`.
        seconds: how long it may take. Where the forecast is longer, fewer examples are taken, the first ones, with a
            note.
        progress: say how long it takes, where that is more than some seconds, and show a bar over batches.

    Raises:
        UnsupportedOperatorError, ValueError, TypeError: as `shattering` and `propagate`.

    """
    check_seconds(seconds)
    started = time.perf_counter()
    problem = export_once(prepare(model, inputs, outputs, traced=True, by_input=True))
    x, number, nodes, notes = problem.inputs, problem.count(), num_nodes(problem), list[str]()
    if seconds is not None:
        left = seconds - (time.perf_counter() - started)
        x, notes = _in_time(problem, nodes, number, seconds, left)
        problem = replace(problem, inputs=x)
    announce_graph("diagnose", "depth", problem, nodes, problem.count(), progress)
    told: dict[str, Any] = {"products": products, "trained": trained}
    shattered = shattering(problem, x, num_examples=num_examples, generator=generator, **told)
    scaled = scaling(problem, x, metric=metric, progress=progress, **told)
    noted = {"notes": [*notes, *scaled.data.attrs.get("notes", ())]} if notes else {}
    attrs = {"scaling": scaled.data.attrs | noted, "shattering": shattered.data.attrs}
    parts = [scaled.data, shattered.data, _field(problem, metric)]
    return Diagnosis(xr.merge([part.drop_attrs() for part in parts]).assign_attrs(attrs))


def _in_time(problem: Problem, nodes: int, number: int, seconds: float, left: float) -> tuple[Any, list[str]]:
    """Take the examples that there is time for, two at least, with notes where these are not all or still too many."""
    of_pass = pass_seconds(problem)[0]
    least, whole = (graph_seconds("depth", of_pass * n, nodes) for n in (min(2, number), number))
    late = over_limit(least + seconds - left, seconds, "seconds")
    if whole <= left or number <= 2:
        return problem.inputs, late
    taken = 2 + int(max(0.0, left - least) / (whole - least) * (number - 2))
    few = f"{taken} of {number} examples: all take about {duration(whole)}, of seconds={seconds:g}"
    return next(problem.batches(taken)), [few, *late]


def _field(problem: Problem, metric: InputMetricLike) -> xr.Dataset:
    """The field by input axis; by none where no path reaches the central position on these examples."""
    axes: dict[str, Extent] = {}
    with suppress(ValueError):
        batches = Batches.of(problem, "data", "auto", metric=input_metric(metric, problem))
        axes.update(locate(batches, None, "energy").extents)
    columns = {
        name: ("axis", np.array([float(getattr(extent, name.removeprefix("field_"))) for extent in axes.values()]))
        for name in FIELD[1:]
    }
    return xr.Dataset(columns, coords={"axis": np.array(list(axes), object)})
