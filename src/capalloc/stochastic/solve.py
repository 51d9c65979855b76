"""Perturb and solve: capacity from random solutions of (G + ridge) w = u.

With xi, eta standard normal, u = C'xi + sqrt(ridge) eta is N(0, G + ridge), so that w is N(0, (G + ridge)^-1) and
kappa_i = E |(C w) restricted to slot i|^2 (docs/theory.md, section 2): unbiased, up to the error of the solves.
Probes come in rounds until every part of the inputs is known as well as asked; a round is one block solve for each
ridge, from the largest down, each starting from the last one's solutions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from capalloc.stochastic.cg import Iterate, begin, step
from capalloc.stochastic.cut import WIDEST
from capalloc.stochastic.kronecker import Kronecker, kronecker
from capalloc.stochastic.lanczos import Recurrence, recurrence
from capalloc.stochastic.products import Products
from capalloc.stochastic.settings import Settings
from capalloc.stochastic.tally import Tallies, tallies

MAX_ITERATIONS = 500
#: Probes after which "auto" gives up: what would need more is better asked for a coarser partition.
MAX_PROBES = 4096
#: Random constraints that the preconditioner is made from, on at most so many examples.
SAMPLES, SAMPLED_EXAMPLES = 128, 64
#: From so many parameters on, fewer: each sample costs more than it brings.
MOST_PARAMS, FEW_SAMPLES = 2_000_000, 32
#: From so many parameters on one probe shows the spectrum, and its products come along with the first solve's alone.
MANY_PARAMS = 10_000
SPECTRUM_PROBES, SPECTRUM_STEPS = 4, 24


@dataclass(frozen=True)
class Run:
    """What does not change from round to round."""

    products: Products
    preconditioner: Kronecker
    settings: Settings
    parts: Tensor  # of every slot, -1 for none
    block: int
    deadline: float = math.inf
    tick: Callable[[], object] = lambda: None
    keep: Callable[[State], object] = lambda state: None  # offered every state that the solver can go on from

    @property
    def sizes(self) -> list[int]:
        """Of the parameter tensors."""
        return [p.numel() for p in self.products.operator.problem.params.values()]


@dataclass(frozen=True)
class Solved:
    """One ridge's account: its tallies, and how its solves went."""

    tallies: Tallies
    iterations: int
    error: float  # the largest estimated squared relative error of a solve, in the norm of G + ridge
    residual: float  # the largest true residual, relative

    def __add__(self, other: Solved) -> Solved:
        return Solved(
            self.tallies + other.tallies,
            self.iterations + other.iterations,
            max(self.error, other.error),
            max(self.residual, other.residual),
        )


@dataclass(frozen=True)
class Round:
    """Where an unfinished round stands."""

    count: int  # probes
    spectrum: Recurrence | None
    solved: tuple[Solved, ...] = ()  # at the first ridges
    known: tuple[Tensor, Tensor] | None = None  # the last ridge's solutions w, and G w
    now: Iterate | None = None  # at the next ridge


@dataclass(frozen=True)
class State:
    """Everything known after some rounds: enough, with the `Run`, to go on."""

    rounds: int = 0
    trace: float = 0.0  # sum over probes of |C'xi|^2
    solved: tuple[Solved, ...] = ()
    spectrum: Recurrence | None = None
    reason: str = "unfinished"
    round: Round | None = None

    @property
    def probes(self) -> int:
        """Number of probes so far."""
        return self.solved[0].tallies.total.probes if self.solved else 0


def solve(run: Run, state: State | None = None) -> State:
    """Rounds until the accuracy, the number of probes or the time is reached."""
    state = begin_spectrum(run) if state is None else state
    while count := state.round.count if state.round else next_block(run, state):
        state = advance(run, state, state.round or Round(count, state.spectrum))
        run.keep(state)
    spectrum = state.spectrum
    while spectrum is not None and run.products.num_params < MANY_PARAMS and wants_step(run, spectrum):
        spectrum = spectrum.step(run.products.gram(spectrum.v))
        run.keep(replace(state, spectrum=spectrum))
    return replace(state, spectrum=spectrum, reason=why_stopped(run, state))


def begin_spectrum(run: Run) -> State:
    """Nothing known yet."""
    if not run.settings.spectrum:
        return State()
    start = run.products.normal_params(-1, spectrum_probes(run.products.num_params))
    return State(spectrum=recurrence(start))


def spectrum_probes(num_params: int) -> int:
    """Probes that show the spectrum."""
    return 1 if num_params >= MANY_PARAMS else SPECTRUM_PROBES


