"""The stochastic solver as states: rounds of random probes, until every part of the inputs is known as well as asked.

A round is one block solve for each ridge, from the largest down, each starting from the last one's solutions. `advance`
takes a state to the next by a product or two; every state is one that a killed run can go on from.

Where probes are added until `rtol` is reached, the first rounds tell what early iterates lack, a third of the way, and
further rounds end there (`_measure.estimates`).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capalloc._linalg.block_cg import Iterate
from capalloc._linalg.lanczos import Recurrence, recurrence
from capalloc._measure.estimates import Estimates, Levels
from capalloc._measure.estimators import Account, Draw, Estimator, Known
from capalloc._measure.examples import WIDEST, Examples
from capalloc._settings import Stochastic

MAX_ITERATIONS = 500
#: Probes after which "auto" gives up: what would need more is better asked for a coarser partition.
MAX_PROBES = 4096
#: Squared error of the solves in the norm of G + ridge, relative to the capacity found, in units of `rtol`. It bounds
#: the total's bias, and stays below the standard error asked of the parts.
SOLVES = 0.2
#: From so many parameters on one probe shows the spectrum, in fewer steps that come along with the first solve's alone.
MANY_PARAMS = 10_000
SPECTRUM_PROBES, SPECTRUM_STEPS, FEW_STEPS = 4, 24, 12
#: Without a preconditioner solves take longer, and more steps come along.
STEPS_OF_ROWS = 64
#: Products that follow the last iteration, to read the answer off.
LAST_PRODUCTS = 6
#: Products of a round beside those of its iterations.
OTHER_PRODUCTS = 3


@dataclass(frozen=True)
class Probing:
    """The parts that do not change from state to state."""

    estimator: Estimator
    settings: Stochastic
    ridges: tuple[float, ...]
    parts: Tensor  # of every slot, -1 for none
    probes: int  # solved for together
    deadline: float = math.inf

    @property
    def examples(self) -> Examples:
        """The examples of this process."""
        return self.estimator.sums.examples

    @property
    def tolerance(self) -> float:
        """Squared relative error that solves are brought below."""
        return SOLVES * self.settings.rtol

    @property
    def fixed(self) -> int | None:
        """Number of probes asked for; None for as many as `rtol` needs."""
        return None if isinstance(self.settings.num_probes, str) else self.settings.num_probes

    @property
    def late(self) -> bool:
        """True after the deadline."""
        return time.perf_counter() > self.deadline


@dataclass(frozen=True)
class Round:
    """An unfinished round of probes."""

    draw: Draw
    accounts: tuple[Account, ...] = ()  # of the ridges that are done
    known: Known | None = None  # the last ridge's solutions
    now: Iterate | None = None  # at the next ridge
    late: bool = False  # another iteration would pass the deadline
    early: bool = False  # its solves end early


@dataclass(frozen=True)
class State:
    """Everything known: enough, with the `Probing`, to go on."""

    rounds: int = 0
    trace: float = 0.0  # sum over probes of |C'xi|^2
    accounts: tuple[Account, ...] = ()  # of all rounds that did not end early, by ridge
    early: Estimates | None = None  # of those that did
    spectrum: Recurrence | None = None
    round: Round | None = None
    pace: float = 0.0  # seconds of the last iteration, for each probe
    reason: str = ""  # why it stopped

    @property
    def answers(self) -> tuple[Account, ...]:
        """The accounts of all rounds."""
        return self.accounts if self.early is None else (self.accounts[0].with_early(self.early),)

    @property
    def probes(self) -> int:
        """Number of probes so far."""
        return self.whole_probes + self.early_probes

    @property
    def whole_probes(self) -> int:
        """Number of those that did not end early."""
        return self.accounts[0].estimates.total.probes if self.accounts else 0

    @property
    def levels(self) -> Levels | None:
        """Estimates of what early ends lack, where they are known."""
        return self.accounts[0].levels if self.early_at else None

    @property
    def early_probes(self) -> int:
        """Number of those that ended early."""
        return self.early.total.probes if self.early is not None else 0

    def iterations_of(self, probes: int) -> float:
        """Return the iterations of a round of so many probes that is solved to the end, at all ridges."""
        return sum(a.iterations for a in self.accounts) * probes / max(self.whole_probes, 1)

    def worst(self, probing: Probing) -> float:
        """Return the largest relative error of a part."""
        return max(a.estimates.relative_error(probing.examples.dimension) for a in self.answers)

    @property
    def early_at(self) -> int:
        """Iterations that an early end takes; 0 where it is not known."""
        return self.accounts[0].early_at if self.accounts else 0


def begin_state(probing: Probing) -> State:
    """Return the state in which nothing is known yet."""
    examples = probing.examples
    if not probing.settings.spectrum:
        return State()
    count = 1 if examples.num_params >= MANY_PARAMS else SPECTRUM_PROBES
    return State(spectrum=recurrence(examples.normal(-1, count, min(examples.num_rows, examples.num_params))))


def advance(probing: Probing, state: State) -> State:
    """Return the next state; the last one has a reason to stop."""
    estimator, at = probing.estimator, state.round
    if at is None:
        if count := next_probes(probing, state):
            if (chosen := next_round(probing, state, count)) is None:
                return replace(state, reason=why_stopped(probing, state))
            count, early = chosen
            return replace(state, round=Round(estimator.draw(state.rounds, count), early=early))
        spectrum = state.spectrum
        if spectrum is not None and probing.examples.num_params < MANY_PARAMS and wants_step(probing, spectrum):
            return replace(state, spectrum=spectrum.step(estimator.product(spectrum.v)))
        return replace(state, reason=why_stopped(probing, state))
    ridge = probing.ridges[len(at.accounts)]
    if at.now is None:
        return replace(state, round=replace(at, now=estimator.begin(at.draw, ridge, at.known)))
    if at.early:
        return ended_early(probing, state, at, at.now, ridge)
    unsolved = len(at.now.directions) and estimator.error(at.now, ridge) > probing.tolerance
    if unsolved and at.now.iterations < MAX_ITERATIONS and not at.late:
        return iterated(probing, state, at, at.now, ridge)
    account, known = estimator.read(at.draw, at.now, ridge, probing.parts, read_early_at(probing, state, at))
    no_time = at.late
    at = replace(at, accounts=(*at.accounts, account), known=known, now=None, late=False)
    if len(at.accounts) < len(probing.ridges):
        return replace(state, round=at)
    after = finished(state, at)
    if not no_time:
        return after
    if state.accounts and after.worst(probing) > state.worst(probing):  # cut short, it tells less than nothing
        after = replace(state, round=None)
    return replace(after, reason=why_stopped(probing, after))


def ended_early(probing: Probing, state: State, at: Round, now: Iterate, ridge: float) -> State:
    """Return the state after another iteration of a round that ends early, or after its end."""
    if now.iterations < state.early_at and len(now.directions):
        if at.late:  # such a round tells nothing before its end
            return replace(state, round=None, reason=why_stopped(probing, state))
        return iterated(probing, state, at, now, ridge)
    found = probing.estimator.read_early(at.draw, now, ridge, probing.parts, state.accounts[0])
    return closed(replace(state, early=found if state.early is None else state.early + found), at)


def read_early_at(probing: Probing, state: State, at: Round) -> int | None:
    """Return when a round is read early beside its end: 0 for after a third, None where no other would end there."""
    alike = len(probing.ridges) == 1 and probing.fixed is None and at.draw.count == probing.probes
    return state.early_at if alike and not at.early else None


def next_round(probing: Probing, state: State, count: int) -> tuple[int, bool] | None:
    """Return the probes of the next round, of `count` wanted, and whether it ends early.

    None where too little time is left for any, at the pace of the last: a round that is cut short tells little.
    """
    alike, early = probing.probes, may_end_early(probing, state)  # as many as the first, beside early ones
    few = min(count, alike) if state.early is None else alike
    first = (alike, early) if early or state.early is not None else (count, False)
    left = probing.deadline - time.perf_counter()
    for probes, ends_early in (first, (few, False), *[(alike, True)] * (state.levels is not None)):
        products = (state.early_at if ends_early else state.iterations_of(alike)) + LAST_PRODUCTS
        if not state.rounds or state.pace * probes * products <= left:
            return probes, ends_early
    return None


def may_end_early(probing: Probing, state: State) -> bool:
    """Return True where the next round tells more for its time if its solves end early.

    From n of N probes solved to the end parts have the variance V/N + added (1/n - 1/N), (docs/measure-at-scale.md).
    """
    if state.levels is None:
        return False
    added, dimension = state.levels.added.parts, probing.examples.dimension
    left, whole = (float(one.variance(dimension).sum()) for one in (added, state.accounts[0].estimates.parts))
    n, every, more = added.probes, state.probes, probing.probes
    by_early = (whole - left) * (1 / every - 1 / (every + more))
    by_last = left * (1 / n - 1 / (n + more))
    cost = (state.early_at + OTHER_PRODUCTS) / (state.iterations_of(more) + OTHER_PRODUCTS)
    return by_early > cost * (by_early + by_last)


def iterated(probing: Probing, state: State, at: Round, now: Iterate, ridge: float) -> State:
    """Return the state after one iteration of a solve; the spectrum's product comes along."""
    spectrum, estimator = state.spectrum, probing.estimator

    def with_spectrum(w: Tensor) -> Tensor:
        nonlocal spectrum
        if spectrum is None or not wants_step(probing, spectrum):
            return estimator.product(w)
        both = estimator.product(torch.cat([w, spectrum.v]))
        spectrum = spectrum.step(both[len(w) :])
        return both[: len(w)]

    began = time.perf_counter()
    now = estimator.step(now, with_spectrum, ridge)
    early_at = read_early_at(probing, state, at)
    if early_at != 0:  # what no reading needs is not held
        kept = () if early_at is None else tuple(mark for mark in now.early if mark.iterations >= early_at)[:1]
        now = replace(now, early=kept)
    ended = time.perf_counter()
    late = ended + LAST_PRODUCTS * (ended - began) > probing.deadline
    pace = (ended - began) / at.draw.count
    return replace(state, spectrum=spectrum, round=replace(at, now=now, late=late), pace=pace)


