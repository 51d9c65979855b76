"""Use of a program by its paths: energy through parameters and channels, and the share of symmetries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from capalloc._energy.program import Program
from capalloc._energy.symmetries.labels import Channels
from capalloc._energy.symmetries.potentials import Potentials

Cotangents = dict[int, Tensor]
#: Relative path energy below which float32 has lost it, or its inverse, to rounding to 0: 2**-126 is its least number.
LEAST_FLOAT32 = 2.0**-100
Rescaled = tuple[Tensor, Tensor]  # components, and how many parameters each rescales


@dataclass
class FirstAdjoint:
    """The first adjoint of a batch, at the places where the second needs it."""

    at_edges: dict[int, Tensor] = field(default_factory=dict)  # step -> g at its output
    at_slots: Cotangents = field(default_factory=dict)  # kept slots -> g
    through: dict[int, Tensor] = field(default_factory=dict)  # step -> path energy, like the edge's channel labels


@dataclass
class Usage:
    """Path energy through every parameter and channel, summed over batches, relative to 2**reference."""

    channels: Channels | None = None  # with the ties of all batches
    through_params: Cotangents = field(default_factory=dict)  # slot -> dE/d theta^2
    through_labels: Tensor = field(default_factory=lambda: torch.zeros(0))
    held: dict[int, Tensor] = field(default_factory=dict)  # slot -> how much of each parameter is independent
    reference: int | None = None
    live: list[Tensor] = field(default_factory=list)  # outputs that a path leaves, for each partial mixture
    extremes: dict[int, tuple[float, float]] = field(default_factory=dict)  # slot -> least and largest dE/d theta^2
    by_example: list[float] = field(default_factory=list)  # path energy at the outputs
    bent: bool = False  # whether an activation is none that lets rescale
    may_lose: bool = False  # whether a zero of float32 may be a product that it lost

    @cached_property
    def potentials(self) -> Potentials:
        """Settle what can be rescaled, once all batches are counted."""
        assert self.channels is not None
        return self.channels.resolve()

    @cached_property
    def through_channels(self) -> Tensor:
        """Path energy through each component, (components,)."""
        through = torch.zeros(self.potentials.number, dtype=torch.float64)
        return through.index_add_(0, self.potentials.component, self.through_labels)

    def ends(self, slot: int) -> tuple[float, float]:
        """Give the least and the largest path energy through parameters of a slot, once all batches are counted."""
        if slot not in self.extremes:
            used = self.through_params[slot]
            low, high = used.aminmax() if used.numel() else (math.inf, 0.0)
            self.extremes[slot] = float(low), float(high)
        return self.extremes[slot]

    def all_used(self, slot: int) -> bool:
        """Tell whether a path uses every parameter in a slot, once all batches are counted."""
        return self.ends(slot)[0] > 0

    def is_lost(self) -> bool:
        """Tell whether float32 may have lost energy of paths: parameters seem unused, nearly or wholly."""
        narrow = [slot for slot, used in self.through_params.items() if used.dtype == torch.float32 and used.numel()]
        ends = [self.ends(slot) for slot in narrow]
        least = LEAST_FLOAT32
        kept = (high < 1 / least and (low > least or (low == 0 and not self.may_lose)) for low, high in ends)
        return not all(kept)

    def output_weight(self, program: Program) -> float:
        """Give the factor that the outputs of this batch count for."""
        if self.reference is None:
            self.reference = program.exponents[program.output]
        return float(2.0 ** (program.exponents[program.output] - self.reference))


def add_usage(usage: Usage, program: Program, flow: FirstAdjoint) -> None:
    """Count a batch's path energy through parameters and channels."""
    usage.may_lose |= program.reach is not None and program.reach.is_unknown
    usage.channels = program.channels if usage.channels is None else usage.channels.with_ties_of(program.channels)
    if not len(usage.through_labels):
        usage.through_labels = torch.zeros(program.channels.count, dtype=torch.float64)
    usage.bent = usage.bent or program.bent
    for slot in {*program.params.values(), *(edge.weight for edge in program.edges)}:
        if slot in flow.at_slots:
            accumulate(usage.through_params, [slot], [flow.at_slots[slot]])
    live = [m.live(flow.at_slots.get(m.slot, program.values[m.slot].new_zeros(()))) for m in program.partial]
    usage.live = [a | b for a, b in zip(usage.live or live, live, strict=True)]
    for edge in program.edges:
        energy = flow.through.get(edge.step)
        if energy is not None:
            labels = edge.out_labels if energy.shape == edge.out_labels.shape else edge.written
            usage.through_labels.index_add_(0, labels.reshape(-1), energy.reshape(-1).cpu().double())


