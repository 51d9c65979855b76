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
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from capalloc.energy.channels import Potentials
from capalloc.energy.program import Edge, Program, Step

Cotangents = dict[int, Tensor]
Key = TypeVar("Key", int, str)
Rescaled = tuple[Tensor, Tensor]  # components, and how many parameters each rescales


@dataclass
class Flow:
    """The first adjoint of a batch, at the places where the second needs it."""

    at_edges: dict[int, Tensor] = field(default_factory=dict)  # step -> g at its output
    at_slots: Cotangents = field(default_factory=dict)  # kept slots -> g
    through: dict[int, Tensor] = field(default_factory=dict)  # step -> path energy, like the edge's channel labels


@dataclass
class Usage:
    """Path energy through every parameter and channel, summed over batches, relative to 2**reference."""

    potentials: Potentials
    through_params: Cotangents = field(default_factory=dict)  # slot -> dE/d theta^2
    through_channels: Tensor = field(default_factory=lambda: torch.zeros(0))
    reference: int | None = None

    def output_weight(self, program: Program) -> float:
        """What the outputs of this batch count for."""
        if self.reference is None:
            self.reference = program.exponents[program.output]
        return float(2.0 ** (program.exponents[program.output] - self.reference))


def law(program: Program, seed: Tensor, keep: Sequence[int] = ()) -> Flow:
    """The first adjoint: g = dE/de with `seed` at the outputs, kept at edges, leaves and `keep`."""
    flow = Flow()
    edges = {edge.step: edge for edge in program.edges}
    kept = {*keep, program.input, program.constant, *program.params.values(), *(e.weight for e in program.edges)}
    waiting: Cotangents = {program.output: seed}
    for k in reversed(range(len(program.steps))):
        step = program.steps[k]
        g = waiting.pop(step.out, None)
        if g is None:
            continue
        if step.out in kept:
            flow.at_slots[step.out] = g
        wanted = list(dict.fromkeys(step.args))
        pulled = pull(program, step, g, wanted)
        if k in edges:
            flow.at_edges[k] = g
            flow.through[k] = _through(program, edges[k], g, pulled[wanted.index(edges[k].weight)])
        _accumulate(waiting, wanted, pulled)
    for slot in kept & waiting.keys():
        flow.at_slots[slot] = waiting[slot]
    return flow


def _through(program: Program, edge: Edge, g: Tensor, at_weight: Tensor) -> Tensor:
    """Path energy through every channel that an edge writes: theta^2 dE/d theta^2, or e g where labels ask for it."""
    if edge.out_labels.numel() != edge.written.numel():
        energy = program.values[program.steps[edge.step].out] * g
        return sum_to(energy, edge.out_labels)
    weight = program.values[edge.weight]
    if weight.ndim > 1 and edge.written.numel() == weight.shape[0] == edge.written.shape[0]:
        # Row by row, without a product as large as the weight.
        rows: Tensor = torch.linalg.vecdot(weight.flatten(1), at_weight.flatten(1))
        return rows.reshape(edge.written.shape)
    return sum_to(weight * at_weight, edge.written)


def sum_to(values: Tensor, like: Tensor) -> Tensor:
    """Sum over the axes along which `like` is broadcast."""
    return values.sum_to_size((1,) * (values.ndim - like.ndim) + tuple(like.shape)).reshape(like.shape)


def add_usage(usage: Usage, program: Program, flow: Flow) -> None:
    """Count a batch's path energy through parameters and channels."""
    if not len(usage.through_channels):
        usage.through_channels = torch.zeros(usage.potentials.number, dtype=torch.float64)
    for slot in {*program.params.values(), *(edge.weight for edge in program.edges)}:
        if slot in flow.at_slots:
            _accumulate(usage.through_params, [slot], [flow.at_slots[slot]])
    for edge in program.edges:
        energy = flow.through.get(edge.step)
        if energy is not None:
            labels = edge.out_labels if energy.shape == edge.out_labels.shape else edge.written
            where = usage.potentials.component[labels]
            usage.through_channels.index_add_(0, where.reshape(-1), energy.reshape(-1).cpu().double())


@dataclass(frozen=True)
class Shares:
    """Parameters in use, and what symmetries take from them."""

    names: tuple[str, ...]
    alive: Tensor  # parameters in use, by tensor
    freedom: Tensor  # (components,): how much of each is a symmetry
    rescaled: tuple[Rescaled, ...]  # by tensor
    total: Tensor  # (components,): parameters that each rescales

    @property
    def lost(self) -> Tensor:
        """What symmetries take from each tensor: shared out by the number of parameters that each rescales."""
        rate = self._rate
        return torch.stack([(counts * rate[components]).sum() for components, counts in self.rescaled])

    def loss(self, apart: bool) -> Tensor:
        """What symmetries take, by component: (tensors, components) with tensors apart, else (1, components)."""
        if not apart:
            return torch.where(self.total > 0, self.freedom, 0.0)[None]
        rows = torch.zeros(len(self.names), len(self.freedom), dtype=torch.float64)
        for row, (components, counts) in zip(rows, self.rescaled, strict=True):
            row.index_add_(0, components, counts * self._rate[components])
        return rows

    @property
    def _rate(self) -> Tensor:
        return torch.where(self.total > 0, self.freedom / self.total, 0.0)