def wants_step(run: Run, spectrum: Recurrence) -> bool:
    """Whether the recurrence should go on; it cannot beyond the number of parameters."""
    return spectrum.steps < min(SPECTRUM_STEPS, run.products.num_params) and time.perf_counter() < run.deadline


def next_block(run: Run, state: State) -> int:
    """Probes of the next round; none to stop."""
    asked, done = run.settings.num_probes, state.probes
    if not done:
        return run.block
    if not isinstance(asked, str):
        missing = int(asked) - done
    elif time.perf_counter() > run.deadline or done >= MAX_PROBES:
        return 0
    else:
        worst = worst_error(run, state) / run.settings.rtol
        missing = math.ceil(done * worst**2) - done
    if time.perf_counter() > run.deadline or missing <= 0:
        return 0
    return min(max(missing, 2), max(run.block, min(WIDEST, 2 * run.block)))


def worst_error(run: Run, state: State) -> float:
    """The largest relative standard error of a part, at any ridge."""
    return max(s.tallies.relative_error(run.products.num_params) for s in state.solved)


def why_stopped(run: Run, state: State) -> str:
    """In a few words."""
    if not isinstance(run.settings.num_probes, str) and state.probes >= int(run.settings.num_probes):
        return "num_probes"
    return "rtol" if worst_error(run, state) <= run.settings.rtol else "limit"


def advance(run: Run, state: State, at: Round) -> State:
    """The rest of a round, at every ridge."""
    products, number = run.products, state.rounds
    drawn, eta = products.noise(number, at.count), products.normal_params(number, at.count)

    def keep(at: Round) -> None:
        run.keep(replace(state, round=at))

    for ridge in run.settings.ridges[len(at.solved) :]:
        u = drawn + math.sqrt(ridge) * eta
        now, spectrum = iterate(run, ridge, u, at, keep)
        Gw, by_slot = products.read(now.w)
        residual = (u - Gw - ridge * now.w).norm(dim=1) / u.norm(dim=1)
        found = tallies(now.w, u, Gw, by_slot, run.parts, run.sizes)
        solved = Solved(found, now.iterations, now.error(ridge), float(residual.max()))
        at = Round(at.count, spectrum, (*at.solved, solved), (now.w, Gw))
        keep(at)
    old = state.solved
    both = tuple(a + b for a, b in zip(old, at.solved, strict=True)) if old else at.solved
    return State(number + 1, state.trace + float(drawn.square().sum()), both, at.spectrum)


def iterate(
    run: Run, ridge: float, u: Tensor, at: Round, keep: Callable[[Round], None]
) -> tuple[Iterate, Recurrence | None]:
    """Solve for one block to the tolerance, or to the deadline; the spectrum's products come along."""
    precondition = partial(run.preconditioner.solve, ridge=ridge)
    spectrum = at.spectrum

    def product(w: Tensor) -> Tensor:
        nonlocal spectrum
        if spectrum is None or not wants_step(run, spectrum):
            return run.products.gram(w) + ridge * w
        both = run.products.gram(torch.cat([w, spectrum.v]))
        spectrum = spectrum.step(both[len(w) :])
        return both[: len(w)] + ridge * w

    start = None if at.known is None else (at.known[0], at.known[1] + ridge * at.known[0])
    now = begin(u, precondition, start) if at.now is None else at.now
    while len(now.directions) and now.error(ridge) > run.settings.solve_tolerance and now.iterations < MAX_ITERATIONS:
        now = step(now, product, precondition)
        run.tick()
        keep(replace(at, now=now, spectrum=spectrum))
        if time.perf_counter() > run.deadline:
            break
    return now, spectrum


def precondition(products: Products) -> Kronecker:
    """From random constraints of single examples."""
    shapes = [tuple(p.shape) for p in products.operator.problem.params.values()]
    return kronecker(shapes, partial(samples, products))


def samples(products: Products, stream: int) -> Iterator[Tensor]:
    """C'xi of single examples, whose second moment is G."""
    chosen = torch.linspace(0, len(products.x) - 1, min(len(products.x), SAMPLED_EXAMPLES)).round().long()
    wanted = SAMPLES if products.num_params < MOST_PARAMS else FEW_SAMPLES
    each = max(1, wanted // len(chosen))
    alone = replace(products, x=products.x[chosen.to(products.x.device)], batch_size=1)
    for batch in alone.batches():
        for part in torch.arange(each).split(products.vectors):
            drawn = alone.adjoint(batch, alone.normal_rows(batch, len(part), 3, stream, int(part[0])))
            yield drawn.to(batch.x.dtype)
