"""Parameters that a made weight W(theta) can hold, and how it can be rescaled, from its Jacobian J = dW/dtheta.

Of rank(J) independent ones theta_j has the leverage h_j = (J^+ J)_jj; directions with J d = 0 leave W as it is.
A rescaling of channels is a symmetry only where the change of W that it asks for is in the image of J.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._energy.program import Program
from capalloc._energy.program_steps import Edge
from capalloc._energy.symmetries.labels import GROUND, NOTHING

Jacobians = Mapping[Node, Tensor]  # parameter -> (entries of the weight, entries of the parameter)
#: Relative size of singular values and residuals that are rounding: in float64, and in units of a dtype's own.
MADE_RANK_TOLERANCE, MADE_ROUNDINGS = 1e-8, 1e3
#: Residuals that are rounding, in units of that: the directions of small singular values are known less well.
RESIDUAL = 10.0


@dataclass(frozen=True, eq=False)
class MadeWeight:
    """A weight that parameters make, and where its energies are."""

    slot: int
    value: Tensor
    jacobians: Jacobians

    @property
    def tolerance(self) -> float:
        """Relative size of what is rounding."""
        return max(MADE_RANK_TOLERANCE, MADE_ROUNDINGS * torch.finfo(self.value.dtype).eps)


@dataclass(frozen=True, eq=False)
class OneWay:
    """A function of the entries of a parameter: where its energies are, its values and slopes."""

    slot: int
    value: Tensor
    slope: Tensor


@dataclass(frozen=True, eq=False)
class Making:
    """All weights that parameters make in a program, and the parameters' own slots."""

    made: Sequence[MadeWeight]
    direct: Set[Node]  # parameters that are used as they are too
    slots: Mapping[Node, int]

    def held(self, program: Program, through: Mapping[int, Tensor], limit: int) -> tuple[dict[int, Tensor], bool]:
        """Give how much of each entry of the parameters is independent, from 0 to 1, and whether that is all to know.

        It is of the entries of weights that paths use, by the energy `through` weights. What the others have in common
        with them may have tied channels that are free, and of parameters whose Jacobians hold more than `limit`
        numbers side by side nothing is said.
        """
        used = dict(zip(self.made, _in_use(program, self.made, through), strict=True))
        found: dict[int, Tensor] = {}
        whole = True
        for own in _groups(self.made):
            sizes = {root: part.shape[1] for piece in own for root, part in piece.jacobians.items()}
            rows = torch.cat([_row_block(piece.jacobians, sizes) for piece in own])
            live = torch.cat([used[piece] for piece in own])
            if rows.numel() > limit:
                whole = False
                continue
            alone = [_row_block({r: torch.eye(sizes[r]).to(rows)}, sizes) for r in sizes.keys() & self.direct]
            directions = _directions(torch.cat([rows[live], *alone]), own[0].tolerance)
            parts = directions.square().sum(0).split(list(sizes.values()))
            found |= {self.slots[root]: part for root, part in zip(sizes, parts, strict=True)}
            if not live.all():
                ranks = [len(_directions(part, own[0].tolerance)) for part in (rows, rows[live], rows[~live])]
                whole &= ranks[0] == ranks[1] + ranks[2]
        return found, whole


def _directions(rows: Tensor, tolerance: float) -> Tensor:
    """Give an orthonormal basis of what rows span."""
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    basis: Tensor = directions[values > tolerance * values.max()] if len(rows) else rows
    return basis


def _in_use(program: Program, made: Sequence[MadeWeight], through: Mapping[int, Tensor]) -> list[Tensor]:
    """Tell which entries of made weights a path uses: all of those that no map reads as they are, or moved."""
    sizes = [piece.value.numel() for piece in made]
    read, used = torch.zeros(sum(sizes), dtype=torch.bool), torch.zeros(sum(sizes), dtype=torch.bool)
    for edge, places in _uses(program, made):
        read[places] = True
        if edge.weight in through:
            used[places[(through[edge.weight] > 0).cpu()]] = True
    return list((used | ~read).split(sizes))


def tie_what_cannot_be_rescaled(program: Program, made: Sequence[MadeWeight], limit: int) -> None:
    """Tie channels on both sides of made weights that their parameters cannot rescale apart."""
    for k, own in enumerate(_groups(made)):
        if ("image", k) not in program.found:
            program.found["image", k] = _image(own, limit)
        basis = program.found["image", k]
        if basis is None:
            program.channels.exact = False
        elif basis.shape[1] < len(basis):  # else it can be any weight
            _tie(program, own, basis)


