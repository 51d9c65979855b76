"""The Hessian identity: exact capacity of small energy networks (docs/theory.md, section 4).

Index convention: w (params) are the squares of the parameters in use, e (inputs) the input energies with the
constant last, t = log|theta|. G = H/4 is taken in the coordinates theta, which do not end at theta = 0:

    G_kl = delta_kl dE/dw_k + sqrt(w_k w_l) d2E/dw_k dw_l,        M_i the same of dE/de_i,
    kappa_i = trace(G^+ M_i).

A parameter that makes several weights, p and 1 - p, stands in them with the powers d log(weight) / d theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._energy.paths import replay
from capalloc._energy.program import Program
from capalloc._linalg.symmetric import eigh

#: Eigenvalues of G, scaled to a unit diagonal, that count as zero. They are sums of at most p products of
#: float64 ratios in [0, 1]: rounding stays near p * 1e-16, genuine ones are far above 1e-9 on the tested zoo.
HESSIAN_RANK_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Exact:
    """Capacity by parameter tensor and input, and the rank of H."""

    table: Tensor  # (parameters, inputs + 1), the constant last
    rank: int
    alive: Tensor  # parameters that a path uses, by tensor


def solve(batches: Sequence[tuple[Program, Tensor]]) -> Exact:
    """Solve kappa_i = trace(H^+ H_i) for every input, by parameter tensor, from programs and output seeds."""
    program = batches[0][0]
    slots = list(program.params.values())
    shapes = [program.values[s].shape for s in slots]
    squares = torch.cat([program.values[s].reshape(-1) for s in slots])
    start = program.values[program.input]
    inputs = torch.cat([start[0].reshape(-1), start.new_ones(1)])
    reference = program.exponents[program.output]

    def energy(w: Tensor, e: Tensor) -> Tensor:
        pieces = w.split([shape.numel() for shape in shapes])
        leaves = {slot: piece.reshape(shape) for slot, piece, shape in zip(slots, pieces, shapes, strict=True)}
        leaves[program.input] = e[:-1].reshape(1, *start.shape[1:]).expand(start.shape)
        leaves[program.constant] = e[-1]
        total = e.new_zeros(())
        for batch, seed in batches:
            scale = 2.0 ** (batch.exponents[batch.output] - reference)
            total = total + (replay(batch, leaves, [batch.output], batch.powers)[batch.output] * seed).sum() * scale
        return total

    gradient = torch.func.grad(energy)

    def gram(e: Tensor) -> Tensor:
        second = torch.func.jacrev(gradient)(squares, e)
        root = squares.sqrt()
        diagonal: Tensor = torch.diag(gradient(squares, e))
        coupled: Tensor = root[:, None] * second * root
        return diagonal + coupled

    g = gram(inputs)
    unit = torch.where(g.diagonal() > 0, g.diagonal().rsqrt(), 0.0)
    values, vectors = eigh(unit[:, None] * g * unit)
    kept = values > HESSIAN_RANK_TOLERANCE * values.max()
    half = vectors[:, kept] * values[kept].rsqrt()  # half half' = pinv; P's diagonal block by block below
    half = half @ vectors[:, kept].T * unit  # symmetric root of the pseudo-inverse, then the scaling
    rows = torch.repeat_interleave(torch.arange(len(slots)), torch.tensor([shape.numel() for shape in shapes]))

    def shares(e: Tensor) -> Tensor:
        diagonal = ((half @ gram(e)) * half).sum(1)
        return torch.zeros(len(slots), dtype=e.dtype).index_add(0, rows, diagonal)

    # gram is linear in e, so its Jacobian at any e holds M_i for every input.
    table = torch.func.jacrev(shares)(inputs) * inputs
    used = (g.diagonal() > 0).to(torch.float64)
    return Exact(table, int(kept.sum()), torch.zeros(len(slots), dtype=torch.float64).index_add(0, rows, used))
