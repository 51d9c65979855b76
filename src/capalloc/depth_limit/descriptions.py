"""The three descriptions of how one unit of capacity spreads through residual blocks (docs/theory.md, section 5).

Blocks come in the order of the network, from its inputs to its outputs; the walk starts at the output and passes them
from the last to the first. All coefficients are those of the position that a step leaves, so mass is conserved.
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import ArrayLike

from capalloc._runtime.arguments import checked
from capalloc.depth_limit.block import BlockSequence, Clock, WalkBlock, durations, law_moves
from capalloc.depth_limit.drift_diffusion import coefficients, drift_diffusion_moves
from capalloc.depth_limit.moves import Border, Grid, Moves
from capalloc.depth_limit.propagators import EXPONENTIAL, STEP, WalkMethod, evolve
from capalloc.results.evolution import Evolution


@checked
def chain(
    blocks: BlockSequence,
    start: ArrayLike,
    border: Border | Sequence[Border] = "absorbing",
    *,
    method: WalkMethod = "auto",
) -> Evolution:
    """Law of the walk through blocks of finite number, a Markov chain: exact under total decoupling.

    $q <- q / (1 + lambda) + p * (lambda q / (1 + lambda))$: in each block the walk stays with probability
    $1 / (1 + lambda)$ and takes a step of law p otherwise (docs/theory.md, section 5).

    Args:
        blocks: from the inputs to the outputs, a list or a mapping by name; the walk passes them from the last to the
            first.
        start: law over the grid, one to three axes; `point(shape)` for its centre.
        border: "periodic", "reflecting" (what steps outside is mirrored in the outer edge) or "absorbing" (it is lost,
            and counted), for all axes or by axis.
        method: "fft" for periodic grids and coefficients that are the same everywhere, "sparse" for all; "auto" takes
            the first for the blocks that allow it.

    Returns:
        law and absorbed mass after each block.

    Raises:
        TypeError: an entry of blocks that is not a WalkBlock.
        ValueError: blocks that do not fit the grid, no law to start from, an unknown border or method, "fft" where it
            does not hold.

    """
    moves_of = lambda block, _: law_moves(block, block.step_probability)  # noqa: E731
    return evolve("chain", moves_of, STEP, blocks, start, border, method, {})


@checked
def jump(
    blocks: BlockSequence,
    start: ArrayLike,
    border: Border | Sequence[Border] = "absorbing",
    *,
    clock: Clock = "rate",
    method: WalkMethod = "auto",
) -> Evolution:
    """Law of the walk in the limit of many blocks of small rate, $dq/dt = p * (lambda q) - lambda q$, a jump process.

    A block is passed in time 1 at its own rate, so the sum of the rates is the limit's T (docs/theory.md, section 5).
    Laws differ from the chain's by $O(sum lambda^2)$, $O(1/L)$ for L blocks of rate $c/L$.

    Args:
        blocks: as for `chain`, of finite rates.
        start: as for `chain`.
        border: as for `chain`.
        clock: mean number of jumps in a block of rate $lambda$: "rate" for $lambda$, the limit's own; "log" for
            $log(1 + lambda)$, which keeps the chain's probability of no step; "steps" for $lambda / (1 + lambda)$,
            which keeps its mean number of steps, so the mean position too, and is defined for plain layers.
        method: as for `chain`.

    Returns:
        law and absorbed mass after each block.

    Raises:
        TypeError: an entry of blocks that is not a WalkBlock.
        ValueError: as for `chain`, an unknown clock, or a plain layer on the clocks "rate" and "log".

    """
    rates = lambda block, _: law_moves(block, durations(block, clock))  # noqa: E731
    return evolve("jump", rates, EXPONENTIAL, blocks, start, border, method, {"clock": clock})


@checked
def diffusion(
    blocks: BlockSequence,
    start: ArrayLike,
    border: Border | Sequence[Border] = "absorbing",
    *,
    spacing: float = 1.0,
    clock: Clock = "rate",
    method: WalkMethod = "auto",
) -> Evolution:
    """Law of the walk where steps are small: Fokker-Planck, $dq/dt = -div(b q) + 1/2 sum_ab d_a d_b (D_ab q)$.

    $b = lambda E[y]$ and $D = lambda E[y y']$ (docs/theory.md, section 5), on a grid with cells of size `spacing` and
    moves from Selling's decomposition: laws stay positive, means are exact, errors are of second order in `spacing`.

    Args:
        blocks: as for `jump`, with steps in pixels; rates and laws per position are on the grid of `start`.
        start: as for `chain`, on a grid of cells; density times their volume.
        border: as for `chain`; the outer edges are half a cell outside the border cells, and absorbing cells
            begin a whole cell outside.
        spacing: size of a cell in pixels.
        clock: as for `jump`.
        method: as for `chain`.

    Returns:
        law and absorbed mass after each block, coordinates in pixels.

    Raises:
        TypeError: an entry of blocks that is not a WalkBlock.
        ValueError: as for `jump`, a spacing that is not positive, or a diffusion so elongated that its moves
            are wider than the grid.

    """

    def rates(block: WalkBlock, grid: Grid) -> Moves:
        moves = drift_diffusion_moves(*coefficients(block, clock, grid.spacing))
        _check_reach(moves, grid.shape)
        return moves

    settings = {"clock": str(clock), "spacing": f"{spacing:g}"}
    return evolve("diffusion", rates, EXPONENTIAL, blocks, start, border, method, settings, spacing)


def _check_reach(moves: Moves, shape: tuple[int, ...]) -> None:
    used = moves.weights > 0
    reach = [int(abs(moves.offsets[..., axis])[used].max(initial=0)) for axis in range(len(shape))]
    if any(r > 1 and r >= n for r, n in zip(reach, shape, strict=True)):
        raise ValueError(
            f"the diffusion is so elongated that positive moves reach {reach} cells, on a grid of {list(shape)}; "
            "take a larger grid, or jump"
        )
