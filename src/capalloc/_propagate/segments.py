"""Capacity under total decoupling with linear segments whole (docs/theory.md, section 4, "Linear segments").

The Markov rule adds path energies, which is right where a gate stands between any two weights. Where none does (a
linear bottleneck, attention's values and output projection, a residual stream), paths add coherently and a stream of
r channels has the symmetries of GL(r), not r rescalings. Here G and M_i are the second moments of the mixed derivative
of `Decoupled`, the network with its gates frozen and given random signs:

    kappa_i = trace(G^+ M_i),      kappa = rank G.

G takes all rows of `num_probes` draws of the signs for every example: its rank is exact as soon as they outnumber the
parameters. kappa_i has the standard error over draws. Index convention: rows are (draws, mixes, inputs + 1, params),
mixes of the outputs and the constant input last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._energy.decoupled import AtExample, Decoupled
from capalloc._linalg.leverage import Triangle, accumulate, inverse_root
from capalloc._model.input_metric import InputMetric
from capalloc._model.problem import Problem, random_signs, seeded

#: Outputs above which a draw has this many randomly signed sums of outputs in their place: G is the same on average.
MIXES = 8
#: Numbers in the rows that are made at once.
ROWS_AT_ONCE = 2**25


@dataclass(frozen=True)
class Segmented:
    """Capacity by (parameter tensor, input), the constant input last, and the standard error of each place's."""

    table: Tensor
    error: Tensor
    rank: int


def solve(
    problem: Problem, network: Decoupled, num_probes: int, generator: torch.Generator, metric: InputMetric
) -> Segmented:
    """The rows of every draw twice over: once for G, once for what each draw brings."""
    seed = int(torch.randint(2**62, (), generator=generator))
    sizes = [p.numel() for p in problem.params.values()]
    num_rows = 0

    def flat() -> Iterator[Tensor]:
        nonlocal num_rows
        for _, rows in _rows(problem, network, num_probes, seed, metric):
            num_rows += rows[..., 0].numel()
            yield rows.flatten(0, -2)

    (factor,) = Triangle().over(flat())
    root = inverse_root(factor, 0.0, max(num_rows, sum(sizes)))
    tables = factor.new_zeros(num_probes, len(sizes), problem.probe[0].numel() + 1)
    for first, rows in _rows(problem, network, num_probes, seed, metric):
        slots = torch.arange(rows.shape[2]).repeat(rows.shape[1])
        for table, draw in zip(tables[first:], rows, strict=False):
            accumulate(table, draw.flatten(0, 1) @ root.matrix, slots, sizes)
    by_place = problem.places.pooled(tables.sum(1))
    return Segmented(tables.sum(0), by_place.std(0) * num_probes**0.5, root.rank)


def _rows(
    problem: Problem, network: Decoupled, num_probes: int, seed: int, metric: InputMetric
) -> Iterator[tuple[int, Tensor]]:
    """The first draw and the rows of some draws, for every example in turn; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    params = {name: p.detach() for name, p in problem.params.items()}
    slots = problem.probe[0].numel() + 1
    outputs = network.graph.output.meta["val"].numel()
    per_draw = slots * min(outputs, MIXES) * problem.num_params
    at_once = max(1, ROWS_AT_ONCE // per_draw)
    for index, x in enumerate(problem.batches(1)):
        with seeded(index, x.device):
            frozen = network.at(x)
            for first in range(0, num_probes, at_once):
                count = min(at_once, num_probes - first)
                signs, mixes = network.signs(count, generator), _mixes(count, outputs, generator).to(x)
                mixed = torch.func.jacrev(lambda p, s, m, x=x, f=frozen: _affine(f, p, x, s, m, metric))
                jacobian = torch.func.vmap(mixed, (None, 0, 0))(params, signs, mixes)
                yield first, torch.cat([jacobian[name].flatten(3) for name in params], 3)


def _mixes(count: int, outputs: int, generator: torch.Generator) -> Tensor:
    """The outputs themselves, or sums of them with random signs: (count, mixes, outputs)."""
    if outputs <= MIXES:
        return torch.eye(outputs).expand(count, -1, -1)
    return torch.div(random_signs((count, MIXES, outputs), torch.empty(0), generator), MIXES**0.5)


def _affine(
    network: AtExample, params: dict[str, Tensor], x: Tensor, signs: list[Tensor], mixes: Tensor, metric: InputMetric
) -> Tensor:
    """Slopes along every z and the intercept of mixed outputs at x = mu, (mixes, inputs + 1)."""
    start = torch.zeros_like(x) if metric.center is None else metric.center.expand_as(x)
    offset, back, *_ = torch.func.vjp(lambda h: mixes @ network(params, h, signs).reshape(-1), start)
    (slope,) = torch.func.vmap(back)(torch.eye(len(offset), dtype=offset.dtype, device=offset.device))
    return torch.cat([metric.times_root(slope.flatten(1)), offset[:, None]], 1)
