"""Capacity under total decoupling with linear segments whole (docs/theory.md, section 4, "Linear segments").

The Markov rule adds path energies, which is right where a gate stands between any two weights. Where none does (a
linear bottleneck, attention's values and output projection, a residual stream), paths add coherently and a stream of
r channels has the symmetries of GL(r), not r rescalings. Here G and M_i are the second moments of the mixed derivative
of `Decoupled`, the network with its gates frozen and given random signs:

    kappa_i = trace(G^+ M_i),      kappa = rank G.

Small networks: G from all rows of `num_probes` draws of the signs for every example. Its rank is exact as soon as
rows outnumber parameters; kappa_i has the standard error of the draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from capalloc.dense import Root, accumulate, inverse_root, streamed_triangular
from capalloc.energy.decoupled import Decoupled
from capalloc.problem import Problem, seeded

#: Numbers in the rows that are made at once.
ROWS_AT_ONCE = 2**25


@dataclass(frozen=True)
class Segmented:
    """Capacity by (parameter tensor, input), the constant input last, with the standard error of the inputs."""

    table: Tensor
    error: Tensor
    rank: int


def solve(problem: Problem, network: Decoupled, num_probes: int, generator: torch.Generator) -> Segmented:
    """All rows of every draw, twice over: once for G, once for what each draw brings."""
    sizes = [p.numel() for p in problem.params.values()]
    seed = int(torch.randint(2**62, (), generator=generator))

    def draws() -> Iterator[Tensor]:
        again = torch.Generator().manual_seed(seed)
        for _ in range(num_probes):
            yield torch.cat(list(_rows(problem, network, again)))

    num_slots = problem.probe[0].numel() + 1
    counted = 0

    def flat() -> Iterator[Tensor]:
        nonlocal counted
        for rows in draws():
            counted += len(rows) * num_slots
            yield rows.flatten(0, 1)

    factor = streamed_triangular(flat())
    root = inverse_root(factor, 0.0, max(counted, sum(sizes)))
    tables = torch.stack([_scores(rows, root, sizes) for rows in draws()])
    error = tables.sum(1).std(0) * num_probes**0.5
    return Segmented(tables.sum(0), error, len(root.singular))


def _scores(rows: Tensor, root: Root, sizes: list[int]) -> Tensor:
    count, num_slots, _ = rows.shape
    table = rows.new_zeros(len(sizes), num_slots)
    accumulate(table, rows.flatten(0, 1) @ root.matrix, torch.arange(num_slots).repeat(count), sizes)
    return table


def _rows(problem: Problem, network: Decoupled, generator: torch.Generator) -> Iterator[Tensor]:
    """Mixed derivatives for one draw of signs for every example: (outputs, inputs + 1, params) at a time."""
    params = {name: p.detach() for name, p in problem.params.items()}
    for index, x in enumerate(problem.batches(1)):
        signs = [s[0] for s in network.signs(1, generator)]
        zero = torch.zeros_like(x)

        def slopes(p: dict[str, Tensor], x: Tensor = x, signs: list[Tensor] = signs, zero: Tensor = zero) -> Tensor:
            offset, back, *_ = torch.func.vjp(lambda h: network(p, h, x, signs).reshape(-1), zero)
            along = torch.func.vmap(lambda c: back(c)[0])(torch.eye(len(offset), dtype=offset.dtype))
            return torch.cat([along.flatten(1), offset[:, None]], 1)

        with seeded(index, x.device), sdpa_kernel(SDPBackend.MATH):
            jacobian = torch.func.jacrev(slopes)(params)
        yield torch.cat([jacobian[name].flatten(2) for name in params], 2)
