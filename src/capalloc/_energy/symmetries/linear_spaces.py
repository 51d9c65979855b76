"""Symmetries of linear segments: GL(d) on a space of channels that no gate keeps apart (docs/theory.md, section 4).

Channels that every weight and every gate treats alike span a space: any invertible map g of it is undone by what
reads it, W -> g W for the weights that write it and R -> R g^-1 for those that read it. Of the d (m + n) weights of m
rows that read d channels and n columns that write them

    r (m + n - r),      r = min(d, m, n),

are independent; d of the symmetries are the rescalings that `Potentials` counts already. Where all that reads the
space has biases of its own, shifting the space is undone too, and the d biases that write it count for nothing.

Channels are alike if they have one signature: for each edge, the sum of random numbers of the channels on its other
side. An elementwise weight (a normalisation's gamma) sets every channel apart, unless the channels beyond it are read
or written by full matrices alone: these absorb g, and their signature stands in for the weight's.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from capalloc._energy.maps import Gate, Product, Sum
from capalloc._energy.program import Program
from capalloc._energy.program_steps import Edge, Step
from capalloc._energy.usage import Usage, sum_to


@dataclass(frozen=True)
class Spaces:
    """Symmetries that linear segments have beside rescalings."""

    lost: dict[str, float]  # by parameter tensor; a lower bound, exact on most convolutional networks
    unknown: bool = False  # whether there may be more that is not counted

    @property
    def total(self) -> int:
        return round(sum(self.lost.values()))


@dataclass(frozen=True, eq=False)
class _Link:
    """A used edge between components; `read` and `written` are broadcastable to the pairs that weights join."""

    edge: Edge
    kind: str  # "bias", "scale" or "matrix"
    read: Tensor
    written: Tensor
    used: Tensor  # path energy through its weights
    whole: bool  # whether all of them are in use

    @cached_property
    def kernel(self) -> Tensor:
        """Weights in use for each pair, over the pairs; without axes where it is the same for all."""
        if self.whole:
            return torch.tensor(max(1.0, self.used.numel() // math.prod(self.shape)))
        return sum_to((self.used > 0).to(torch.float32), torch.empty(self.shape, device="meta")).cpu()

    def reaching(self, value: Tensor) -> Tensor:
        """Sum a component's value over what every written component reads, in the shape of `written`."""
        return sum_to(value[self.read].expand(self.shape), self.written)

    def reached(self, value: Tensor) -> Tensor:
        """Sum a component's value over what reads every read component, in the shape of `read`."""
        return sum_to(value[self.written].expand(self.shape), self.read)

    def columns(self, value: Tensor) -> Tensor:
        """Sum a component's value over the weights in use by which it is read, in the shape of `written`."""
        return sum_to(value[self.read].expand(self.shape) * self.kernel, self.written)

    def rows(self, value: Tensor) -> Tensor:
        """Sum a component's value over the weights in use by which it is written, in the shape of `read`."""
        return sum_to(value[self.written].expand(self.shape) * self.kernel, self.read)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.broadcast_shapes(self.read.shape, self.written.shape))


