"""Rates of a walk on the grid whose limit is the Fokker-Planck equation, positive for any diffusion and any drift.

Index convention: as in `selling`; b is (places, axes), D (places, axes, axes), both in cells.
"""

from __future__ import annotations

import numpy as np
from scipy.special import exprel

from capalloc._linalg.aliases import Array
from capalloc.depth_limit.block import Clock, WalkBlock, durations
from capalloc.depth_limit.moves import Moves
from capalloc.depth_limit.selling import selling

#: Eigenvalues of D below this, relative to the largest, are zero: directions that the steps do not take.
RANK_TOLERANCE = 1e-13


def coefficients(block: WalkBlock, clock: Clock, spacing: float) -> tuple[Array, Array]:
    """Drift b = lambda E[y] and diffusion D = lambda E[y y'] of a block, in cells of the given size.

    Args:
        block: with steps in pixels.
        clock: how long it lasts.
        spacing: size of a cell, in pixels.

    Returns:
        b (*places, axes) and D (*places, axes, axes).

    """
    time = durations(block, clock)
    drift = time[..., None] * block.law.mean / spacing
    diffusion = time[..., None, None] * block.law.second_moment / spacing**2
    return drift, diffusion


def drift_diffusion_moves(b: Array, D: Array) -> Moves:
    """Rates r_i(+-) = (rho_i / 2) B(-+ 2 e_i' D^-1 b) of moves +-e_i, B(z) = z / (e^z - 1), D = sum_i rho_i e_i e_i'.

    The mean move is b exactly, because rho_i e_i' D^-1 b along e_i sums to b; second moments are D up to the square of
    the drift over a move, so of second order in the cells' size. B > 0 whatever the drift (Scharfetter and Gummel,
    1969; Il'in, 1969).

    Args:
        b: drift in cells, (*places, axes); in the range of D, as it is for the moments of any step.
        D: diffusion matrices in cells squared, (*places, axes, axes).

    Returns:
        moves of rates, (2 x pairs, *places).

    """
    places, d = b.shape[:-1], b.shape[-1]
    flat_b, flat_D = b.reshape(-1, d), D.reshape(-1, d, d)
    offsets, weights = selling(flat_D)
    towards = np.einsum("nab,nb->na", np.linalg.pinv(flat_D, rcond=RANK_TOLERANCE, hermitian=True), flat_b)
    peclet = 2 * np.einsum("pna,na->pn", offsets, towards)
    # B(z) = 1 / exprel(z): without cancellation at 0 and without overflow far from it
    with np.errstate(over="ignore"):
        rates = np.concatenate([weights / 2 / exprel(-peclet), weights / 2 / exprel(peclet)])
    both = np.concatenate([offsets, -offsets])
    return Moves(both.reshape(len(both), *places, d), rates.reshape(len(both), *places))
