"""Receptive field: where the paths of one output position start, and how their energy or capacity spreads there.

Index convention: an output is (examples, *output axes), an input (examples, *input axes).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from capalloc._depth.bound_influence import bound
from capalloc._depth.trace_fields import FieldPrograms
from capalloc._energy import markov
from capalloc._energy.batches import Batches
from capalloc._energy.gate_sources import GATE_SOURCES, GateSource
from capalloc._energy.program import Program
from capalloc._energy.support import at_position, support
from capalloc._energy.theoretical_field import Field, Position, resolve, theoretical
from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._measure.forecast import announce_graph
from capalloc._model.input_metric import InputMetricLike, input_metric
from capalloc._model.layer_output import LayerOutput
from capalloc._model.made_from import recorded, words_for_axes
from capalloc._model.places import Places
from capalloc._model.problem import ModelLike, OutputSelection, prepare
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.results.images import smallest_region
from capalloc.results.receptive_field import (
    EXTENT,
    LAYER_COLUMNS,
    MAP_NAMES,
    Extent,
    Index,
    ReceptiveField,
    extent_columns,
    shown,
)

CUT_NOTE = "cut by the border: a position further from it, in a larger input if need be, may see more"
CLOSED_NOTE = "on these examples no path energy reaches the position, whose gates are closed: the map is of open gates"


@checked
@recorded
@undisturbed()
def receptive_field(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    output_position: Position = None,
    layer: str | None = None,
    layers: bool = False,
    gates: GateSource = "data",
    of: Literal["energy", "capacity"] = "energy",
    metric: InputMetricLike = DEFAULT_METRIC,
    batch_size: int = 1,
    check: bool = False,
    progress: bool = False,
) -> ReceptiveField:
    """Locate what one output position sees: the field of paths, that of all influence, and the effective one.

    The field of paths, the theoretical one, is the support of the propagated map: the inputs where a path to the output
    position starts if every parameter is other than zero (docs/theory.md, section 6). The field of influence holds the
    inputs that can change the output in any way: also those that reach it only through a gate or a statistic
    (squeeze-and-excite, a norm over positions, attention weights) and start no path. Each says how far it is known.
    The effective field is the law of the walk from the position, $P(Z_0 = i)$, or the capacity $kappa_i$ of that output
    position alone (section 4).

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2.
        inputs: examples (examples, *inputs), or an iterable of such batches; for their gates and their shape. Several
            inputs, and token ids, as in `measure`; masks must be alike in all examples.
        outputs: (examples, channel, *positions), which the position is in; chosen as in `measure`.
        output_position: index on the axes after examples and channel; or one entry for every axis after examples,
            None for a whole axis, as for tokens: `(7, None)`, or 7 where the inputs are token ids, or vectors of tokens
            or steps that the first layer reads so. By default the central position; outputs (examples, classes) are
            taken whole.
        layer: the name of a module whose output takes the place of the model's; `outputs` chooses among several.
        layers: also find the theoretical field of the central position of every layer: `ReceptiveField.layers`.
        gates: as in `propagate`; the theoretical field does not depend on them. Where no path energy reaches the
            position on any example the map is of "unit" gates, which a note says.
        of: what the effective field is of, "energy" or "capacity".
        metric: energies of the inputs, as in `propagate`; the theoretical field does not depend on them.
        batch_size: examples walked at once.
        check: whether to compare the field of influence with gradients at random weights and inputs, also where no gate
            asks for it; a note says how much of it they reach.
        progress: say how long it takes, where that is more than some seconds, and show a bar over batches.

    Returns:
        ReceptiveField: for every input axis the theoretical size, start, stop, centre, stride and border, and the
        standard deviation of the map; the sizes of the smallest regions that hold 68 % and 95 % of it; the inputs
        where paths start (`support`) and those that can change the output (`influence`), each with its status.

    Raises:
        ValueError: bad settings, a position outside the outputs, or one that no path reaches; an input beyond the
            field of influence has a gradient, which a wrong `capalloc.rule` can cause.
        UnsupportedOperatorError, TypeError: as `propagate`; a layer of what is no `torch.nn.Module`.

    Reference: A. Araujo, W. Norris, J. Sim, Computing Receptive Fields of Convolutional Neural Networks, Distill 2019;
    W. Luo et al., Understanding the effective receptive field in deep convolutional neural networks, NIPS 2016.

    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
    if gates not in GATE_SOURCES:
        raise ValueError(f"gates must be one of {GATE_SOURCES}, got {gates!r}")
    if of not in MAP_NAMES:
        raise ValueError(f"of must be 'energy' or 'capacity', got {of!r}")
    problem = prepare(model if layer is None else LayerOutput(model, layer), inputs, outputs, by_input=True)
    if problem.layout is not None:
        problem.layout.check_alike("a receptive field")
    space = input_metric(metric, problem)
    batches = Batches.of(problem, gates, batch_size, progress=progress, metric=space)
    announce_graph("receptive-field", "field", problem, len(batches.graph.nodes), batches.examples, progress)
    located = locate(batches, output_position, of, layers=layers)
    position, places = located.position, problem.places
    reach = bound(batches, position, located.seen, programs=located.programs, check=check)
    extents, moving = located.extents, located.moving
    found = {"map": located.found, "support": places.holds(located.seen), "influence": reach.influence}
    maps = {name: (places.dims, values.numpy()) for name, values in found.items()}
    attrs: dict[str, Any] = {
        "area_68": int(smallest_region(moving, 0.68).sum()),
        "area_95": int(smallest_region(moving, 0.95).sum()),
        "moving": [places.axes_of(name)[k] for name, field in located.fields.items() for k in field.moving],
        "output_position": position,
        "of": of,
        "gates": located.gates,
        "metric": space.word,
        "paths_status": reach.paths_status,
        "influence_status": reach.influence_status,
        "notes": [
            *([CLOSED_NOTE] * (located.gates != gates)),
            *(f"{name}: {CUT_NOTE}" for name, extent in extents.items() if extent.cut),
            *reach.notes,
        ],
    }
    coords = {"axis": list(extents), **places.coords}
    data = xr.Dataset(maps | extent_columns(extents), coords, attrs | places.attrs)
    return ReceptiveField(data.assign(_layer_columns(located.layers, len(extents))) if layers else data)


