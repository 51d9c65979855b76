"""The walk through blocks: what each does to the law, one step or none or the exponential of a generator.

Both keep mass to rounding, and laws non-negative: exactly as matrices, to rounding by FFT. A propagator maps a state
(cells + 1,) to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.stats import poisson

from capalloc._linalg.aliases import Array
from capalloc.depth_limit.block import BlockSequence, WalkBlock, check_blocks
from capalloc.depth_limit.moves import Border, Grid, Moves, arrivals, check_start, make_grid, spectrum
from capalloc.results.evolution import Evolution, on_grid

WalkMethod = Literal["auto", "fft", "sparse"]
WALK_METHODS = get_args(WalkMethod)
Propagator = Callable[[Array], Array]
Ways = tuple[Callable[[Moves, Grid], Propagator], Callable[[Moves, Grid], Propagator]]


def sparse_step(moves: Moves, grid: Grid) -> Propagator:
    """One step of a chain that takes each move with its weight as probability, and stays otherwise."""
    steps = arrivals(moves, grid)
    stay = (1 - steps.sum(0)).clip(min=0)

    def propagate(state: Array) -> Array:
        stepped: Array = steps @ state + stay * state
        return stepped

    return propagate


def sparse_exponential(moves: Moves, grid: Grid) -> Propagator:
    """exp(Q) for rates of moves, by uniformisation: exp(Q) q = sum_k Poisson(k; r) (I + Q / r)^k q, r the largest rate.

    Every term is a law, so the sum is one; a Krylov or Taylor method leaves negative entries of rounding size. Costs
    about r + 10 sqrt(r) products (A. Jensen, 1953).
    """
    jumps = arrivals(moves, grid)
    jumps.setdiag(0)  # a jump that a border turns into none
    jumps.eliminate_zeros()
    leaving = jumps.sum(0)
    fastest = float(leaving.max())
    if fastest == 0:
        return np.copy
    stay = 1 - leaving / fastest
    jumps = sparse.csr_array(jumps / fastest)
    # Bernstein: what lies further than x above the mean r weighs less than exp(-x^2 / (2 r + 2 x / 3)), here 1e-16
    terms = int(fastest + 10 * np.sqrt(fastest) + 26)
    weights = poisson.pmf(np.arange(terms), fastest)
    weights /= weights.sum()

    def propagate(state: Array) -> Array:
        total: Array = weights[0] * state
        for weight in weights[1:]:
            state = jumps @ state + stay * state
            total = total + weight * state
        return total

    return propagate


def fourier_step(moves: Moves, grid: Grid) -> Propagator:
    """`sparse_step` on a periodic grid with moves that are the same everywhere."""
    transform = spectrum(moves, grid.shape)
    return _multiplication(1 - transform.flat[0] + transform, grid.shape)


def fourier_exponential(moves: Moves, grid: Grid) -> Propagator:
    """`sparse_exponential` on a periodic grid with moves that are the same everywhere: exact for each wave."""
    transform = spectrum(moves, grid.shape)
    return _multiplication(np.exp(transform - transform.flat[0]), grid.shape)


def _multiplication(symbol: NDArray[np.complex128], shape: tuple[int, ...]) -> Propagator:
    def propagate(state: Array) -> Array:
        law = np.fft.irfftn(np.fft.rfftn(state[:-1].reshape(shape)) * symbol, shape, axes=range(len(shape)))
        return np.append(law, state[-1])

    return propagate


#: For coefficients that are the same everywhere on a periodic grid, and for all.
STEP: Ways = (fourier_step, sparse_step)
EXPONENTIAL: Ways = (fourier_exponential, sparse_exponential)


def evolve(
    description: str,
    moves_of: Callable[[WalkBlock, Grid], Moves],
    ways: Ways,
    blocks: BlockSequence,
    start: ArrayLike,
    border: Border | Sequence[Border],
    method: WalkMethod,
    settings: Mapping[str, str],
    spacing: float = 1.0,
) -> Evolution:
    """The walk from `start` through the blocks, from the last to the first, each with the moves that it makes."""
    law = check_start(start)
    grid = make_grid(law.shape, border, spacing)
    passed = check_blocks(blocks, law.shape)[::-1]
    if method not in WALK_METHODS:
        raise ValueError(f"method must be one of {WALK_METHODS}, got {method!r}")
    states = np.zeros((len(passed) + 1, grid.cells + 1))
    states[0, :-1] = law.ravel()
    previous = None
    for k, block in enumerate(passed):
        if block is not previous:  # a stack of one block is built once
            way = ways[0] if _by_fourier(block, grid, method) else ways[1]
            propagate, previous = way(moves_of(block, grid), grid), block
        states[k + 1] = propagate(states[k])
    # the FFT rounds to either side of 0; clipped at the end, since clipping in each block would add up
    states = states.clip(min=0)
    borders = grid.borders if len(set(grid.borders)) > 1 else grid.borders[:1]
    depth = ("depth", np.arange(len(states)))
    laws = on_grid(states[:, :-1].reshape(-1, *grid.shape), spacing, depth)
    attrs = {"description": description, "borders": ", ".join(borders), **settings}
    return Evolution(xr.Dataset({"law": laws, "absorbed": ("depth", states[:, -1])}, attrs=attrs))


def _by_fourier(block: WalkBlock, grid: Grid, method: WalkMethod) -> bool:
    """True where borders, coefficients and the method allow the FFT."""
    constant = grid.periodic and not block.grid
    if method == "fft" and not constant:
        raise ValueError(
            "method 'fft' needs periodic borders and blocks that are the same everywhere, got borders "
            f"{grid.borders} and a block on grid {block.grid}; use 'auto' or 'sparse'"
        )
    return constant and method != "sparse"
