"""The Markov rule as backward sweeps over a program (docs/theory.md, section 4, "Any graph").

Two adjoints walk from the outputs to the inputs. The first, g = dE/de, gives the law of a path and
dE/d theta^2. The second, r, carries capacity: a unit holds kappa = e * r. Every parameter theta adds to r, at
the units it reads, the adjoint of its own edges with 1 / (dE/d theta^2) in the place of theta^2, which is one
unit of capacity spread over the paths that use it; every symmetry takes one unit away where paths enter its
channel. At the inputs this is the Hessian-vector product e_i d/de_i <q, dE/d theta^2>; on the way it is the
capacity each layer holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from capalloc._energy.maps import Shared
from capalloc._energy.program import Program
from capalloc._energy.program_steps import Edge, Step, Values
from capalloc._energy.ranges import least_exponent
from capalloc._energy.usage import Cotangents, FirstAdjoint, Usage, accumulate, sum_to

#: Largest cotangents of several rows: what a process keeps for the next ones of their size instead of giving it back,
#: to be asked for page by page again.
BYTES_OF_ROWS = 2**23


def law(program: Program, seed: Tensor, keep: Sequence[int] = ()) -> FirstAdjoint:
    """Sweep the first adjoint: g = dE/de with `seed` at the outputs, kept at edges, parameters and `keep`."""
    flow = FirstAdjoint()
    edges = {edge.step: edge for edge in program.edges}
    kept = {*keep, *program.params.values(), *(e.weight for e in program.edges)}
    idle = {program.input, program.constant} - kept  # the inputs' own adjoint costs as much as that of a layer
    waiting: Cotangents = {program.output: seed}
    reach, least = program.reach, {program.output: least_exponent(seed) if program.reach else 0.0}
    leaves = {*program.params.values()}
    for k in reversed(range(len(program.steps))):
        step = program.steps[k]
        g = waiting.pop(step.out, None)
        if g is None:
            continue
        if step.out in kept:
            flow.at_slots[step.out] = g
        wanted = [slot for slot in dict.fromkeys(step.args) if slot not in idle]
        if not wanted:
            continue
        pulled = pull(program, step, g, wanted)
        if k in edges:
            flow.at_edges[k] = g
            flow.through[k] = through(program.values, step.out, edges[k], g, pulled[wanted.index(edges[k].weight)])
        if reach:
            reach.of_pulls(step, least, wanted, pulled, leaves)
            if k in edges:
                weight = edges[k].weight
                reach.of_channels(flow.through[k], least[weight], reach.least[weight])
        accumulate(waiting, wanted, pulled)
    for slot in kept & waiting.keys():
        flow.at_slots[slot] = waiting[slot]
    return flow


def through(values: Values, out: int, edge: Edge, g: Tensor, at_weight: Tensor) -> Tensor:
    """Give path energy through every channel that an edge writes: theta^2 dE/d theta^2, or e g at its output."""
    if edge.by_signal:
        return sum_to(values[out] * g, edge.out_labels)
    weight = values[edge.weight]
    if weight.ndim > 1 and edge.written.numel() == weight.shape[0] == edge.written.shape[0]:
        # Row by row, without a product as large as the weight.
        rows: Tensor = torch.linalg.vecdot(weight.flatten(1), at_weight.flatten(1))
        return rows.reshape(edge.written.shape)
    return sum_to(weight * at_weight, edge.written)


def capacity(
    program: Program, flow: FirstAdjoint, usage: Usage, loss: Tensor, rows: Mapping[str, int], keep: Sequence[int] = ()
) -> Cotangents:
    """Sweep the second adjoint of a batch: capacity kappa = e * r at the inputs, the constant and `keep`.

    Many rows are swept some at a time, each part from the first parameter on that it is about.

    Args:
        program: the batch's energy network.
        flow: its first adjoint, the outputs seeded with `usage.output_weight`; used up on the way.
        usage: path energies summed over all batches.
        loss: share of each row in each component's symmetry, (rows, components).
        rows: row of each parameter: one for all, or one for each.
        keep: slots besides the inputs and the constant.

    Returns:
        slot -> capacity, (rows, *shape of the slot).

    """
    largest = max(value.numel() for value, signal in zip(program.values, program.is_signal, strict=True) if signal)
    number = max(1, BYTES_OF_ROWS // (program.dtype.itemsize * max(1, largest)))
    starts = range(0, max(1, len(loss)), number)
    duals = _Duals(program, usage)
    sinks = _sinks(program, usage, loss)
    parts = []
    for start in starts:
        own = {name: row - start for name, row in rows.items() if start <= row < start + number}
        part = slice(start, start + number)
        taking = {k: component for k, (component, takes) in sinks.items() if any(takes[part])}
        parts.append(_rows_of_capacity(program, flow, duals, taking, loss[part], own, keep, start == starts[-1]))
    if len(parts) == 1:
        return parts[0]
    none = {slot: held[:1].new_zeros(held[:1].shape) for part in parts for slot, held in part.items()}
    sizes = [len(loss[start : start + number]) for start in starts]
    return {
        slot: torch.cat([part.get(slot, zero.expand(n, *zero.shape[1:])) for part, n in zip(parts, sizes, strict=True)])
        for slot, zero in none.items()
    }


def _rows_of_capacity(
    program: Program,
    flow: FirstAdjoint,
    duals: _Duals,
    sinks: Mapping[int, Tensor],
    loss: Tensor,
    rows: Mapping[str, int],
    keep: Sequence[int],
    last: bool,
) -> Cotangents:
    """Sweep some of the rows, with the components of the edges they take from; the `last` use the first adjoint up."""
    through = duals.usage.through_channels
    per_energy = (loss / torch.where(through > 0, through, 1.0)).to(program.dtype)
    by_step = {edge.step: edge for edge in program.edges}
    waiting: Cotangents = {}
    kept = {*keep, program.input, program.constant}
    held: Cotangents = {}
    for k in reversed(range(len(program.steps))):
        step = program.steps[k]
        edge, g, r = by_step.get(k), flow.at_edges.get(k), waiting.pop(step.out, None)
        if last:
            flow.at_edges.pop(k, None)
        if edge is not None and g is not None:
            if k in sinks:
                r = _sink(r, g, per_energy, sinks[k])
            elif r is None and step.out in kept:
                held[step.out] = g.new_zeros(len(loss), *g.shape)
        if r is not None:
            if step.out in kept:
                held[step.out] = program.values[step.out] * r
            signals = program.signals(step)
            accumulate(waiting, signals, pull_rows(program, step, r, signals))
        if edge is not None and g is not None:
            for row, dual in duals.of(edge.weight, rows).items():
                (source,) = pull(program, step, g, step.args[:1], {edge.weight: dual})
                accumulate(waiting, step.args[:1], [_as_row(source, row, len(loss))])
    for slot in kept & waiting.keys():
        held[slot] = program.values[slot] * waiting[slot]
    return held


def _sinks(program: Program, usage: Usage, loss: Tensor) -> dict[int, tuple[Tensor, list[bool]]]:
    """Components of the channels that each edge writes, and whether each row takes from them, by step."""
    found = {}
    takes = loss != 0
    for edge in program.edges:
        component = usage.potentials.component[edge.out_labels]
        found[edge.step] = component, takes[:, component.reshape(-1)].any(1).tolist()
    return found


def pull(
    program: Program, step: Step, cotangent: Tensor, wanted: Sequence[int], instead: Mapping[int, Tensor] | None = None
) -> list[Tensor]:
    """Give cotangents of the wanted arguments of one step."""
    return step.pull(cotangent, program.values, wanted, instead or {})


def pull_rows(program: Program, step: Step, cotangents: Tensor, wanted: Sequence[int]) -> list[Tensor]:
    """`pull` for a leading axis of cotangents."""
    if len(cotangents) == 1:
        return [c[None] for c in pull(program, step, cotangents[0], wanted)]
    return list(torch.func.vmap(lambda c: tuple(pull(program, step, c, wanted)))(cotangents))


def _sink(r: Tensor | None, g: Tensor, per_energy: Tensor, component: Tensor) -> Tensor:
    """The adjoint r of capacity less what symmetries take where paths enter their channels."""
    where = component.reshape((1,) * (g.ndim - component.ndim) + tuple(component.shape))
    taken = per_energy[:, where].to(g.device)
    return -taken * g if r is None else torch.addcmul(r, taken, g, value=-1)


def _as_row(source: Tensor, row: int, rows: int) -> Tensor:
    if rows == 1:
        return source[None]
    placed = source.new_zeros(rows, *source.shape)
    placed[row] = source
    return placed


@dataclass(frozen=True)
class _Duals:
    """1 / (dE/d theta^2) at every parameter, carried through the steps that are made of parameters alone."""

    program: Program
    usage: Usage

    @cached_property
    def owners(self) -> dict[int, frozenset[str]]:
        """Names of the parameters that each slot is made of."""
        return self.program.owners()

    @cached_property
    def makers(self) -> dict[int, Step]:
        """The step that makes each slot."""
        return {step.out: step for step in self.program.steps}

    def of(self, slot: int, rows: Mapping[str, int]) -> dict[int, Tensor]:
        """Give the parts of the parameters in a slot that have a row, by that row."""
        found: dict[int, Tensor] = {}
        owners = self.owners.get(slot, frozenset())
        if owners.isdisjoint(rows):
            return found
        for name in owners:
            if self.program.params[name] == slot:
                return {rows[name]: self._inverse(slot)} if slot in self.usage.through_params else found
        step = self.makers[slot]
        others = [self.program.values[s] for s in step.args]
        if step.moves or isinstance(step.map, Shared):  # a sum over the arguments, not a product
            others = [torch.zeros_like(value) for value in others]
        for k, argument in enumerate(step.args):
            for row, dual in self.of(argument, rows).items():
                moved = step.run([*others[:k], dual, *others[k + 1 :]])
                accumulate(found, [row], [moved])
        return found

    def _inverse(self, slot: int) -> Tensor:
        """1 / (dE/d theta^2) where that is positive, 0 elsewhere."""
        used = self.usage.through_params[slot]
        held = self.usage.held.get(slot)
        held = None if held is None else held.to(used).reshape(used.shape)
        if self.usage.all_used(slot):
            return used.reciprocal() if held is None else held / used
        inverse = torch.threshold(used, 0.0, torch.inf).reciprocal_()
        return inverse if held is None else held * inverse
