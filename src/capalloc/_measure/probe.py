"""Perturb and solve: capacity from random solutions of (G + ridge) w = u.

With xi, eta standard normal, u = C'xi + sqrt(ridge) eta is N(0, G + ridge), so that w is N(0, (G + ridge)^-1) and
kappa_i = E |(C w) restricted to slot i|^2 (docs/theory.md, section 2): unbiased, up to the error of the solves.
Probes come in rounds until every part of the inputs is known as well as asked; a round is one block solve for each
ridge, from the largest down, each starting from the last one's solutions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from capalloc._linalg.block_cg import Apply, Iterate, begin, step
from capalloc._linalg.kronecker import Kronecker
from capalloc._linalg.lanczos import Recurrence, recurrence
from capalloc._linalg.row_fit import Fit, begin_fit, step_fit
from capalloc._measure.estimates import Inner, Tallies, fitted, perturbed, tallied
from capalloc._measure.example_sums import Products
from capalloc._measure.plan import WIDEST
from capalloc._measure.settings import Settings

MAX_ITERATIONS = 500
#: Probes after which "auto" gives up: what would need more is better asked for a coarser partition.
MAX_PROBES = 4096
#: What estimates may be told to change by at most, relative to their last change.
MOST_MISSING = 5.0
#: The share of the accuracy asked that sampling may use up; the rest is for the solves.
SAMPLING = 0.9
#: From so many parameters on one probe shows the spectrum, in fewer steps that come along with the first solve's alone.
MANY_PARAMS = 10_000
SPECTRUM_PROBES, SPECTRUM_STEPS, FEW_STEPS = 4, 24, 12
#: Without a preconditioner solves take longer, and more steps come along.
STEPS_OF_ROWS = 64
#: Products that follow the last iteration, to read the answer off.
LAST_PRODUCTS = 6


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
    def dimension(self) -> float:
        """Of the sphere that probes lie on; signs are on none."""
        return math.inf if self.products.fewer_rows else self.products.num_params

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
    now: Any = None  # at the next ridge: an Iterate or a Fit


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
        spectrum = spectrum.step(multiplied(run.products, spectrum.v))
        run.keep(replace(state, spectrum=spectrum))
    return replace(state, spectrum=spectrum, reason=why_stopped(run, state))


def multiplied(products: Products, v: Tensor) -> Tensor:
    """The product with G, or with K = CC' where there are fewer rows than parameters."""
    return products.kernel(v) if products.fewer_rows else products.gram(v)


def begin_spectrum(run: Run) -> State:
    """Nothing known yet."""
    if not run.settings.asked.spectrum:
        return State()
    start = run.products.start(-1, spectrum_probes(run.products.num_params))
    return State(spectrum=recurrence(start))


def spectrum_probes(num_params: int) -> int:
    """Probes that show the spectrum."""
    return 1 if num_params >= MANY_PARAMS else SPECTRUM_PROBES


def wants_step(run: Run, spectrum: Recurrence) -> bool:
    """Whether the recurrence should go on; it cannot beyond the number of parameters."""
    products = run.products
    most = SPECTRUM_STEPS if products.num_params < MANY_PARAMS else FEW_STEPS
    most = STEPS_OF_ROWS if products.fewer_rows else most
    return spectrum.steps < min(most, products.num_params, products.num_rows) and time.perf_counter() < run.deadline


def next_block(run: Run, state: State) -> int:
    """Probes of the next round; none to stop."""
    asked, done = run.settings.asked.num_probes, state.probes
    if not done:
        return run.block
    if not isinstance(asked, str):
        missing = int(asked) - done
    elif time.perf_counter() > run.deadline or done >= MAX_PROBES:
        return 0
    else:
        worst = worst_error(run, state, sampling=True) / (SAMPLING * run.settings.asked.rtol)
        missing = math.ceil(done * worst**2) - done
    if time.perf_counter() > run.deadline or missing <= 0:
        return 0
    return min(max(missing, 2), max(run.block, min(WIDEST, 2 * run.block)))


def worst_error(run: Run, state: State, sampling: bool = False) -> float:
    """The largest relative standard error of a part, at any ridge."""
    return max(s.tallies.relative_error(run.dimension, sampling) for s in state.solved)


def why_stopped(run: Run, state: State) -> str:
    """In a few words."""
    if not isinstance(run.settings.asked.num_probes, str) and state.probes >= int(run.settings.asked.num_probes):
        return "num_probes"
    return "rtol" if worst_error(run, state) <= run.settings.asked.rtol else "limit"


def advance(run: Run, state: State, at: Round) -> State:
    """The rest of a round, at every ridge."""
    products, number = run.products, state.rounds
    rows = products.fewer_rows
    xi = products.signs(number, at.count) if rows else products.normal_params(number, at.count)
    drawn = products.pull(xi) if rows else products.noise(number, at.count)

    def keep(at: Round) -> None:
        run.keep(replace(state, round=at))

    for ridge in run.settings.ridges[len(at.solved) :]:
        if rows:
            solved, at = fit(run, ridge, (xi, drawn), at, keep)
        else:
            solved, at = perturb(run, ridge, (drawn, xi), at, keep)
        at = replace(at, solved=(*at.solved, solved), now=None)
        keep(at)
    old = state.solved
    both = tuple(a + b for a, b in zip(old, at.solved, strict=True)) if old else at.solved
    return State(number + 1, state.trace + float(drawn.square().sum()), both, at.spectrum)


