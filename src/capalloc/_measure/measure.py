"""Measured capacity of any differentiable network: leverage scores of its mixed derivative.

Index convention: a batch of constraints is (examples, outputs, directions, params); rows are its first three axes.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from capalloc._linalg.gram_root import GramSum, Root
from capalloc._linalg.leverage import ACCURACY, Scores
from capalloc._linalg.row_block import Block
from capalloc._measure.dense import Settings as DenseSettings
from capalloc._measure.dense import measure_dense
from capalloc._measure.fingerprint import digest, fingerprint
from capalloc._measure.forecast import Forecast
from capalloc._measure.settings import Settings
from capalloc._measure.stochastic import (
    STORED,
    Measured,
    allocation,
    measure_stochastic,
    parts_of_slots,
    products_of,
    seconds_of_product,
)
from capalloc._measure.task import Task, make_task, private
from capalloc._model.problem import ModelLike, OutputSelection, ParamSelection
from capalloc._runtime.distributed import Distributed, Local, Reducer, joined
from capalloc._runtime.memory import Plan, Size, check_solver
from capalloc._runtime.passes import Passes, passes_of
from capalloc.results.allocation import Allocation
from capalloc.results.partitions import Partition

SOLVERS = ("auto", "dense", "stochastic")
#: What checkpoints hold and ranks exchange.
TYPES = (Plan, Root, Scores, GramSum, Block, Forecast, *STORED)


class CapacityWarning(UserWarning):
    """The answer is well defined, and probably not what was meant."""


def measure(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    metric: Tensor | None = None,
    ridge: float = 0.0,
    intercept: bool = True,
    *,
    params: ParamSelection = None,
    batch_size: int | str = "auto",
    generator: torch.Generator | None = None,
    progress: bool | None = False,
    solver: str = "auto",
    accuracy: float = ACCURACY,
    rtol: float = 0.02,
    num_probes: int | str = "auto",
    max_seconds: float | None = None,
    partition: Partition | None = None,
    output_probes: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    distributed: Distributed = False,
) -> Allocation:
    """Capacity that a network devotes to each input, from its mixed derivative on examples.

    kappa_i = trace(G^+ M_i), with J_k(x) = d/dtheta_k grad_x f(x), M_i the mean over examples of the products of
    row i of S^(1/2) J, summed over outputs, and G = sum_i M_i; the table entry of parameter theta and input i is
    [G^(+1/2) M_i G^(+1/2)]_(theta, theta) (docs/theory.md, section 2). The total is the rank of G; with a ridge, G^+
    becomes (G + ridge)^-1 and the total is sum s / (s + ridge) over the eigenvalues s of G.

    The dense solver is exact, in float64 on the model's device. The stochastic one needs a ridge, holds no matrix, and
    gives every number a standard error (docs/measure-at-scale.md); its products run in float32 for a float32 model.
    Both work on a private copy of the model in evaluation mode. A model that draws random numbers draws the same ones
    in every pass over a batch.

    Args:
        model: any differentiable `torch.nn.Module`, an exported program, or the path of one saved as .pt2; examples
            must not interact.
        inputs: a tensor with a leading examples axis, or an iterable of such batches; labels in (x, y) batches are
            ignored.
        outputs: a function from what the model returns to the tensor of constraint outputs.
        metric: input metric S: None for the identity, variances of one example's shape, or a covariance, (n, n)
            or that shape twice over.
        ridge: non-negative, in units of G.
        intercept: give the constant input a slot, "bias".
        params: names of the parameters that count, or a predicate on names; the rest are held fixed.
        batch_size: examples at a time; "auto" chooses by a memory forecast.
        generator: seeds the model's own random draws and the probes; a fixed seed by default.
        progress: say the forecast of memory and time, then show a progress bar; None does so on a terminal only.
        solver: "dense", "stochastic", or "auto": dense where it fits in memory, else stochastic.
        accuracy: dense solver, with a ridge: relative error that the rounding of products may leave in a capacity;
            from about 1e-5 on, products in float32 may do, which take less time (`precision` in `attrs` tells).
        rtol: stochastic solver: relative standard error asked of every part of `partition`.
        num_probes: stochastic solver: probes, two or more; "auto" adds probes until `rtol` is reached.
        max_seconds: stochastic solver: stop after about this long, with what is known then.
        partition: stochastic solver: parts as for `Allocation.by`; patches of 4 x 4 inputs by default, of 16 on a
            single axis.
        output_probes: stochastic solver: random combinations of outputs that stand for all of an example's; by
            default every output up to 100 of them, else 32 combinations, which bias the total down (see `notes`).
        checkpoint: path of a file that the run is kept in, about every `checkpoint_seconds` and at its end; called
            again with the same arguments it goes on from there (docs/long-runs.md).
        checkpoint_seconds: 0 writes at every opportunity.
        distributed: share the examples among the ranks of the default process group (True) or of the one given, all
            of which make the same call and get the same answer (docs/long-runs.md).

    Returns:
        The allocation, with `kind="measured"` and in `attrs` settings, notes, seconds, forecasts of bytes and seconds,
        and the precision of products; from the dense solver the rank and its tolerance (relative, on singular values of
        the constraint matrix, see `_linalg.leverage`); from the stochastic one standard errors (of inputs as the
        coordinate `standard_error`), iterations, and no table. `spectrum` holds the eigenvalues of G, or a quadrature
        of their density.

    Raises:
        ValueError: bad settings, a metric that is no covariance, examples that interact, random draws that do not
            repeat, constraints that are not finite, or the stochastic solver without a ridge.
        TypeError: inputs or outputs that no method can use.
        MemoryError: the solver or one example would not fit.
        RankError: another rank failed, died or hangs.

    Warns:
        CapacityWarning: fewer rows of constraints than parameters and no ridge: the answer is flat and meaningless.

    Reference: J. Donier, Capacity allocation through neural network layers, arXiv 1902.08572.

    """
    start = time.perf_counter()
    dense = DenseSettings(ridge, batch_size, accuracy, progress)
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    chosen = (float(ridge),) if ridge or solver == "stochastic" else (1.0,)  # checked even where they go unused
    settings = Settings(chosen, rtol, num_probes, max_seconds, output_probes, progress=progress)
    with private(), joined(distributed, TYPES) as reducer:
        task = make_task(model, inputs, outputs, metric, params, intercept, generator, reducer)
        told = {"solver": solver, "ridge": float(ridge), "batch_size": batch_size, "accuracy": accuracy}
        told |= _told(task, settings, partition)
        passes = _passes(task, reducer, checkpoint, checkpoint_seconds, told)
        if _chosen(task, ridge, solver, passes) == "stochastic":
            found = _stochastic(task, settings, partition, batch_size, passes)
            answer = allocation(found, 0, task.attrs(start))
        else:
            _warn_if_flat(task.size, ridge)
            answer = measure_dense(task, dense, start, passes)
        passes.close()
    return answer


def measure_ridges(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    ridges: Sequence[float],
    outputs: OutputSelection = None,
    metric: Tensor | None = None,
    intercept: bool = True,
    *,
    params: ParamSelection = None,
    batch_size: int | str = "auto",
    generator: torch.Generator | None = None,
    progress: bool | None = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    distributed: Distributed = False,
    **settings: Any,
) -> dict[float, Allocation]:
    """Measured capacity at several ridges from the same probes, by the stochastic solver.

    Solutions at one ridge start those at the next smaller one, and the preconditioner and the spectrum serve all;
    errors at different ridges are correlated, so that differences between them are better known than the maps.

    Args:
        model, inputs, outputs, metric, intercept, params, batch_size, generator, progress: as in `measure`.
        checkpoint, checkpoint_seconds, distributed: as in `measure`.
        ridges: positive.
        settings: `rtol`, `num_probes`, `max_seconds`, `partition` and `output_probes`, as in `measure`.

    Returns:
        An allocation for each ridge, from the largest down; `seconds` counts the whole run.

    Raises:
        ValueError, TypeError, MemoryError: as `measure`; no ridge, or one that is not positive.

    """
    start = time.perf_counter()
    partition = settings.pop("partition", None)
    checked = Settings(tuple(sorted(set(map(float, ridges)), reverse=True)), progress=progress, **settings)
    with private(), joined(distributed, TYPES) as reducer:
        task = make_task(model, inputs, outputs, metric, params, intercept, generator, reducer)
        told = {"ridges": list(checked.ridges), "batch_size": batch_size, **_told(task, checked, partition)}
        passes = _passes(task, reducer, checkpoint, checkpoint_seconds, told)
        found = _stochastic(task, checked, partition, batch_size, passes)
        passes.close()
    return {ridge: allocation(found, k, task.attrs(start)) for k, ridge in enumerate(checked.ridges)}


def mean_eigenvalue(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    metric: Tensor | None = None,
    intercept: bool = True,
    *,
    params: ParamSelection = None,
    num_probes: int = 8,
) -> float:
    """Mean of G's eigenvalues, a scale for the ridge: trace G / min(params, rows), trace G = E |C'xi|^2, xi normal.

    With fewer rows of constraints (examples x outputs x (inputs + 1)) than parameters the others are zero: left out.

    Args:
        model, inputs, outputs, metric, intercept, params: as in `measure`.
        num_probes: more make it more precise; its relative standard error is root 2 / num_probes at most.

    Raises:
        ValueError, TypeError, MemoryError: as `measure`.

    """
    settings = Settings((1.0,), num_probes=num_probes)
    with private():
        task = make_task(model, inputs, outputs, metric, params, intercept, None, Local())
        products, _ = products_of(task.problem, task.space, task.x.to(task.precision), task.replay, settings)
        trace = float(products.noise(0, num_probes).square().sum()) / num_probes
        return trace / min(products.num_params, products.num_rows)


def _told(task: Task, settings: Settings, partition: Partition | None) -> dict[str, Any]:
    """Settings that make another run of it."""
    told = asdict(settings)
    del told["progress"], told["seed"], told["ridges"]
    return told | {"partition": None if partition is None else digest(parts_of_slots(task.space, partition))}


def _passes(
    task: Task, reducer: Reducer, path: str | os.PathLike[str] | None, seconds: float, told: Mapping[str, Any]
) -> Passes:
    mark = partial(fingerprint, task.problem, task.space, task.x, task.seed, told)
    return passes_of(reducer, path, mark, seconds, TYPES, task.x.device)


def _chosen(task: Task, ridge: float, solver: str, passes: Passes) -> str:
    """The solver: one for all ranks, and for all of a run that was interrupted."""
    if solver != "auto":
        return solver
    return passes.once("solver", lambda: "stochastic" if _must_be_stochastic(task, ridge) else "dense")


def _must_be_stochastic(task: Task, ridge: float) -> bool:
    """Whether the dense solver's matrices alone would not fit; an error if the other solver lacks a ridge."""
    try:
        check_solver(task.size, task.x.device)
    except MemoryError as error:
        if ridge == 0:
            raise MemoryError(
                f"{error}; or give a ridge > 0, with which the stochastic solver takes over (docs/measure-at-scale.md)"
            ) from error
        return True
    return False


def _stochastic(
    task: Task, settings: Settings, partition: Partition | None, batch_size: int | str, passes: Passes
) -> Measured:
    seeded_settings = replace(settings, seed=task.seed)
    x = task.x.to(task.precision)
    products, cut = products_of(task.problem, task.space, x, task.replay, seeded_settings, batch_size)
    if passes.reducer.rank == 0 and settings.progress is not False:
        Forecast(cut.forecast, seconds_of_product(products, cut)).announce(settings.progress, "for a solve")
    return measure_stochastic(products, cut, seeded_settings, partition, passes)


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
