"""Energy by block and by layer: its parts in skip and branch, and its growth (docs/theory.md, section 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from capalloc._energy.paths import Energies, adjoint, from_inputs
from capalloc._energy.program import Program
from capalloc._energy.program_steps import Step
from capalloc._energy.residual import ResidualBlock, Trails
from capalloc._energy.sweep import pull
from capalloc._operators.records import record


@dataclass(frozen=True)
class Stretch:
    """A stretch of the network without residual sums: from the gates before it to its own gate, or to the outputs."""

    name: str
    before: tuple[Node, ...]
    entry: Node | None  # what the gate acts on; None at the outputs
    end: Node
    rescaled: bool  # by a normalisation or an average

    @property
    def nodes(self) -> set[Node]:
        """Nodes at which energies are needed."""
        return {*self.before, self.end} | ({self.entry} if self.entry else set())


def stretches_of(trails: Trails) -> tuple[Stretch, ...]:
    """List every stretch that has weights, in order of depth; sums of blocks break it."""
    sums = {block.sum for block in trails.blocks()}
    ends = [node for node in trails.order if trails.carriers.decouples(node) or node is trails.graph.output]
    found = (_stretch(trails, end, sums) for end in ends)
    return tuple(layer for layer in found if layer is not None)


def _stretch(trails: Trails, end: Node, sums: set[Node]) -> Stretch | None:
    starts: dict[Node, None] = {}
    names: list[str] = []
    rescaled = False
    pending, seen = [end], {end}
    while pending:
        node = pending.pop(0)
        names += trails.weights(node)
        rescaled |= record(node.target).kind in ("normalisation", "average")
        for used in trails.before(node):
            if used in sums:
                return None
            if trails.carriers.decouples(used) or used.name == trails.graph.input:
                starts[used] = None
            elif used not in seen:
                seen.add(used)
                pending.append(used)
    if not names or end in sums:
        return None
    entry = trails.before(end)[0] if trails.carriers.decouples(end) else None
    return Stretch(names[0].removesuffix(".weight").removesuffix(".bias"), tuple(starts), entry, end, rescaled)


@dataclass(frozen=True)
class Gain:
    """log2 of the factor by which a layer changes the mean energy per unit, upwards and downwards; and of E[a^2]."""

    up: float
    down: float
    gate: float


@dataclass(frozen=True)
class NotedEnergies:
    """Path energy of one batch at the noted nodes, for paths that start at the inputs."""

    program: Program
    up: Energies  # from the inputs
    down: Energies  # adjoint of the outputs
    steps: Mapping[int, Step]  # by the slot that they make

    @classmethod
    def of(cls, program: Program, seed: Tensor) -> NotedEnergies:
        """Sweep twice; arguments of residual sums are noted with them, and examples without a seed have no paths."""
        steps = {step.out: step for step in program.steps}
        noted = {program.input, *program.nodes.values()}
        for slot in program.nodes.values():
            adding = _adding(steps, slot)
            noted.update(used for used in (adding.args if adding else ()) if program.is_signal[used])
        energies = program.values[program.input]
        seeded = (seed.reshape(len(seed), -1)[:, 0] > 0).reshape(-1, *[1] * (energies.ndim - 1))
        up = from_inputs(program, energies * seeded, noted)
        return cls(program, up, adjoint(program, {program.output: seed}, noted), steps)

    @cached_property
    def whole(self) -> float:
        """Energy of all the paths."""
        if self.program.input not in self.down:
            return math.nan
        return float((self.up[self.program.input] * self.down[self.program.input]).sum()) or math.nan

    def slot(self, node: Node) -> int:
        """Find the slot of a noted node's energies; only the inputs need no note."""
        return self.program.nodes.get(node.name, self.program.input)

    def crossing(self, node: Node) -> float:
        """Give the energy of the paths that cross a node, as a share of the whole."""
        slot = self.slot(node)
        if slot not in self.up or slot not in self.down:
            return 0.0
        return float((self.up[slot] * self.down[slot]).sum()) / self.whole

    def sum(self, block: ResidualBlock) -> Step:
        """Find the step that adds a block's skip and its branch; multipliers and copies may follow it."""
        step = _adding(self.steps, self.program.nodes[block.sum.name])
        assert step is not None
        return step

    def parts(self, block: ResidualBlock) -> tuple[float, float]:
        """Give log2 of the energy in a block's skip and in its branch, summed over units."""
        step = self.sum(block)
        if len(step.args) != 2:  # an operator with a rule of its own
            return math.nan, math.nan
        pulled = pull(self.program, step, torch.ones_like(self.program.values[step.out]), step.args)
        sums = [float((self.up[slot] * back).sum()) for slot, back in zip(step.args, pulled, strict=True)]
        first, second = (self.program.exponents[step.out] + _log2(value) for value in sums)
        return (first, second) if block.sum.args[0] is block.skip else (second, first)

    def level(self, node: Node, energies: Energies, sign: int) -> float:
        """Give log2 of a node's mean energy per unit, of `up` (sign 1) or `down` (sign -1)."""
        slot, exponents = self.slot(node), self.program.exponents
        mean = float(energies[slot].double().mean()) if slot in energies else 0.0
        return (exponents[slot] if sign > 0 else exponents[self.program.output] - exponents[slot]) + _log2(mean)


class SummedEnergies:
    """Path energies of all batches, as log2: parts of blocks, and means at the ends of layers."""

    def __init__(self, blocks: Sequence[ResidualBlock], stretches: Sequence[Stretch]) -> None:
        self.blocks = blocks
        self.stretches = stretches
        self.parts = torch.full((len(blocks), 2), -math.inf, dtype=torch.float64)
        self.up: dict[Node, float] = {}
        self.down: dict[Node, float] = {}

    def add(self, flow: NotedEnergies) -> None:
        """Add a batch."""
        parts = torch.tensor([flow.parts(block) for block in self.blocks], dtype=torch.float64).reshape(-1, 2)
        self.parts = torch.logaddexp2(self.parts, parts)
        for node in {node for layer in self.stretches for node in layer.nodes}:
            for known, energies, sign in ((self.up, flow.up, 1), (self.down, flow.down, -1)):
                known[node] = float(np.logaddexp2(known.get(node, -math.inf), flow.level(node, energies, sign)))

    def rates(self) -> Tensor:
        """Give lambda = branch energy / skip energy by block; 0 where no energy comes at all."""
        skip, branch = self.parts.unbind(1)
        return torch.where(branch == -math.inf, 0.0, (branch - skip).exp2())

    def gain(self, layer: Stretch) -> Gain:
        """Tell how a stretch changes the mean energy per unit."""
        return Gain(
            up=_above(self.up[layer.end], [self.up[node] for node in layer.before]),
            down=-_above(self.down[layer.end], [self.down[node] for node in layer.before]),
            gate=_above(self.up[layer.end], [self.up[layer.entry]]) if layer.entry else 0.0,
        )


def _adding(steps: Mapping[int, Step], slot: int) -> Step | None:
    """Find the last step with several arguments on the way to a slot."""
    while slot in steps and len(steps[slot].args) == 1:
        slot = steps[slot].args[0]
    return steps.get(slot)


def _log2(value: float) -> float:
    return math.log2(value) if value > 0 else -math.inf


def _above(level: float, others: Sequence[float]) -> float:
    """A level less the mean of others; NaN where no energy is left."""
    mean = sum(others) / len(others) if others else math.nan
    return level - mean if math.isfinite(mean) else math.nan