def find(program: Program, usage: Usage) -> Spaces:
    """Count the spaces of a program whose path energies are known."""
    links = _links(program, usage)
    uses = Counter(link.edge.weight for link in links)
    size = usage.potentials.number
    gated = torch.zeros(size, dtype=torch.bool)
    for energy in program.decoupled:
        assert energy.labels is not None
        gated[usage.potentials.component[energy.labels]] = True
    alive = usage.through_channels > 0
    unknown = _reused_in_a_row(program, links, alive & ~gated) or _biased_maxima(program, usage, links, alive)
    unknown = unknown or _written_between(program, links) or _biases_meet(program, links)
    shared = [link for link in links if uses[link.edge.weight] > 1 or link.edge.others]
    for link in shared:  # what one use, or one class of positions, asks of them binds the others
        gated[link.read] = gated[link.written] = True
    free = _free(usage) & ~gated
    shifting = _shifting(program, usage, links, size) & ~gated & (usage.through_channels > 0)
    lost = dict.fromkeys(program.params, 0.0)
    names = program.owners()
    share = shifting / _writers(links, size).clamp(
        min=1
    )  # of several biases that write a channel one is as good as none
    for link in links:
        if link.kind == "bias":
            _share(lost, names[link.edge.weight], float(share[link.written].sum()))
    for *others, _ in _sums_of_biases(program, [link for link in links if link not in shared]):
        for link in others:
            _share(lost, names[link.edge.weight], float(link.written.numel()))
    living = alive.double()
    living[0] = 1.0  # inputs, the constant and outputs
    rank = living.clone()  # of a space of d channels that w columns write: w / d for each
    several = int(free.sum()) > 1  # one alone is no space, and most networks have none
    for channels in _spaces(_signatures(program, usage, links, gated), links, free) if several else ():
        d, c = len(channels), int(channels[0])
        touching = [link for link in links if bool((link.read == c).any() | (link.written == c).any())]
        columns = round(sum(_columns(link, c, rank, shifting) for link in touching))
        rows = round(sum(_rows(link, c, living) for link in touching))
        kept = min(d, columns, rows)
        # A space wider than what reads it is no bottleneck: what writes it shows through, column by column.
        rank[channels] = (columns if d > rows else min(d, columns)) / d
        weights = {
            link: _rows(link, c, living) + _columns(link, c, rank, shifting) for link in touching if link.kind != "bias"
        }
        extra = d * (rows + columns) - kept * (rows + columns - kept) - d
        for link, number in weights.items():
            _share(lost, names[link.edge.weight], extra * number / sum(weights.values()))
    return Spaces(lost, unknown)


def _reused_in_a_row(program: Program, links: list[_Link], linear: Tensor) -> bool:
    """Tell whether a parameter that has several uses is next to channels without a gate."""
    linear = linear.clone()
    linear[0] = False  # inputs, the constant and outputs
    owners = program.owners()
    uses = Counter(name for link in links for name in owners[link.edge.weight])
    if max(uses.values(), default=0) < 2:
        return False
    writes: dict[int, set[int]] = defaultdict(set)  # by step
    places: dict[frozenset[str], set[frozenset[int]]] = defaultdict(set)  # by parameter
    for link in links:
        writes[link.edge.step].update(link.written.unique().tolist())
    for link in links:
        places[owners[link.edge.weight]].add(frozenset(writes[link.edge.step]))
    for link in links:
        if any(uses[name] > 1 for name in owners[link.edge.weight]):
            read, written = bool(linear[link.read].any()), bool(linear[link.written].any())
            if (read and written) or (link.kind == "matrix" and (read or written)):
                return True
            if (read or written) and len(places[owners[link.edge.weight]]) > 1:
                return True
    return False


def _written_between(program: Program, links: list[_Link]) -> bool:
    """Tell whether a parameter writes, without a gate, what cannot be rescaled and other weights read: x + W h."""
    gates = {energy.slot for energy in program.decoupled}
    matrices = {link.edge.step for link in links if link.kind == "matrix"}
    writing = {link.edge.step for link in links if bool((link.written == 0).any())}
    reached: set[int] = set()
    for k, step in enumerate(program.steps):
        if not reached.isdisjoint(set(step.args) - gates):
            if k in matrices:
                return True
            reached.add(step.out)
        if k in writing:
            reached.add(step.out)
    return False


def _biased_maxima(program: Program, usage: Usage, links: list[_Link], alive: Tensor) -> bool:
    """Tell whether a bias passes a maximum and no other gate: the next one can make up for it."""
    maxima = {energy.slot for energy in program.pooled}
    bent = torch.zeros_like(alive)
    for energy in program.decoupled:
        if energy.slot not in maxima and energy.labels is not None:
            bent[usage.potentials.component[energy.labels]] = True
    shifted = (_writers(links, len(alive)) > 0) & alive & ~bent
    shifted[0] = False
    entering = (usage.potentials.component[energy.labels] for energy in program.pooled if energy.labels is not None)
    return any(bool(shifted[components].any()) for components in entering)


