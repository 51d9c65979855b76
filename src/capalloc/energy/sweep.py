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
from capalloc.energy.program import Program, Step

Cotangents = dict[int, Tensor]
Key = TypeVar("Key", int, str)


@dataclass
class Flow:
    """The first adjoint of a batch, at the places where the second needs it."""

    at_edges: dict[int, Tensor] = field(default_factory=dict)  # step -> g at its output
    at_slots: Cotangents = field(default_factory=dict)  # kept slots -> g


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
    edges = {edge.step for edge in program.edges}
    kept = {*keep, program.input, program.constant, *program.params.values(), *(e.weight for e in program.edges)}
    waiting: Cotangents = {program.output: seed}
    for k in reversed(range(len(program.steps))):
        step = program.steps[k]
        g = waiting.pop(step.out, None)
        if g is None:
            continue
        if k in edges:
            flow.at_edges[k] = g
        if step.out in kept:
            flow.at_slots[step.out] = g
        wanted = list(dict.fromkeys(step.args))
        _accumulate(waiting, wanted, pull(program, step, g, wanted))
    for slot in kept & waiting.keys():
        flow.at_slots[slot] = waiting[slot]
    return flow


def add_usage(usage: Usage, program: Program, flow: Flow) -> None:
    """Count a batch's path energy through parameters and channels."""
    if not len(usage.through_channels):
        usage.through_channels = torch.zeros(usage.potentials.number, dtype=program.dtype)
    for slot in {*program.params.values(), *(edge.weight for edge in program.edges)}:
        if slot in flow.at_slots:
            _accumulate(usage.through_params, [slot], [flow.at_slots[slot]])
    for edge in program.edges:
        g = flow.at_edges.get(edge.step)
        if g is not None:
            energy = program.values[program.steps[edge.step].out] * g
            where = usage.potentials.component[edge.out_labels].expand(energy.shape)
            usage.through_channels.index_add_(0, where.reshape(-1), energy.reshape(-1).cpu())


@dataclass(frozen=True)
class Shares:
    """Parameters in use, and what symmetries take from them."""

    names: tuple[str, ...]
    alive: Tensor  # parameters in use, by tensor
    loss: Tensor  # (parameters, components): the freedom of each component, split by what it rescales


def shares(program: Program, usage: Usage) -> Shares:
    """Count parameters in use and split each symmetry over the parameter tensors it rescales, by their number."""
    names = tuple(program.params)
    owners = _owners(program)
    rescaled = torch.zeros(len(names), len(usage.through_channels), dtype=torch.float64)
    for edge in program.edges:
        used = usage.through_params.get(edge.weight)
        if used is None:
            continue
        component = usage.potentials.component
        counts = _crossing(len(usage.through_channels), (used > 0).cpu(), component[edge.read], component[edge.written])
        for name in owners[edge.weight]:
            rescaled[names.index(name)] += counts
    total = rescaled.sum(0)
    # A component without a parameter of its own to rescale has nothing to lose.
    freedom = usage.potentials.freedom(torch.where(total > 0, usage.through_channels, 0.0))
    alive = [_count_used(usage, slot) for slot in program.params.values()]
    loss = rescaled / torch.where(total > 0, total, 1.0) * freedom
    return Shares(names, torch.tensor(alive, dtype=torch.float64), loss)


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
    duals = _duals(program, usage)
    by_step = {edge.step: edge for edge in program.edges}
    waiting: Cotangents = {}
    kept = {*keep, program.input, program.constant}
    held: Cotangents = {}
    for k in reversed(range(len(program.steps))):
        step = program.steps[k]
        edge = by_step.get(k)
        g = flow.at_edges.get(k)
        r = waiting.pop(step.out, None)
        if edge is not None and g is not None:
            sink = _sinks(g, usage, loss, edge.out_labels)
            r = sink if r is None else r + sink
        if r is not None:
            if step.out in kept:
                held[step.out] = program.values[step.out] * r
            signals = [slot for slot in dict.fromkeys(step.args) if program.is_signal[slot]]
            _accumulate(waiting, signals, pull_rows(program, step, r, signals))
        if edge is not None and g is not None:
            signal = step.args[0]
            for name, dual in duals.get(edge.weight, {}).items():
                (source,) = pull(program, step, g, [signal], {edge.weight: dual})
                if source is not None:
                    row = torch.zeros(len(loss), *source.shape, dtype=source.dtype, device=source.device)
                    row[rows[name]] = source
                    _accumulate(waiting, [signal], [row])
    for slot in kept & waiting.keys():
        held[slot] = program.values[slot] * waiting[slot]
    return held