def _layer_columns(layers: dict[str, dict[str, Extent]], axes: int) -> dict[str, xr.DataArray]:
    """Give what is kept of the fields of layers."""
    rows = [list(own.values()) for own in layers.values()]
    values = {name: [[getattr(e, name) for e in row] for row in rows] for name in LAYER_COLUMNS}
    return {
        f"layer_{name}": xr.DataArray(
            np.array(found, EXTENT[name]).reshape(len(layers), axes), {"layer": list(layers)}, dims=("layer", "axis")
        )
        for name, found in values.items()
    }


@dataclass(frozen=True)
class Located:
    """The field of paths to a position, and the map of what they carry."""

    position: Index
    places: Places
    seen: Tensor  # the entries where paths start
    fields: dict[str, Field]  # by input
    programs: FieldPrograms
    found: Tensor  # the map
    gates: GateSource  # those of the map
    layers: dict[str, dict[str, Extent]]  # the extent of layers along each axis

    @property
    def extents(self) -> dict[str, Extent]:
        """Give the extent along each axis of each input, by name."""
        return _extents(self.fields, self.places, self.found)

    @property
    def moving(self) -> NDArray[np.float64]:
        """Give the map summed over axes that the field does not move along, of several inputs end to end."""
        summed = []
        for name, own in self.places.split(self.found).items():
            still = [k for k in range(own.ndim) if k not in self.fields[name].moving]
            summed.append((own.sum(still) if still else own).numpy())
        return summed[0] if len(summed) == 1 else np.concatenate([values.ravel() for values in summed])


def locate(batches: Batches, output_position: Position, of: str, *, layers: bool = False) -> Located:
    """Find where paths to a position start, and what they carry of "energy" or "capacity"; fields of all `layers`."""
    problem = batches.problem
    programs = FieldPrograms.of(batches, layers=layers)
    program, by_data = programs.first, programs.gates == "data"
    words = words_for_axes(problem.model, problem.probe) or [""]  # as the view of the result has them
    places = replace(problem.places, of_vectors=words[-1] == "feature")
    shape = tuple(program.values[program.output].shape[1:])
    position = resolve(output_position, shape, places.tokens)
    seen, fields = theoretical(programs, shape, position, places)
    below = _of_layers(program, places) if layers else {}
    program.forget()
    carried, gates = _effective(batches, position, of), batches.gates
    if not float(carried.sum()) > 0 and gates == "data" and not by_data:
        gates = "unit"  # the gates are closed on these examples, and paths are there all the same
        carried = _effective(replace(programs.batches, gates=gates, examples=1, start=batches.start), position, of)
    if not float(carried.sum()) > 0:
        zero = [name for name, p in problem.params.items() if not name.endswith("bias") and not bool(p.any())]
        why = "its gates are closed: use other examples or gates='unit'"
        if zero:  # the last layer of a branch, or of a network, may be initialised so
            why = f"its gates are closed, or weights of zero cut its paths ({', '.join(zero[:3])}, {len(zero)} in all)"
        raise ValueError(f"no path energy reaches {shown(position)} on these examples; {why}")
    found = places.pooled(carried / (carried.sum() if of == "energy" else 1)).reshape(places.shape)
    return Located(position, places, seen, fields, programs, found, gates, below)