@dataclass(frozen=True)
class Shares:
    """Parameters in use, and what symmetries take from them."""

    names: tuple[str, ...]
    alive: Tensor  # parameters in use, by tensor
    freedom: Tensor  # (components,): how much of each is a symmetry
    rescaled: tuple[Rescaled, ...]  # by tensor
    total: Tensor  # (components,): parameters that each rescales
    idle: Tensor  # parameters that leave the weights they make as they are, by tensor

    @property
    def lost(self) -> Tensor:
        """Share of each tensor in the symmetries: by the number of parameters that each rescales, and what is idle."""
        rate = self._rate
        return self.idle + torch.stack([(counts * rate[components]).sum() for components, counts in self.rescaled])

    def loss(self, apart: bool) -> Tensor:
        """Give the share of symmetries by component: (tensors, components) with tensors apart, else (1, components)."""
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
    names_of = program.owners()
    total = torch.zeros(len(usage.through_channels), dtype=torch.float64)
    mine: dict[str, list[Rescaled]] = {name: [] for name in names}
    edges = [edge for edge in program.edges if edge.weight in usage.through_params and not edge.again]
    uses = Counter(edge.weight for edge in edges)
    counted = [_count_used(usage, slot) for slot in program.params.values()]
    if program.making is not None and usage.channels is not None:
        usage.held, whole = program.making(usage.through_params)
        usage.channels.exact &= whole
    unmoved = [_count_idle(usage, slot) for slot in program.params.values()]
    held = {name: alive - idle for name, alive, idle in zip(names, counted, unmoved, strict=True)}
    for edge in edges:
        used = usage.through_params[edge.weight]
        component = usage.potentials.component
        for read, written in edge.sides:
            components, counts = _crossing(used, usage.all_used(edge.weight), component[read], component[written])
            counts = counts / (uses[edge.weight] * len(edge.sides))  # each parameter counts once
            makers = sum(held[name] for name in names_of[edge.weight])
            for name in names_of[edge.weight]:
                if held[name] > 0:
                    crossing = components, counts * (held[name] / makers)
                    mine[name].append(crossing)
                    total.index_add_(0, *crossing)
    # A component without a parameter of its own to rescale has nothing to lose.
    freedom = usage.potentials.freedom(torch.where(total > 0, usage.through_channels, 0.0))
    none = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64))
    rescaled = tuple(_concatenate([*mine[name], none]) for name in names)
    alive, idle = (torch.tensor(counts, dtype=torch.float64) for counts in (counted, unmoved))
    return Shares(names, alive, freedom, rescaled, total, idle)


def _concatenate(parts: Sequence[Rescaled]) -> Rescaled:
    return torch.cat([c for c, _ in parts]), torch.cat([n for _, n in parts])


def _count_used(usage: Usage, slot: int) -> float:
    used = usage.through_params.get(slot)
    if used is None:
        return 0.0
    return float(used.numel() if usage.all_used(slot) else _counts(used, torch.atleast_1d(used)[:1]).double().sum())


def _count_idle(usage: Usage, slot: int) -> float:
    used, held = usage.through_params.get(slot), usage.held.get(slot)
    return 0.0 if used is None or held is None else float((1 - held.reshape(used.shape))[used > 0].sum())


def _crossing(used: Tensor, whole: bool, read: Tensor, written: Tensor) -> Rescaled:
    """The components on both sides of parameters in use that join one to another, and how many of them."""
    shape = np.broadcast_shapes(read.shape, written.shape)
    size = math.prod(shape)
    kernel = used.numel() / size
    apart = not _overlap(read, written) or not bool(torch.isin(read[read > 0], written.contiguous()).any())
    sides = (read, written)
    if whole and apart:
        numbers = [torch.full((side.numel(),), kernel * (size // side.numel())) for side in sides]
    else:
        counts = _counts(used, torch.empty(shape, device="meta")).cpu()
        counts = (counts if apart else counts * (read != written)) * min(1.0, kernel)
        numbers = [sum_to(counts, side).reshape(-1) for side in sides]
    return _concatenate([(side.reshape(-1), n.double()) for side, n in zip(sides, numbers, strict=True)])


def _counts(used: Tensor, like: Tensor) -> Tensor:
    """Count the entries in use over the axes along which `like` is broadcast, fewer than 2**24 each."""
    ones = torch.ops.aten.threshold_backward(used.new_ones(()).expand_as(used), used, 0)  # quicker than a comparison
    kernel = used.shape[2:].numel()
    if used.ndim == like.ndim > 2 and like.shape[2:].numel() == 1 < kernel:
        ones = (ones.flatten(2) @ ones.new_ones(kernel)).reshape(*used.shape[:2], *like.shape[2:])
    return sum_to(ones.float(), like)


def _overlap(read: Tensor, written: Tensor) -> bool:
    """Tell whether one range of labels reaches into the other."""
    (a, b), (c, d) = read.aminmax(), written.aminmax()
    return bool((a <= d) & (c <= b))


def sum_to(values: Tensor, like: Tensor) -> Tensor:
    """Sum over the axes along which `like` is broadcast."""
    return values.sum_to_size((1,) * (values.ndim - like.ndim) + tuple(like.shape)).reshape(like.shape)


def accumulate(into: Cotangents, slots: Sequence[int], cotangents: Sequence[Tensor]) -> None:
    for slot, cotangent in zip(slots, cotangents, strict=True):
        into[slot] = into[slot] + cotangent if slot in into else cotangent
