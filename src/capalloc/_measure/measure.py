"""Measured capacity of any differentiable network: leverage scores of its mixed derivative.

Index convention: a batch of constraints is (examples, outputs, directions, params); rows are its first three axes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from capalloc._derivatives import exact_derivatives
from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._measure.dense import DENSE_PASSES, DENSE_TYPES, measure_dense
from capalloc._measure.fingerprint import digest, fingerprint
from capalloc._measure.forecast import Forecast
from capalloc._measure.ridge import auto_ridge, check_ridge
from capalloc._measure.stochastic import STOCHASTIC_SUMS, STOCHASTIC_TYPES, measure_stochastic, parts_of_places
from capalloc._measure.task import Task, make_task, with_notes
from capalloc._measure.work_plan import Plan, Size
from capalloc._model.checks import check_batch_size
from capalloc._model.input_metric import InputMetricLike
from capalloc._model.made_from import recorded
from capalloc._model.problem import ModelLike, OutputSelection
from capalloc._model.selected_params import ParamSelection
from capalloc._runtime.arguments import checked
from capalloc._runtime.distributed import joined
from capalloc._runtime.lock import sole_run
from capalloc._runtime.steps import open_steps
from capalloc._settings import (
    MEASURE_SOLVERS,
    PLAIN_RUN,
    Auto,
    Dense,
    MeasureSolver,
    Run,
    Stochastic,
    settings_of,
    word_of,
)
from capalloc.results.allocation import Allocation

#: Dataclasses that checkpoints hold and ranks exchange.
TYPES = (Plan, Forecast, *DENSE_TYPES, *DENSE_PASSES, *STOCHASTIC_TYPES, *STOCHASTIC_SUMS)


class CapacityWarning(UserWarning):
    """The answer is well defined, and probably not what was meant."""


@overload
def measure(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    metric: InputMetricLike = DEFAULT_METRIC,
    ridge: float | Literal["auto"] = 0.0,
    intercept: bool = True,
    *,
    params: ParamSelection = None,
    batch_size: int | Literal["auto"] = "auto",
    generator: torch.Generator | None = None,
    solver: MeasureSolver = "auto",
    run: Run = ...,
) -> Allocation: ...


@overload
def measure(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    metric: InputMetricLike = DEFAULT_METRIC,
    *,
    ridge: Sequence[float],
    intercept: bool = True,
    params: ParamSelection = None,
    batch_size: int | Literal["auto"] = "auto",
    generator: torch.Generator | None = None,
    solver: MeasureSolver = "auto",
    run: Run = ...,
) -> dict[float, Allocation]: ...


@checked
@recorded
def measure(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    metric: InputMetricLike = DEFAULT_METRIC,
    ridge: float | Sequence[float] | Literal["auto"] = 0.0,
    intercept: bool = True,
    *,
    params: ParamSelection = None,
    batch_size: int | Literal["auto"] = "auto",
    generator: torch.Generator | None = None,
    solver: MeasureSolver = "auto",
    run: Run = PLAIN_RUN,
) -> Allocation | dict[float, Allocation]:
    """Capacity that a network devotes to each input, from its mixed derivative on examples.

    $kappa_i = trace(G^+ M_i)$, with $J_k(x) = d/dtheta_k grad_x f(x)$, $M_i$ the mean over examples of the products of
    row i of $S^(1/2) J$, summed over outputs, and $G = sum_i M_i$; the table entry of parameter $theta$ and input i is
    $[G^(+1/2) M_i G^(+1/2)]_(theta, theta)$ (docs/theory.md, section 2). The total is the rank of G; with a ridge,
    $G^+$ becomes $(G + ridge)^-1$ and the total is $sum s / (s + ridge)$ over the eigenvalues s of G. With a ridge, and
    for the table, derivatives are along $log|theta_k|$: rescalings that keep the function then change nothing. The
    `coordinates` of a solver's settings may be "plain" instead.

    The dense solver is exact, in float64 on the model's device. The stochastic one needs a ridge, holds no matrix, and
    gives every number a standard error (docs/measure-at-scale.md); its products run in float32 for a float32 model.
    Both work on a private copy of the model in evaluation mode. A model that draws random numbers draws the same ones
    in every pass over a batch.

    Args:
        model: any differentiable `torch.nn.Module`, an exported program, or the path of one saved as .pt2; examples
            must not interact.
        inputs: a tensor with a leading examples axis, or an iterable of such batches; labels in (x, y) batches are
            ignored. Of a model that requires several, a tuple of tensors; by name, a dict; integers that an embedding
            looks up are token ids, and have a capacity by token (docs/how-to/several-inputs.md).
        outputs: the constraint outputs in what the model returns: a name such as "logits", of an entry or an
                attribute; a position; or a function to the tensor. None takes a tensor as it is, else `logits`, else
                `last_hidden_state`.
        metric: input metric S: "identity", unit energy of every input about zero; "variance" of each input over the
            examples, or their "covariance", shrunk as by Ledoit and Wolf (docs/theory.md, section 2); or variances of
            one example's shape, or a covariance, (n, n) or that shape twice over. With all but the first the
            constant's slot stands at the mean of the examples. None is the identity.
        ridge: non-negative, in units of G; "auto" is 0.01 of the mean eigenvalue of G, 0.1 of it where rows of
            constraints are fewer than parameters (`attrs["ridge"]` says how much that is); or several, all positive,
            for the stochastic solver: solutions at one start those at the next smaller one, and the same probes serve
            all, so that differences between the maps are better known than the maps.
        intercept: give the constant input a slot, "bias".
        params: names of the parameters that count, patterns such as "head.*", or a predicate on names; by default those
            that require gradients (all where none does), "all" for all; the rest are held fixed.
        batch_size: examples at a time; "auto" chooses by a memory forecast.
        generator: seeds the model's own random draws and the probes; a fixed seed by default.
        solver: "dense", "stochastic", or "auto": dense where it fits in memory, else stochastic; or settings of one:
            `capalloc.solvers.Dense`, `Stochastic`, `Auto`.
        run: a checkpoint to go on from, processes that share the examples, a progress bar (docs/long-runs.md).

    Returns:
        The allocation, with `kind="measured"` and in `attrs` settings, notes, seconds, forecasts of bytes and
        seconds, the precision of products, and `data_digest`, a mark of the examples in any order; from the dense
        solver the rank and its tolerance (relative, on singular values of the constraint matrix, see
        `_linalg.leverage`); from the stochastic one standard errors (of inputs as the coordinate `standard_error`),
        iterations, and no table. `spectrum` holds the eigenvalues of G in the same coordinates, or a quadrature of
        their density. For several ridges a dict of allocations, from the largest ridge down; `seconds` counts the
        whole run.

        Where rows outnumber parameters, the dense solver also gives `half_total`, the total on the first
        `half_examples` (about half of them; the batches of one half), and a note where that is more than 1 % less: as
        a guide, if each doubling of the examples adds half of what the last one did, the total will rise by the
        difference once more. Without a ridge `unused_params` counts the parameters that no constraint moves.

    Raises:
        ValueError: bad settings, a metric that is no covariance or that the data cannot give, examples that interact,
            random draws that do not repeat, constraints that are not finite, the stochastic solver without a ridge, or
            "auto" where no parameter moves the outputs.
        TypeError: inputs or outputs that no method can use.
        MemoryError: the solver or one example would not fit.
        RankError: another rank failed, died, hangs or makes no such call.
        RuntimeError: another run uses the checkpoint.

    Warns:
        CapacityWarning: fewer rows of constraints than parameters and no ridge: the answer is flat and meaningless.

    Reference: J. Donier, Capacity allocation through neural network layers, arXiv 1902.08572.

    """
    with (
        exact_derivatives(),
        joined(run.distributed, TYPES, run.silence, run.arrival) as reducer,
        sole_run(None if reducer.rank else run.checkpoint),
    ):
        asked = settings_of(solver, MEASURE_SOLVERS)  # what is wrong on one rank is heard by all
        ridges = _ridges(ridge, asked)
        check_batch_size(batch_size)
        task = make_task(
            *(model, inputs, outputs, metric, intercept, params),
            generator=generator,
            batch_size=batch_size,
            max_bytes=run.max_bytes,
            reducer=reducer,
        )
        mark = partial(fingerprint, task.problem, task.space, task.x, task.seed, _described(task, asked, ridges))
        steps = open_steps(reducer, run.checkpoint, mark, run.checkpoint_seconds, TYPES, task.x.device)
        if isinstance(asked, Auto):
            scale = steps.agree("solver", lambda: len(ridges) > 1 or _must_be_stochastic(task, ridges))
            asked = asked.stochastic if scale else asked.dense
        ridges = ridges or (auto_ridge(task, asked, steps),)
        if isinstance(asked, Stochastic):
            answers = measure_stochastic(task, ridges, asked, run, steps)
        else:
            _warn_if_flat(task.size, ridges[0])
            answers = {ridges[0]: measure_dense(task, ridges[0], asked, run, steps)}
        steps.close()
        answers = {one: with_notes(found, task.problem, task.x) for one, found in answers.items()}
    return answers[ridges[0]] if isinstance(ridge, (int, float, str)) else answers


def _ridges(ridge: float | Sequence[float] | str, asked: Auto | Dense | Stochastic) -> tuple[float, ...]:
    """Return the ridges, checked, from the largest down; none for "auto"."""
    if ridge == "auto":
        return ()
    if isinstance(ridge, (bool, str)) or (isinstance(ridge, (int, float)) and not 0 <= ridge < math.inf):
        raise ValueError(f'ridge must be a finite number >= 0 or "auto", got {ridge!r}')
    given = (ridge,) if isinstance(ridge, (int, float)) else ridge
    several = given is ridge
    ridges = tuple(sorted({float(one) for one in given}, reverse=True))
    if not ridges:
        raise ValueError("ridge holds no number; pass at least one > 0")
    if several and isinstance(asked, Dense):
        raise ValueError(f"several ridges are for the stochastic solver, got solver={asked!r}; pass one at a time")
    if several or isinstance(asked, Stochastic):
        for one in ridges:
            check_ridge(one)
    return ridges


def _described(task: Task, asked: Auto | Dense | Stochastic, ridges: tuple[float, ...]) -> dict[str, Any]:
    """Return the settings that make another run of it, by name."""
    told: dict[str, Any] = {"solver": word_of(asked), "batch_size": task.batch_size, "precision": str(task.precision)}
    told["ridge"] = (ridges[0] if len(ridges) == 1 else list(ridges)) if ridges else "auto"
    for settings in (asked.dense, asked.stochastic) if isinstance(asked, Auto) else (asked,):
        told |= vars(settings)
    if told.get("partition") is not None:
        told["partition"] = digest(parts_of_places(task.problem.places, task.space.intercept, told["partition"]))
    return told


def _must_be_stochastic(task: Task, ridges: tuple[float, ...]) -> bool:
    """Return True where the dense solver's matrices alone would not fit; the other solver needs a ridge then."""
    try:
        task.size.beside_solver(task.budget)
    except MemoryError as error:
        if ridges == (0.0,):
            raise MemoryError(
                f"{error}; or give a ridge > 0, with which the stochastic solver takes over (docs/measure-at-scale.md)"
            ) from error
        return True
    return False


def _warn_if_flat(size: Size, ridge: float) -> None:
    if size.wide and ridge == 0:
        warnings.warn(
            f"{size.examples} examples x {size.outputs} outputs x {size.slots} inputs make {size.rows} rows of "
            f"constraints for {size.params} parameters: capacity is limited by the data and its map is flat and "
            f"meaningless; use at least {math.ceil(size.params * size.examples / size.rows)} examples, a ridge, or "
            "fewer parameters with params=",
            CapacityWarning,
            stacklevel=3,
        )