def finished(state: State, at: Round) -> State:
    """Return the state with a round added."""
    old = state.accounts
    accounts = tuple(a + b for a, b in zip(old, at.accounts, strict=True)) if old else at.accounts
    return closed(replace(state, accounts=accounts), at)


def closed(state: State, at: Round) -> State:
    """Return the state after a round."""
    trace = state.trace + float(at.draw.image.square().sum())
    return replace(state, rounds=state.rounds + 1, trace=trace, round=None)


def wants_step(probing: Probing, spectrum: Recurrence) -> bool:
    """Return True where the recurrence should go on; it cannot beyond the number of parameters."""
    examples = probing.examples
    most = SPECTRUM_STEPS if examples.num_params < MANY_PARAMS else FEW_STEPS
    most = STEPS_OF_ROWS if examples.fewer_rows else most
    return spectrum.steps < min(most, examples.num_params, examples.num_rows) and not probing.late


def next_probes(probing: Probing, state: State) -> int:
    """Return the number of probes of the next round; none to stop."""
    done = state.probes
    if not done:
        return probing.probes
    if probing.late:
        return 0
    if probing.fixed is not None:
        missing = probing.fixed - done
    elif done >= MAX_PROBES:
        return 0
    else:
        dimension, rtol = probing.examples.dimension, probing.settings.rtol
        missing = math.ceil(done * max(a.estimates.excess(dimension, rtol) for a in state.answers)) - done
    return min(max(missing, 2), max(probing.probes, min(WIDEST, 2 * probing.probes))) if missing > 0 else 0


def why_stopped(probing: Probing, state: State) -> str:
    """Return the reason in a word."""
    if probing.fixed is not None and state.probes >= probing.fixed:
        return "num_probes"
    return "rtol" if state.worst(probing) <= probing.settings.rtol else "limit"
