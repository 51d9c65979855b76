"""Symmetries of linear segments: GL(d) on a space of channels that no gate keeps apart (docs/theory.md, section 4).

Channels that every weight and every gate treats alike span a space: any invertible map g of it is undone by what
reads it, W -> g W for the weights that write it and R -> R g^-1 for those that read it. Of the d^2 parameters of g

    d^2 - (d - w)(d - r),      w, r: the ranks of all that writes the space and all that reads it,

move the weights; d of them are the rescalings that `Potentials` counts already. Where all that reads the space has
biases of its own, shifting the space is undone too, and the d biases that write it count for nothing.

Channels are alike if they have one signature: for each edge, the sum of random numbers of the channels on its other
side. An elementwise weight (a normalisation's gamma) sets every channel apart, unless the channels beyond it are read
or written by full matrices alone: these absorb g, and their signature stands in for the weight's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capalloc.energy.maps import Gate, Product, Sum
from capalloc.energy.program import Edge, Program
from capalloc.energy.sweep import Usage

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Spaces:
    """What linear segments lose beside rescalings."""

    mixing: int  # symmetries of GL(d) that are no rescalings
    shifts: int  # biases that other biases make up for
    exact: bool  # whether every space was simple enough to count


@dataclass(frozen=True)
class _Link:
    """One edge between components: pairs (read, written) that a used weight joins."""

    edge: Edge
    kind: str  # "bias", "scale" or "matrix"
    read: Integers
    written: Integers
    kernel: int  # weights for each pair


def find(program: Program, usage: Usage) -> Spaces:
    """Count them for a program whose path energies are known."""
    links = _links(program, usage)
    size = usage.potentials.number
    free = _free(usage)
    gated = np.zeros(size, dtype=bool)
    for labels in program.decoupled:
        gated[_components(usage, labels)] = True
    signature = _signatures(program, usage, links, gated, size)
    shifting = _shifting(program, usage, links, gated, size) & free
    groups: dict[int, list[int]] = defaultdict(list)
    for c in np.flatnonzero(free & ~gated):
        groups[int(signature[c])].append(int(c))
    mixing, exact = 0, not any(link.edge.others for link in links)
    rank = np.ones(size)  # channels of a space of d with w columns written: w / d directions each
    for channels in sorted(groups.values(), key=lambda g: _first_written(links, g[0])):
        d, c = len(channels), channels[0]
        columns = sum(_columns(link, c, rank) for link in links if link.kind != "bias")
        columns += sum(link.kind == "bias" and c in link.written for link in links) * (not shifting[c])
        rows = sum((link.read == c).sum() * link.kernel for link in links)
        w, r = min(d, round(columns)), min(d, int(rows))
        mixing += d * d - (d - w) * (d - r) - d
        rank[channels] = w / d
        exact &= w == d or len({id(link.edge) for link in links if c in link.read}) == 1
    return Spaces(mixing, int(shifting.sum()), exact)


def _links(program: Program, usage: Usage) -> list[_Link]:
    links = []
    for edge in program.edges:
        used = usage.through_params.get(edge.weight)
        if used is None or not bool((used > 0).any()):
            continue
        step = program.steps[edge.step]
        is_bias = step.args[0] == program.constant
        kind = "bias" if is_bias else "scale" if isinstance(step.map, Product) else "matrix"
        for side in edge.sides:
            read, written = (_whole(usage, labels) for labels in torch.broadcast_tensors(*side))
            pairs, counts = np.unique(np.stack([read, written]), axis=1, return_counts=True)
            kernel = max(1, used.numel() // len(read))
            links.append(_Link(edge, kind, pairs[0], pairs[1], kernel * int(counts.max())))
    return links


def _whole(usage: Usage, labels: Tensor) -> Integers:
    found: Integers = usage.potentials.component[labels.reshape(-1)].numpy()
    return found


def _components(usage: Usage, labels: Tensor) -> Integers:
    return np.unique(_whole(usage, labels))


def _free(usage: Usage) -> NDArray[np.bool_]:
    """Components that rescale on their own."""
    basis = usage.potentials.basis
    terms = np.diff(basis.indptr)
    shared = np.bincount(basis.indices, minlength=basis.shape[1]) > 1
    alone = (terms == 1) & (basis @ shared.astype(float) == 0)
    free: NDArray[np.bool_] = alone & (usage.through_channels.numpy() > 0)
    free[0] = False
    return free


def _signatures(program: Program, usage: Usage, links: list[_Link], gated: NDArray[np.bool_], size: int) -> Integers:
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(-(2**62), 2**62, n)  # noqa: E731
    name = draw(size)
    signature = np.where(gated, draw(size), 0)
    for labels, index in program.apart:
        where, side = (
            x.reshape(-1).numpy() for x in torch.broadcast_tensors(usage.potentials.component[labels], index)
        )
        pairs = np.unique(np.stack([where, side]), axis=1)
        np.add.at(signature, pairs[0], draw(int(index.max()) + 1)[pairs[1]])
    scales = [link for link in links if link.kind == "scale"]
    for link in links:
        if link.kind != "scale":
            a, b = draw(2)
            np.add.at(signature, link.read, a * name[link.written])
            np.add.at(signature, link.written, b * name[link.read])
    full = signature.copy()
    reads, writes = _degrees(links, size)
    for link in scales:
        a, b = draw(2)
        ahead = ~gated[link.written] & (writes[link.written] == 1) & (link.written != 0)
        behind = ~ahead & ~gated[link.read] & (reads[link.read] == 1) & (link.read != 0)
        np.add.at(signature, link.read, a * np.where(ahead, full[link.written], name[link.written]))
        np.add.at(signature, link.written, b * np.where(behind, full[link.read], name[link.read]))
    return signature


def _degrees(links: list[_Link], size: int) -> tuple[Integers, Integers]:
    """How many edges read, and how many but biases write, each component."""
    reads, writes = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    for link in links:
        reads[np.unique(link.read)] += 1
        if link.kind != "bias":
            writes[np.unique(link.written)] += 1
    return reads, writes


def _columns(link: _Link, c: int, rank: NDArray[np.float64]) -> float:
    return float(rank[link.read[link.written == c]].sum()) * link.kernel


def _first_written(links: list[_Link], c: int) -> int:
    return min((k for k, link in enumerate(links) if c in link.written), default=-1)


def _shifting(
    program: Program, usage: Usage, links: list[_Link], gated: NDArray[np.bool_], size: int
) -> NDArray[np.bool_]:
    """Components with a bias that the biases of all that reads them can make up for."""
    biased = np.zeros(size, dtype=bool)
    for link in links:
        if link.kind == "bias":
            biased[link.written] = True
    shifting = biased & ~gated
    shifting[0] = False
    for labels in program.uneven:
        shifting[_components(usage, labels)] = False
    with_bias = _steps_with_bias(program, {link.edge.step for link in links if link.kind == "bias"})
    for link in links:
        padded = any(getattr(program.steps[link.edge.step].map, "padding", ()))
        if link.kind != "bias" and (padded or link.edge.step not in with_bias):
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

    found = set()
    for step in program.steps:
        if isinstance(step.map, Sum) and origin(step.args[1]) in biases:
            found.add(made.get(step.args[0], -1))
    return found