def _biases_meet(program: Program, links: list[_Link]) -> bool:
    """Tell whether biases are added up before anything reads them, moved about or used again as they may be."""
    users: dict[int, list[Step]] = defaultdict(list)
    for step in program.steps:
        for slot in step.args:
            users[slot].append(step)
    passing = lambda step: step.moves or isinstance(step.map, (Gate, Sum))  # noqa: E731
    stops = {energy.slot for energy in program.decoupled}
    biased = {program.steps[link.edge.step].out for link in links if link.kind == "bias"}
    for step in program.steps:
        met = sum(slot in biased for slot in step.args) if passing(step) else 0
        if met > 1 and isinstance(step.map, Sum):
            return True
        if met:
            biased.add(step.out)
        if step.out in stops or not all(map(passing, users[step.out])):
            biased.discard(step.out)
    return False


def _share(lost: dict[str, float], names: Collection[str], amount: float) -> None:
    for name in names:
        lost[name] += amount / len(names)


def _links(program: Program, usage: Usage) -> list[_Link]:
    links = []
    for edge in program.edges:
        used = usage.through_params.get(edge.weight)
        if used is None or edge.again or usage.ends(edge.weight)[1] <= 0:
            continue
        step = program.steps[edge.step]
        kind = "scale" if isinstance(step.map, Product) else "matrix"
        kind = "bias" if step.args[0] == program.constant else kind
        for side in edge.sides:
            read, written = (usage.potentials.component[labels] for labels in side)
            links.append(_Link(edge, kind, read, written, used, usage.all_used(edge.weight)))
    return links


def _free(usage: Usage) -> Tensor:
    """Components that rescale on their own."""
    basis = usage.potentials.basis
    shared = np.bincount(basis.indices, minlength=basis.shape[1]) > 1
    alone = torch.from_numpy((np.diff(basis.indptr) == 1) & (basis @ shared.astype(float) == 0))
    free: Tensor = alone & (usage.through_channels > 0)
    free[0] = False
    return free


