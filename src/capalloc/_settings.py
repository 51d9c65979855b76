"""Settings of solvers and of runs: frozen values, checked where they are built.

Public as `capalloc.solvers.Dense` and so on, and `capalloc.Run`. A solver's name in lower case stands for its default
settings: `solver="dense"` is `solver=Dense()`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

import torch

from capalloc._runtime.arguments import checked_fields
from capalloc._runtime.distributed import Distributed, check_group
from capalloc.results.regions import Partition

#: Parameters up to which matrices of their square are made unasked, in some seconds.
PAIRS_OF_PARAMETERS = 2000
#: Coordinates of the parameters.
Coordinates = Literal["log", "plain"]


@checked_fields
@dataclass(frozen=True)
class Dense:
    """The exact solver of `capalloc.measure`: a factorisation of all constraints, which has to fit in memory.

    Args:
        accuracy: with a ridge, the relative error that the rounding of products may leave in a capacity; from about
            1e-5 on products in float32 may do, which take less time (`precision` in the answer's `attrs` tells).
        kept_share: share of the memory left beside the solver's matrices up to which rows of constraints are kept
            between its two passes over the examples; more are computed again, as all are for 0. With a ridge, Gram
            matrices by input may be kept in their place, which take less time where examples x outputs are many.
        coordinates: "log": derivatives are along $t = log|theta|$, so that neither a ridge nor the joint entries see
            how the function is written; a parameter that is exactly 0 then holds nothing under a ridge. "plain":
            along the parameters as they are (docs/theory.md, section 2).

    Raises:
        ValueError: `accuracy` is no number between 0 and 1, or there are no such coordinates.

    """

    accuracy: float = 1e-8
    kept_share: float = 0.5
    coordinates: Coordinates = "log"

    def __post_init__(self) -> None:
        if not isinstance(self.accuracy, (int, float)) or not 0 < self.accuracy < 1:
            raise ValueError(
                f"accuracy must be a number between 0 and 1, got {self.accuracy!r}; 1e-3 lets rounding change every "
                "capacity by a thousandth"
            )
        _check_coordinates(self.coordinates)


@checked_fields
@dataclass(frozen=True)
class Stochastic:
    """The solver of `capalloc.measure` by random probes: no matrix is held, and every number has a standard error.

    It needs a ridge (docs/measure-at-scale.md).

    Args:
        rtol: relative standard error asked of every part of `partition`.
        num_probes: probes, two or more; "auto" adds probes until `rtol` is reached.
        max_seconds: stop after about this long, with what is known then. Where it has no time for a few products with
            the constraints, fewer probes and combinations of outputs are taken than is said below. Checking how the
            model can be differentiated is not in it; an answer that took twice as long says so.
        partition: parts as for `Allocation.by`; patches of 4 x 4 inputs by default, of 16 on a single axis.
        output_probes: random combinations of outputs that stand for all of an example's; by default every output up
            to 100 of them, else 32 combinations, which bias the total down (see `notes` of the answer).
        spectrum: also give the density of the eigenvalues of G.
        coordinates: as in `Dense`.

    Raises:
        ValueError: a number is out of its range, or there are no such coordinates.

    """

    rtol: float = 0.02
    num_probes: int | Literal["auto"] = "auto"
    max_seconds: float | None = None
    partition: Partition | None = None
    output_probes: int | None = None
    spectrum: bool = True
    coordinates: Coordinates = "log"

    def __post_init__(self) -> None:
        _check_coordinates(self.coordinates)
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol must lie between 0 and 1, got {self.rtol!r}; 0.02 asks for 2 % on every part")
        _check_auto_probes(self.num_probes)
        _check_sampling(self.max_seconds, self.output_probes)


@checked_fields
@dataclass(frozen=True)
class Auto:
    """The dense solver of `capalloc.measure` where its matrices fit in memory, else the stochastic one.

    Args:
        dense: settings for the one.
        stochastic: settings for the other.

    Raises:
        ValueError: their coordinates differ: the answer would depend on the memory there is.

    """

    dense: Dense = field(default_factory=Dense)
    stochastic: Stochastic = field(default_factory=Stochastic)

    def __post_init__(self) -> None:
        if self.dense.coordinates != self.stochastic.coordinates:
            raise ValueError(
                f"coordinates must be the same for both solvers, got {self.dense.coordinates!r} for dense and "
                f"{self.stochastic.coordinates!r} for stochastic"
            )


@checked_fields
@dataclass(frozen=True)
class Markov:
    """The rule of total decoupling of `capalloc.propagate`: a few forward and backward passes, a rough guide.

    It assumes that no two units share anything, and overstates the constant input most (docs/validation.md).

    Args:
        dtype: of the path energies: float64, or by default that of the model where one example takes more than
            65,536 numbers. Energies are sums of positive terms, so float32 keeps 6 digits or so.

    """

    dtype: torch.dtype | Literal["auto"] = "auto"


@checked_fields
@dataclass(frozen=True)
class Block:
    """The coupling inside each parameter tensor, then steps that bring in the rest, up to the measured capacity.

    Random probes of the constraints, the default of `capalloc.propagate`: no rule for any operator, no graph and no
    ridge. Blocks in a Kronecker basis answer at no step; each step, a product with the constraints, brings the answer
    closer to `capalloc.measure` (docs/theory.md, section 4). Values have a standard error, and the answer an estimate
    of how far it still is (`missing` in its `attrs`).

    Args:
        num_steps: steps; "auto" takes them until what is missing is estimated at .03, where examples make many more
            constraints than there are parameters. Where they do not, where 16 probes have no time for two, and above
            two million parameters it takes none.
        num_probes: random probes, two or more; the standard error falls as their root. "auto" aims at an error of .02
            of the whole map.
        output_probes: random combinations of outputs that stand for all of an example's; by default every output up
            to 100 of them, else 32 combinations, and one for more than two million parameters; fewer where 16 probes
            have no time for all.
        max_seconds: "auto" begins no step after about this long, and where both are left to it takes no more probes
            than this allows; None for no limit.
        seed: of the probes.

    Raises:
        ValueError: a number is out of its range.

    """

    num_steps: int | Literal["auto"] = "auto"
    num_probes: int | Literal["auto"] = "auto"
    output_probes: int | None = None
    max_seconds: float | None = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_steps != "auto" and not _is_count(self.num_steps, 0):
            raise ValueError(f'num_steps must be "auto" or an integer >= 0, got {self.num_steps!r}')
        _check_auto_probes(self.num_probes)
        _check_sampling(self.max_seconds, self.output_probes)


@checked_fields
@dataclass(frozen=True)
class Segments:
    """The Markov rule with linear segments kept whole: paths add coherently, and symmetries are those of GL(r).

    Random signs of the gates give the map, with a standard error, for up to `max_params` parameters; above, it is the
    Markov rule's map with the count of segments. It needs `gates="data"`.

    Args:
        num_probes: random signs, two or more; the standard error falls as their root.
        seed: of the signs.
        max_params: up to which all rows are held, in matrices of its square.

    Raises:
        ValueError: fewer than two probes.

    """

    num_probes: int = 32
    seed: int = 0
    max_params: int = PAIRS_OF_PARAMETERS

    def __post_init__(self) -> None:
        _check_probes(self.num_probes)


@checked_fields
@dataclass(frozen=True)
class Hessian:
    """The exact identity of path energies of `capalloc.propagate`.

    Args:
        max_params: more are refused: it holds matrices of their square, and takes minutes from some thousands on.

    """

    max_params: int = PAIRS_OF_PARAMETERS


MeasureSolver = Literal["auto", "dense", "stochastic"] | Auto | Dense | Stochastic
PropagateSolver = Literal["auto", "markov", "block", "segments", "hessian"] | Markov | Block | Segments | Hessian


@checked_fields
@dataclass(frozen=True)
class Run:
    """The surroundings of a measurement: a file to go on from, other processes, and what is shown (docs/long-runs.md).

    Args:
        checkpoint: path of a file that the run is kept in, about every `checkpoint_seconds` and at its end; called
            again with the same arguments it goes on from there.
        checkpoint_seconds: 0 writes at every opportunity.
        distributed: share the examples among the ranks of the default process group (True) or of the one given, all
            of which make the same call and get the same answer.
        progress: say the forecast of memory and time, then show a progress bar; None does so on a terminal only.
        silence: seconds without a sign of life after which a rank is taken for dead: far more than a busy machine
            delays a thread.
        arrival: seconds that ranks wait for each other to make the call; more where some of them load data for longer.
        max_bytes: memory that the work may fill; by default 70 % of what is free on the model's device. Give each rank
            its part where several share a machine.

    Raises:
        ValueError: `checkpoint_seconds` is negative, or `silence` or `arrival` not positive.
        TypeError: `distributed` is neither a boolean nor a process group.

    """

    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_seconds: float = 60.0
    distributed: Distributed = False
    progress: bool | None = False
    silence: float = 10.0
    arrival: float = 20.0
    max_bytes: float | None = None

    def __post_init__(self) -> None:
        if not self.checkpoint_seconds >= 0:
            raise ValueError(f"checkpoint_seconds must be a number >= 0, got {self.checkpoint_seconds!r}")
        for name, seconds in (("silence", self.silence), ("arrival", self.arrival)):
            if not seconds > 0:
                raise ValueError(f"{name} must be a positive number of seconds, got {seconds!r}")
        check_group(self.distributed)


#: A process alone, without files or a bar.
PLAIN_RUN = Run()
MEASURE_SOLVERS: tuple[type[Auto | Dense | Stochastic], ...] = (Auto, Dense, Stochastic)
PROPAGATE_SOLVERS: tuple[type[Markov | Block | Segments | Hessian], ...] = (Markov, Block, Segments, Hessian)

T = TypeVar("T")


def is_auto(solver: object) -> bool:
    """Tell whether the solver is left to the method: an array beside the word has no one answer."""
    return isinstance(solver, str) and solver == "auto"


def settings_of(solver: str | T, known: tuple[type[T], ...]) -> T:
    """Return the settings themselves, or the default ones of the solver that a word names.

    Raises:
        ValueError: neither.

    """
    words = {kind.__name__.lower(): kind for kind in known}
    if isinstance(solver, str):
        if solver in words:
            return words[solver]()
    elif isinstance(solver, known):
        return solver
    raise ValueError(f"solver must be one of {', '.join(words)}, or settings of capalloc.solvers, got {solver!r}")


def word_of(solver: object) -> str:
    return type(solver).__name__.lower()


def _check_probes(num_probes: int) -> None:
    if num_probes < 2:
        raise ValueError(f"num_probes must be at least 2, for a standard error, got {num_probes}")


def _check_auto_probes(num_probes: object) -> None:
    if num_probes != "auto" and not _is_count(num_probes, 2):
        raise ValueError(f'num_probes must be "auto" or an integer >= 2 (one probe knows no error), got {num_probes!r}')


def _check_sampling(max_seconds: float | None, output_probes: int | None) -> None:
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds must be > 0 or None, got {max_seconds!r}")
    if output_probes is not None and not _is_count(output_probes, 1):
        raise ValueError(f"output_probes must be an integer >= 1 or None, got {output_probes!r}")


def _check_coordinates(coordinates: object) -> None:
    if coordinates not in get_args(Coordinates):
        raise ValueError(f'coordinates must be "log" or "plain", got {coordinates!r}')


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
