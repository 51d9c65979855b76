"""Selling's decomposition of a diffusion matrix into moves of the grid: D = sum_i rho_i e_i e_i', rho_i >= 0.

Index convention: matrices are (places, axes, axes), superbases (places, axes + 1, axes), offsets (pairs, places, axes),
weights (pairs, places), with one pair for each two vectors of a superbase: 1, 3, 6 pairs for 1, 2, 3 axes.

References: E. Selling (1874); J. H. Conway and N. J. A. Sloane, *Low-dimensional lattices VI* (1992); J. Fehrenbach and
J.-M. Mirebeau, *Sparse non-negative stencils for anisotropic diffusion* (2014).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from capalloc._linalg.aliases import Array, Indices

#: A product of two vectors of the superbase counts as obtuse up to this, relative to the trace of D.
OBTUSE = 1e-13
#: Reductions before giving up; each lengthens the moves, and a ratio of eigenvalues of 1e6 takes some tens.
MOST_REDUCTIONS = 500


def selling(D: Array) -> tuple[Indices, Array]:
    """Moves e and weights rho >= 0 with sum_i rho_i e_i e_i' = D.

    A superbase b_0 .. b_d of Z^d, of sum zero, is changed until b_i' D b_j <= 0 for all pairs; then rho_ij =
    -b_i' D b_j, and e_ij is the integer vector orthogonal to the other b_k. D may be singular along directions of
    integer coordinates, as those of step laws are.

    Args:
        D: symmetric and positive semi-definite, (places, axes, axes), 1 to 3 axes.

    Returns:
        offsets (pairs, places, axes) and weights (pairs, places).

    Raises:
        ValueError: no obtuse superbase found, D being too close to singular along a direction off the grid.

    """
    bases = obtuse_superbases(D)
    pairs = list(combinations(range(D.shape[-1] + 1), 2))
    products = _products(bases, D)
    weights = np.array([-products[:, i, j] for i, j in pairs])
    offsets = np.array([_orthogonal(np.delete(bases, pair, axis=1)) for pair in pairs])
    return offsets, weights.clip(min=0)


def obtuse_superbases(D: Array) -> Indices:
    """Superbases with b_i' D b_j <= 0, up to rounding, from the canonical ones."""
    places, d = D.shape[:2]
    identity = np.eye(d, dtype=np.int64)
    bases = np.tile(np.vstack([-identity.sum(0), identity]), (places, 1, 1))
    scale = OBTUSE * np.trace(D, axis1=1, axis2=2)
    todo = np.arange(places)
    for _ in range(MOST_REDUCTIONS):
        products = _products(bases[todo], D[todo])
        products[:, range(d + 1), range(d + 1)] = -np.inf
        worst = products.reshape(len(todo), -1).argmax(1)
        acute = products.reshape(len(todo), -1)[np.arange(len(todo)), worst] > scale[todo]
        todo, worst = todo[acute], worst[acute]
        if not len(todo):
            return bases
        bases[todo] = _reduced(bases[todo], *np.divmod(worst, d + 1))
    raise ValueError(
        f"a diffusion matrix has no short moves on the grid, being nearly singular: {D[todo[0]].tolist()}; use jump"
    )


def _reduced(bases: Indices, i: Indices, j: Indices) -> Indices:
    """b_i turned round, b_j kept, and what keeps the sum zero added to the others."""
    n, vectors = np.arange(len(bases)), bases.shape[1]
    added = (2 // (vectors - 2)) * bases[n, i]
    reduced: Indices = bases + added[:, None]
    reduced[n, i], reduced[n, j] = -bases[n, i], bases[n, j]
    return reduced


def _products(bases: Indices, D: Array) -> Array:
    """b_i' D b_j, (places, axes + 1, axes + 1)."""
    products: Array = np.einsum("nia,nab,njb->nij", bases, D, bases)
    return products


def _orthogonal(vectors: Indices) -> Indices:
    """The integer vector orthogonal to those given, (places, axes - 1, axes)."""
    d = vectors.shape[-1]
    if d == 1:
        return np.ones((len(vectors), 1), dtype=np.int64)
    if d == 2:
        return np.stack([-vectors[:, 0, 1], vectors[:, 0, 0]], -1)
    return np.cross(vectors[:, 0], vectors[:, 1])