def _signatures(program: Program, usage: Usage, links: list[_Link], gated: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(-(2**62), 2**62, (n,), generator=generator)  # noqa: E731
    size = len(gated)
    name = draw(size)
    signature = torch.where(gated, draw(size), 0)
    for labels, index in program.apart:
        sides = int(index.max()) + 1
        pairs = torch.unique(usage.potentials.component[labels] * sides + index)  # as one number: many times faster
        signature.index_add_(0, pairs // sides, draw(sides)[pairs % sides])
    for link in links:
        if link.kind != "scale":
            _add(signature, link.read, link.reached(name) * draw(1))
            _add(signature, link.written, link.reaching(name) * draw(1))
        if link.kind == "scale" or getattr(program.steps[link.edge.step].map, "groups", 1) > 1:
            for side, other in ((link.read, link.written), (link.written, link.read)):
                # Many channels may be one component, the inputs' and outputs' above all: here each is on its own.
                _, place, count = torch.unique(other, return_inverse=True, return_counts=True)
                many = (count[place] > 1) | (other == 0)
                alone = torch.where(many, draw(other.numel()).reshape(other.shape), 0)
                _add(signature, side, alone.expand(link.shape).sum_to_size(side.shape))
    absorbing = signature.clone()
    reads, writes = _degrees(links, size)
    # The channels beyond a scale absorb it if nothing but full matrices is there.
    beyond = torch.where(~gated & (writes == 1), absorbing, name)
    before = torch.where(~gated & (reads == 1), absorbing, name)
    beyond[0], before[0] = name[0], name[0]
    for link in links:
        if link.kind == "scale":
            ahead = (beyond[link.written] != name[link.written]).expand(link.reached(name).shape)
            _add(signature, link.read, link.reached(beyond) * draw(1))
            _add(signature, link.written, torch.where(ahead, link.reaching(name), link.reaching(before)) * draw(1))
    return signature


def _add(into: Tensor, where: Tensor, values: Tensor) -> None:
    into.index_add_(0, where.reshape(-1), values.reshape(-1))


def _degrees(links: list[_Link], size: int) -> tuple[Tensor, Tensor]:
    """Count the edges that read, and those but biases that write, each component."""
    reads, writes = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    for link in links:
        reads[torch.unique(link.read)] += 1
        if link.kind != "bias":
            writes[torch.unique(link.written)] += 1
    return reads, writes


def _writers(links: list[_Link], size: int) -> Tensor:
    """Count the biases that write each component."""
    count = torch.zeros(size)
    for link in links:
        if link.kind == "bias":
            _add(count, link.written, torch.ones(link.written.shape))
    return count


def _spaces(signature: Tensor, links: list[_Link], free: Tensor) -> list[Tensor]:
    """Groups of free components of one signature, two or more, in the order in which they are first written."""
    channels = free.nonzero().flatten()
    names, place, size = torch.unique(signature[channels], return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = defaultdict(list)
    for c, k in zip(channels.tolist(), place.tolist(), strict=True) if len(names) < len(channels) else ():
        groups[k].append(c)
    wide = [group for k, group in groups.items() if size[k] > 1]
    first: dict[int, int] = {}
    for k, link in enumerate(links) if wide else ():
        for c in torch.unique(link.written).tolist():
            first.setdefault(c, k)
    return [torch.tensor(group) for group in sorted(wide, key=lambda group: first.get(group[0], -1))]


def _columns(link: _Link, c: int, rank: Tensor, shifting: Tensor) -> float:
    """Count the columns that an edge writes into the space of a component; a bias that shifts undo is none."""
    here = link.written == c
    if not bool(here.any()):
        return 0.0
    if link.kind == "bias":
        return float(not shifting[c])
    return float(link.columns(rank)[here].max())


def _rows(link: _Link, c: int, alive: Tensor) -> float:
    """Count the rows of an edge that read the space of a component and that a path leaves."""
    here = link.read == c
    if not bool(here.any()):
        return 0.0
    return float(link.rows(alive)[here].max())


def _sums_of_biases(program: Program, links: list[_Link]) -> list[list[_Link]]:
    """Biases that are added up before anything reads them, the smallest first: all but one count for nothing."""
    users = Counter(slot for step in program.steps for slot in step.args)
    follow = {step.args[k]: step for step in program.steps for k in range(len(step.args))}
    stops = {energy.slot for energy in program.decoupled}
    groups: dict[int, list[_Link]] = defaultdict(list)
    for link in links:
        if link.kind == "bias":
            slot = program.steps[link.edge.step].out
            while users[slot] == 1 and slot not in stops and isinstance(follow[slot].map, (Gate, Sum)):
                slot = follow[slot].out
            groups[slot].append(link)
    return [sorted(group, key=lambda link: link.written.numel()) for group in groups.values() if len(group) > 1]


def _shifting(program: Program, usage: Usage, links: list[_Link], size: int) -> Tensor:
    """Components with a bias that the biases of all that reads them can make up for."""
    shifting = _writers(links, size) > 0
    shifting[0] = False
    for labels in program.uneven:
        shifting[usage.potentials.component[labels]] = False
    biases = {link.edge.step for link in links if link.kind == "bias"}
    answered = _steps_with_bias(program, biases)
    for link in links:
        padded = any(getattr(program.steps[link.edge.step].map, "padding", ()))
        if link.kind != "bias" and (padded or link.edge.step not in answered):
            shifting[link.read] = False
    return shifting


def _steps_with_bias(program: Program, biases: set[int]) -> set[int]:
    """Steps whose output a bias is added to at once."""
    made = {step.out: k for k, step in enumerate(program.steps)}

    def origin(slot: int) -> int:
        k = made.get(slot, -1)
        while k >= 0 and (isinstance(program.steps[k].map, Gate) or program.steps[k].moves):
            k = made.get(program.steps[k].args[0], -1)
        return k

    sums = [step for step in program.steps if isinstance(step.map, Sum)]
    return {made.get(step.args[0], -1) for step in sums if origin(step.args[1]) in biases}