def tie_what_moves_apart(program: Program, ways: Sequence[OneWay]) -> None:
    """Tie channels on both sides of entries that are seen in several ways, if no change scales all of them alike."""
    values, slopes = (
        torch.stack(parts).double() for parts in zip(*((way.value, way.slope) for way in ways), strict=True)
    )
    off = (slopes * values[:1] - values * slopes[:1]).abs()
    rounding = RESIDUAL * max(MADE_RANK_TOLERANCE, MADE_ROUNDINGS * torch.finfo(ways[0].value.dtype).eps)
    apart = (off > rounding * (slopes * values[:1]).abs()).any(0).reshape(-1).cpu()
    around = [_around(program, way, apart) for way in ways]
    # Between other channels the changes that one way asks for may undo those that another does.
    program.channels.exact &= all(torch.equal(around[0], other) for other in around)
    for entries in around:
        program.channels.tie(*entries[:, 1:].T)


def _around(program: Program, way: OneWay, entries: Tensor) -> Tensor:
    """List some of the entries with the channels before and after them, once for each pair."""
    found = [torch.zeros(0, 3).long()]
    for edge, places in _uses(program, [way]):
        for pair in edge.sides:
            read, written = (program.channels.canonical(labels).expand(places.shape) for labels in pair)
            found.append(torch.stack([places, read, written], -1)[entries[places] & (read > NOTHING)])
    rows: Tensor = torch.cat(found).unique(dim=0)
    return rows


def _image(made: Sequence[MadeWeight], limit: int) -> Tensor | None:
    """An orthonormal basis of the changes that weights can make together; None where that is too much to hold."""
    sizes = {root: part.shape[1] for piece in made for root, part in piece.jacobians.items()}
    rows = torch.cat([_row_block(piece.jacobians, sizes) for piece in made])
    if rows.numel() > limit:
        return None
    basis, values, _ = torch.linalg.svd(rows, full_matrices=False)
    image: Tensor = basis[:, values > made[0].tolerance * values.max()]
    return image


def _tie(program: Program, made: Sequence[MadeWeight], basis: Tensor) -> None:
    """Tie channels that cannot be rescaled: to each other where all of them can at once, else across the weights."""
    weight = torch.cat([piece.value.double().reshape(-1) for piece in made]).to(basis)
    sides: list[tuple[Tensor, Tensor, Tensor]] = []
    for edge, places in _uses(program, made):
        carried = (weight[places] != 0).cpu()
        for pair in edge.sides:
            read, written = (program.channels.canonical(labels).expand(places.shape) for labels in pair)
            sides.append((places, torch.where(carried, read, NOTHING), written))
    names = torch.cat([labels.reshape(-1) for _, *pair in sides for labels in pair] + [torch.zeros(0).long()]).unique()
    names = names[names > GROUND]
    changes = torch.zeros(len(names), len(weight)).to(basis)
    for change, name in zip(changes, names, strict=True):
        for sign in (1.0, -1.0):
            told = torch.zeros_like(change)
            for places, read, written in sides:
                told[places[(written if sign > 0 else read) == name]] = sign
            change += told * weight
    rest = changes - (changes @ basis) @ basis.T
    stuck = (rest.norm(dim=1) > RESIDUAL * made[0].tolerance * changes.norm(dim=1)).cpu()
    if not bool(stuck.any()):
        return
    free = int(stuck.sum()) - int(torch.linalg.matrix_rank(rest[stuck], rtol=RESIDUAL * made[0].tolerance))
    together = changes[stuck].sum(0)
    if bool((together - basis @ (together @ basis)).norm() <= RESIDUAL * made[0].tolerance * together.norm()):
        program.channels.tie(names[stuck], names[stuck][:1])
        program.channels.exact &= free == 1
        return
    program.channels.exact &= free == 0
    for _, read, written in sides:
        fixed = torch.isin(read, names[stuck]) | torch.isin(written, names[stuck])
        program.channels.tie(torch.where(fixed, read, NOTHING), written)


def _uses(program: Program, made: Sequence[MadeWeight | OneWay]) -> Iterator[tuple[Edge, Tensor]]:
    """Edges that use made weights as they are or moved, and which of all their entries each of theirs is."""
    places, start = {}, 0
    for piece in made:
        entries = torch.arange(start, start + piece.value.numel(), dtype=torch.float64, device=piece.value.device)
        places[piece.slot], start = entries.reshape(piece.value.shape), start + piece.value.numel()
    for step in program.steps:
        if step.moves and len(step.args) == 1 and step.args[0] in places:
            places[step.out] = step.map(places[step.args[0]])
    for edge in program.edges:
        if edge.weight in places:
            yield edge, places[edge.weight].long().cpu()


def _row_block(jacobians: Jacobians, sizes: Mapping[Node, int]) -> Tensor:
    like = next(iter(jacobians.values()))
    return torch.cat([jacobians.get(root, like.new_zeros(len(like), size)) for root, size in sizes.items()], 1)


def _groups(made: Sequence[MadeWeight]) -> list[list[MadeWeight]]:
    """Put weights together that have a parameter in common."""
    groups: list[list[MadeWeight]] = []
    for new in made:
        near = [g for g in groups if any(not new.jacobians.keys().isdisjoint(piece.jacobians) for piece in g)]
        groups = [*(g for g in groups if g not in near), [*(piece for g in near for piece in g), new]]
    return groups