def perturb(
    run: Run, ridge: float, drawn: tuple[Tensor, Tensor], at: Round, keep: Callable[[Round], None]
) -> tuple[Solved, Round]:
    """Solutions of (G + ridge) w = u, and what they tell."""
    products, eta = run.products, drawn[1]
    u = drawn[0] + math.sqrt(ridge) * eta
    precondition = partial(run.preconditioner.solve, ridge=ridge)
    start = None if at.known is None else (at.known[0], at.known[1] + ridge * at.known[0])
    now = begin(u, precondition, start) if at.now is None else at.now

    def advanced(now: Iterate, product: Apply) -> Iterate:
        return step(now, lambda w: product(w) + ridge * w, precondition)

    now, spectrum = iterate(run, ridge, now, products.gram, advanced, at, keep)
    Gw = products.gram(now.w)
    found = perturbed(now.w, u, eta, ridge, products.inner(now.w), run.sizes)
    before = found
    if now.marks:
        w = now.marks[0].solution
        before = perturbed(w, u, eta, ridge, products.inner(w), run.sizes)
    residual = u - Gw - ridge * now.w
    tallies = tallied(found, before, still_missing(now, 1), False, run.parts)
    tallies = replace(tallies, tensors=tallies.tensors.unsettled(now.missing, run.sizes))
    relative = residual.norm(dim=1) / u.norm(dim=1)
    solved = Solved(tallies, now.iterations, now.error(ridge), float(relative.max()))
    return solved, replace(at, spectrum=spectrum, known=(now.w, Gw))


def fit(
    run: Run, ridge: float, drawn: tuple[Tensor, Tensor], at: Round, keep: Callable[[Round], None]
) -> tuple[Solved, Round]:
    """Ridge regressions of xi, where there are fewer rows than parameters, and what they tell."""
    products, (xi, pulled) = run.products, drawn
    now = begin_fit(xi, lambda y: products.push(pulled)) if at.now is None else at.now

    def advanced(now: Fit, product: Apply) -> Fit:
        return step_fit(now, product, ridge)

    now, spectrum = iterate(run, ridge, now, products.kernel, advanced, at, keep)

    def told(y: Tensor, residual: Tensor, back: Tensor) -> Inner:
        q = xi - residual - ridge * y
        both = (pulled + products.pull(residual), back)
        return fitted(products.by_slot(xi + residual), products.by_slot(q), both, run.sizes)

    back = products.pull(now.y)
    residual = xi - products.push(back) - ridge * now.y  # the true one
    found = told(now.y, residual, back)
    mark = now.marks[0] if now.marks else None
    before = found if mark is None else told(mark.solution, mark.residual, products.pull(mark.solution))
    tallies = tallied(found, before, still_missing(now, 2), True, run.parts)
    relative = residual.norm(dim=1) / xi.norm(dim=1)
    return Solved(tallies, now.iterations, now.error(ridge), float(relative.max())), replace(at, spectrum=spectrum)


def still_missing(now: Iterate | Fit, order: int) -> float:
    """What estimates will still change by, relative to their change since the first mark.

    Energies miss the square of an error; estimates of order 1 miss the error itself.
    """
    gained = now.energy - now.marks[0].energy if now.marks else 0.0
    if not math.isfinite(now.missing):
        return 1.0
    if gained <= 0:
        return 0.0
    left = math.pow(now.missing / (now.missing + gained), order / 2)
    return min(left / (1 - left), MOST_MISSING)


S = TypeVar("S", Iterate, Fit)


def iterate(
    run: Run,
    ridge: float,
    now: S,
    product: Apply,
    advanced: Callable[[S, Apply], S],
    at: Round,
    keep: Callable[[Round], None],
) -> tuple[S, Recurrence | None]:
    """Solve for one block to the tolerance, or to the deadline; the spectrum's products come along."""
    spectrum = at.spectrum

    def with_spectrum(w: Tensor) -> Tensor:
        nonlocal spectrum
        if spectrum is None or not wants_step(run, spectrum):
            return product(w)
        both = product(torch.cat([w, spectrum.v]))
        spectrum = spectrum.step(both[len(w) :])
        return both[: len(w)]

    while len(now.directions) and now.error(ridge) > run.settings.solve_tolerance and now.iterations < MAX_ITERATIONS:
        began = time.perf_counter()
        now = advanced(now, with_spectrum)
        run.tick()
        keep(replace(at, now=now, spectrum=spectrum))
        ended = time.perf_counter()
        if ended + LAST_PRODUCTS * (ended - began) > run.deadline:
            break
    return now, spectrum