def pull(
    program: Program, step: Step, cotangent: Tensor, wanted: Sequence[int], instead: Mapping[int, Tensor] | None = None
) -> list[Tensor | None]:
    """Adjoint of one step: cotangents of the wanted arguments."""
    values = {slot: (instead or {}).get(slot, program.values[slot]) for slot in step.args}
    leaves = {slot: values[slot].detach().requires_grad_() for slot in wanted}
    with torch.enable_grad():
        out = step.run([leaves.get(slot, values[slot]) for slot in step.args])
    return list(torch.autograd.grad(out, [leaves[s] for s in wanted], cotangent.expand(out.shape), allow_unused=True))


def pull_rows(program: Program, step: Step, cotangents: Tensor, wanted: Sequence[int]) -> list[Tensor | None]:
    """`pull` for a leading axis of cotangents."""
    if len(cotangents) == 1:
        return [None if c is None else c[None] for c in pull(program, step, cotangents[0], wanted)]
    values = {slot: program.values[slot] for slot in step.args}

    def forward(*energies: Tensor) -> Tensor:
        known = values | dict(zip(wanted, energies, strict=True))
        return step.run([known[slot] for slot in step.args])

    out, back, *_ = torch.func.vjp(forward, *(values[slot] for slot in wanted))
    return list(torch.func.vmap(back)(cotangents.expand(-1, *out.shape)))


def _sinks(g: Tensor, usage: Usage, loss: Tensor, labels: Tensor) -> Tensor:
    through = usage.through_channels
    per_unit = loss / torch.where(through > 0, through, 1.0)
    where = usage.potentials.component[labels].reshape((1,) * (g.ndim - labels.ndim) + tuple(labels.shape))
    return -per_unit[:, where].to(g.device) * g


def _duals(program: Program, usage: Usage) -> dict[int, dict[str, Tensor]]:
    """1 / (dE/d theta^2) at every parameter, carried through the steps that are made of parameters alone."""
    duals: dict[int, dict[str, Tensor]] = {}
    for name, slot in program.params.items():
        used = usage.through_params.get(slot)
        if used is not None:
            duals[slot] = {name: torch.where(used > 0, 1 / torch.where(used > 0, used, 1.0), 0.0)}
    for step in program.steps:
        if program.is_signal[step.out]:
            continue
        values = [program.values[slot] for slot in step.args]
        for k, slot in enumerate(step.args):
            for name, dual in duals.get(slot, {}).items():
                moved = step.run([*values[:k], dual, *values[k + 1 :]])
                _accumulate(duals.setdefault(step.out, {}), [name], [moved])
    return duals


def _owners(program: Program) -> dict[int, set[str]]:
    owners = {slot: {name} for name, slot in program.params.items()}
    for step in program.steps:
        mine = set().union(*(owners.get(slot, set()) for slot in step.args))
        if mine and not program.is_signal[step.out]:
            owners[step.out] = mine
    return owners


def _crossing(number: int, used: Tensor, read: Tensor, written: Tensor) -> Tensor:
    """For each component, the used parameters that it rescales: those that join it to another."""
    read, written = read.expand(used.shape), written.expand(used.shape)
    crossing = used & (read != written)
    return torch.bincount(read[crossing], minlength=number) + torch.bincount(written[crossing], minlength=number)


def _accumulate(into: dict[Key, Tensor], slots: Sequence[Key], cotangents: Sequence[Tensor | None]) -> None:
    for slot, cotangent in zip(slots, cotangents, strict=True):
        if cotangent is not None:
            into[slot] = into[slot] + cotangent if slot in into else cotangent