def _extents(fields: dict[str, Field], places: Places, found: Tensor | None) -> dict[str, Extent]:
    maps = {} if found is None else places.split(found)
    return {
        axis: _extent(field, k, _deviation(maps[name], k) if maps else math.nan)
        for name, field in fields.items()
        for k, axis in enumerate(places.axes_of(name))
    }


def _of_layers(program: Program, places: Places) -> dict[str, dict[str, Extent]]:
    """Find the theoretical fields of layers with positions, without those that see what the one before them sees."""
    found: dict[str, dict[str, Extent]] = {}
    last = None
    for name, slots in program.layers.items():
        ending = replace(program, output=slots[0])
        shape = tuple(program.values[slots[0]].shape[1:])
        position = resolve(None, shape, places.tokens)
        if len(shape) < 2 or not bool(support(ending, position).any()):
            continue
        own = _extents(theoretical([ending], shape, position, places)[1], places, None)
        known = [(e.size, e.stride) for e in own.values()]
        if repr(known) != last:  # NaN, where there is no stride, is unlike itself
            found[name] = own
        last = repr(known)
    return found


def _extent(field: Field, axis: int, deviation: float) -> Extent:
    """An edge that a border holds moves less than the other: the stride is how far the freer one moves."""
    start, stop = field.interval[axis]
    moves = [move for move in field.moves(axis) if any(move[1:])]
    stride = float(max((step for _, *edges in moves for step in edges), key=abs, default=math.nan))
    if axis not in field.moving:
        stride = 0.0 if field.neighbours else math.nan
    alone = not field.neighbours  # the whole output, or one position: nothing says where an edge would be
    cut = not alone and axis in field.moving and _cut(field, axis, moves, stride)
    return Extent(stop - start, start, stop, (start + stop - 1) / 2, stride, cut, deviation)


def _cut(field: Field, axis: int, moves: list[tuple[int, int, int]], stride: float) -> bool:
    start, stop = field.interval[axis]
    if not moves:
        return start == 0 or stop == field.seen.shape[axis]  # it moves nowhere, so its edges are held
    lower = [abs(low) < abs(stride) for up, low, _ in moves if up * stride > 0]
    upper = [abs(high) < abs(stride) for up, _, high in moves if up * stride < 0]
    # Without a neighbour further inside, an edge on the border counts as cut.
    at_lower = start == 0 and (any(lower) if lower else True)
    room = field.seen.shape[axis] - stop
    at_upper = room < abs(stride) and any(upper) if upper else room == 0
    return at_lower or at_upper


def _effective(batches: Batches, position: Index, of: str) -> Tensor:
    """The map of the position: the walk's law, not yet divided by its sum, or capacity."""

    def at_the_position(layers: bool, weights: bool = True) -> Iterator[markov.Batch]:
        for program, seed in batches(layers, weights):
            yield program, seed * at_position(position, program.values[program.output])

    if of == "energy":
        found, _, _ = markov.law(at_the_position(layers=False, weights=False))
    else:
        # One position leaves many parameters unused, which float32 could not tell from lost ones.
        batches = replace(batches, dtype=torch.float64)
        solved = markov.solve(at_the_position, single=batches.number == 1, layers=False, table=False)
        found = solved.by_input.sum(0).clamp(min=0)
    return found.double()


def _deviation(found: Tensor, axis: int) -> float:
    """Standard deviation of the place along one axis."""
    law = found.movedim(axis, 0).reshape(found.shape[axis], -1).sum(1)
    law = law / law.sum()
    places = torch.arange(len(law), dtype=law.dtype)
    return float((law @ (places - law @ places).square()).clamp(min=0).sqrt())