def shares(program: Program, usage: Usage) -> Shares:
    """Count parameters in use and split each symmetry over the parameter tensors it rescales, by their number."""
    names = tuple(program.params)
    names_of = owners(program)
    total = torch.zeros(len(usage.through_channels), dtype=torch.float64)
    mine: dict[str, list[Rescaled]] = {name: [] for name in names}
    for edge in program.edges:
        used = usage.through_params.get(edge.weight)
        if used is not None:
            component = usage.potentials.component
            for read, written in edge.sides:
                crossing = _crossing(used, component[read], component[written])
                for name in names_of[edge.weight]:
                    mine[name].append(crossing)
                    total.index_add_(0, *crossing)
    # A component without a parameter of its own to rescale has nothing to lose.
    freedom = usage.potentials.freedom(torch.where(total > 0, usage.through_channels, 0.0))
    alive = [_count_used(usage, slot) for slot in program.params.values()]
    none = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64))
    rescaled = tuple(_concatenate([*mine[name], none]) for name in names)
    return Shares(names, torch.tensor(alive, dtype=torch.float64), freedom, rescaled, total)


def _concatenate(parts: Sequence[Rescaled]) -> Rescaled:
    return torch.cat([c for c, _ in parts]), torch.cat([n for _, n in parts])


def _count_used(usage: Usage, slot: int) -> float:
    used = usage.through_params.get(slot)
    return 0.0 if used is None else float((used > 0).sum())


def capacity(
    program: Program, flow: Flow, usage: Usage, loss: Tensor, rows: Mapping[str, int], keep: Sequence[int] = ()
) -> Cotangents:
    """The second adjoint of a batch: capacity kappa = e * r at the inputs, the constant and `keep`.

    Args:
        program: the batch's energy network.
        flow: its first adjoint, the outputs seeded with `usage.output_weight`.
        usage: path energies summed over all batches.
        loss: share of each row in each component's symmetry, (rows, components).
        rows: row of each parameter: one for all, or one for each.
        keep: slots besides the inputs and the constant.

    Returns:
        slot -> capacity, (rows, *shape of the slot).

    """
    duals = _Duals(program, usage, rows)
    through = usage.through_channels
    per_energy = (loss / torch.where(through > 0, through, 1.0)).to(program.dtype)
    by_step = {edge.step: edge for edge in program.edges}
    waiting: Cotangents = {}
    kept = {*keep, program.input, program.constant}
    held: Cotangents = {}
    for k in reversed(range(len(program.steps))):
        step = program.steps[k]
        edge, g, r = by_step.get(k), flow.at_edges.get(k), waiting.pop(step.out, None)
        if edge is not None and g is not None:
            r = _sink(r, g, per_energy, usage.potentials.component[edge.out_labels])
        if r is not None:
            if step.out in kept:
                held[step.out] = program.values[step.out] * r
            signals = [slot for slot in dict.fromkeys(step.args) if program.is_signal[slot]]
            _accumulate(waiting, signals, pull_rows(program, step, r, signals))
        if edge is not None and g is not None:
            for row, dual in duals.of(edge.weight).items():
                (source,) = pull(program, step, g, step.args[:1], {edge.weight: dual})
                _accumulate(waiting, step.args[:1], [_as_row(source, row, len(loss))])
    for slot in kept & waiting.keys():
        held[slot] = program.values[slot] * waiting[slot]
    return held


def pull(
    program: Program, step: Step, cotangent: Tensor, wanted: Sequence[int], instead: Mapping[int, Tensor] | None = None
) -> list[Tensor]:
    """Adjoint of one step: cotangents of the wanted arguments."""
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
    rows: Mapping[str, int]

    def of(self, slot: int) -> dict[int, Tensor]:
        """What the parameters in a slot bring, by the row they belong to."""
        for name, leaf in self.program.params.items():
            if leaf == slot:
                used = self.usage.through_params.get(slot)
                return {} if used is None else {self.rows[name]: inverse(used)}
        found: dict[int, Tensor] = {}
        for step in self.program.steps:
            if step.out != slot:
                continue
            values = [self.program.values[s] for s in step.args]
            for k, argument in enumerate(step.args):
                for row, dual in self.of(argument).items():
                    moved = step.run([*values[:k], dual, *values[k + 1 :]])
                    _accumulate(found, [row], [moved])
        return found


def inverse(used: Tensor) -> Tensor:
    """1 / used where that is positive, 0 elsewhere."""
    return torch.where(used > 0, used, torch.inf).reciprocal()


def owners(program: Program) -> dict[int, set[str]]:
    """Slots that are made of parameters alone -> their names."""
    owners = {slot: {name} for name, slot in program.params.items()}
    for step in program.steps:
        mine = set().union(*(owners.get(slot, set()) for slot in step.args))
        if mine and not program.is_signal[step.out]:
            owners[step.out] = mine
    return owners


def _crossing(used: Tensor, read: Tensor, written: Tensor) -> Rescaled:
    """The components on both sides of parameters in use that join one to another, and how many of them."""
    shape = torch.broadcast_shapes(read.shape, written.shape)
    if bool(used.amin() > 0):
        counts = torch.full(shape, float(used.numel() // shape.numel()))
    else:
        counts = sum_to((used > 0).to(torch.float32), torch.empty(shape, device="meta")).cpu()  # exact below 2**24
    if bool(torch.isin(read[read > 0], written.contiguous()).any()):
        counts = counts * (read != written)
    sides = [(side.reshape(-1), sum_to(counts, side).reshape(-1).double()) for side in (read, written)]
    return _concatenate(sides)


def _accumulate(into: dict[Key, Tensor], slots: Sequence[Key], cotangents: Sequence[Tensor]) -> None:
    for slot, cotangent in zip(slots, cotangents, strict=True):
        into[slot] = into[slot] + cotangent if slot in into else cotangent
