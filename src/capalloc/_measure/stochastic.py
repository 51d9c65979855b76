"""The stochastic solver: from a checked task to allocations at every ridge."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from capalloc._linalg.block_cg import Iterate, Mark
from capalloc._linalg.lanczos import Quadrature, Recurrence, quadrature
from capalloc._measure.estimates import Estimate, Estimates, Levels
from capalloc._measure.estimators import Account, Draw, Perturbed, Regressed
from capalloc._measure.example_sums import ExampleSums, InnerSum, NoiseSum, ProductSum, PullSum, PushSum
from capalloc._measure.examples import Examples, plan_examples
from capalloc._measure.forecast import Forecast, over_limit, progress_bar, seconds_of_product
from capalloc._measure.probe import Probing, Round, State, advance, begin_state
from capalloc._measure.task import Task
from capalloc._measure.work_plan import Plan
from capalloc._model.magnitudes import notes_of_zeros
from capalloc._model.places import Places
from capalloc._runtime.memory import memory_kept
from capalloc._runtime.steps import Steps
from capalloc._settings import Run, Stochastic
from capalloc.results.allocation import Allocation
from capalloc.results.regions import Partition, labels, patches

#: A patch of 4 x 4 inputs, or as many of a single axis.
PATCH, PATCH_OF_ONE_AXIS = (4, 4), (16,)
#: Products of a solve at a ridge of 0.1 of the mean eigenvalue without a preconditioner, at 0.01 with one; seen on
#: residual and plain convolutional networks.
UNCONDITIONED, PRECONDITIONED = 60, 30
#: Products of a solve of one iteration, the draws and the reading included.
FEWEST_PRODUCTS = 12
#: Combinations of outputs that are kept in any case: fewer would say little of the total.
FEWEST_COMBINED = 8
#: Dataclasses of the states that are kept in files, and of the sums that rank 0 asks for.
STOCHASTIC_TYPES = (State, Round, Draw, Account, Levels, Estimates, Estimate, Iterate, Mark, Recurrence)
STOCHASTIC_SUMS = (NoiseSum, ProductSum, InnerSum, PullSum, PushSum)


def measure_stochastic(
    task: Task, ridges: tuple[float, ...], settings: Stochastic, run: Run, steps: Steps
) -> dict[float, Allocation]:
    """Return the estimated capacity at every ridge.

    Raises:
        TypeError, ValueError: a partition that does not fit.

    """
    began = time.perf_counter()
    examples, plan = plan_examples(task, settings)
    with memory_kept(plan.num_bytes):
        plan, combined = steps.agree("plan in time", lambda: in_time(examples, plan, settings))
        examples = replace(examples, batch_size=plan.batch_size, vectors=plan.chunk, output_probes=combined)
        expected = Forecast(plan.num_bytes, seconds_of_solve(examples, plan))
        rank = steps.reducer.rank
        if rank == 0:
            expected.announce(run.progress, "for a solve")
        own = examples.shard(steps.reducer.shard(len(examples.x)))
        own = own.prepared() if plan.keep else own
        steps = steps.over(own)
        sums = ExampleSums(own, steps)
        probing = Probing(
            estimator=Regressed(sums) if examples.fewer_rows else Perturbed(sums, examples),
            settings=settings,
            ridges=ridges,
            parts=parts_of_places(task.problem.places, task.space.intercept, settings.partition).to(task.x.device),
            probes=plan.probes,
        )
        with progress_bar(run.progress, rank, unit=" steps") as bar:
            state = steps.lead("answer", lambda: solve(probing, steps, began, bar))
    late = over_limit(time.perf_counter() - began, settings.max_seconds)
    found = Measured(probing, state, expected, plan, tuple(late))
    return {ridge: allocation(found, k, task.attrs()) for k, ridge in enumerate(ridges)}


def solve(probing: Probing, steps: Steps, began: float, bar: tqdm[Any]) -> State:
    """Return the last state, from where an earlier run stood; its time counts."""
    before, state = steps.resume("solve") or (0.0, begin_state(probing))
    began -= before
    limit = probing.settings.max_seconds
    probing = replace(probing, deadline=math.inf if limit is None else began + limit)
    while not state.reason:
        state = advance(probing, state)
        steps.pause("solve", (time.perf_counter() - began, state))
        bar.update()
    return state


def in_time(examples: Examples, plan: Plan, settings: Stochastic) -> tuple[Plan, int | None]:
    """Return the plan and the number of combined outputs, as many as the limit has time to take a few products of.

    What was asked for by number stays. Timed with one vector on one example, once to get ready, and on as many more as
    take a quarter of the limit. Up to twice the limit nothing is cut.
    """
    limit, outputs = settings.max_seconds, examples.num_constrained
    if limit is None:
        return plan, examples.output_probes
    most = min(plan.batch_size, len(examples.x))
    number, taken = 1, min(seconds_of_product(replace(examples, batch_size=1), 1) for _ in range(2))
    while number < most and 2 * taken < limit / 4:
        number = min(2 * number, most)
        taken = seconds_of_product(replace(examples, batch_size=number), 1)
    at_least = FEWEST_PRODUCTS * taken / number * len(examples.x)
    probes = plan.probes
    if at_least * probes <= 2 * limit:
        return plan, examples.output_probes
    if isinstance(settings.num_probes, str):
        probes = max(2, min(probes, int(limit / at_least)))
    combined = outputs
    if settings.output_probes is None:
        combined = min(outputs, max(FEWEST_COMBINED, int(outputs * limit / (at_least * probes))))
    plan = replace(plan, probes=probes, chunk=min(plan.chunk, probes))
    return plan, combined if combined < outputs else examples.output_probes


def seconds_of_solve(examples: Examples, plan: Plan) -> float:
    """Forecast one solve of one ridge, by timing one batch: so many products of the block as is usual."""
    each = seconds_of_product(examples, min(plan.chunk, plan.probes))
    usual = UNCONDITIONED if examples.fewer_rows else PRECONDITIONED
    return usual * each * math.ceil(len(examples.x) / plan.batch_size) * math.ceil(plan.probes / plan.chunk)


@dataclass(frozen=True)
class Measured:
    """The parts that all ridges share."""

    probing: Probing
    state: State
    expected: Forecast
    plan: Plan
    late: tuple[str, ...] = ()  # what is to be said of the limit

    @property
    def rank(self) -> int:
        """Number of eigenvalues in the space that is solved in."""
        return min(self.probing.examples.num_params, self.probing.examples.num_rows)

    @property
    def mean_eigenvalue(self) -> float:
        """Mean of those eigenvalues of G that can be other than zero, from the lengths of the right-hand sides."""
        return self.state.trace / self.state.probes / max(self.probing.examples.rank, 1)

    @property
    def quadrature(self) -> Quadrature | None:
        """Density of the eigenvalues."""
        spectrum = self.state.spectrum
        return None if spectrum is None or not spectrum.steps else quadrature(spectrum)


def parts_of_places(places: Places, intercept: bool, partition: Partition | None) -> Tensor:
    """Return the part of every place, in any numbering; the constant input is in none."""
    shape = places.shape
    blank = xr.DataArray(np.zeros(shape), dims=places.dims, coords=places.coords)
    if partition is None:
        partition = patches(*(PATCH if len(shape) > 1 else PATCH_OF_ONE_AXIS))
    given = labels(blank, partition).broadcast_like(blank).transpose(*blank.dims).to_numpy().ravel()
    parts = np.unique(given, return_inverse=True)[1].ravel()
    return torch.cat([torch.as_tensor(parts), torch.full((int(intercept),), -1)])


def allocation(found: Measured, index: int, attrs: dict[str, Any]) -> Allocation:
    """Return the answer at the ridge of that index, with its standard errors."""
    account, dimension = found.state.answers[index], found.probing.examples.dimension
    problem = found.probing.examples.operator.problem
    places = problem.places
    n, axes, slots = places.number, places.dims, account.estimates.slots
    errors = _numpy(slots.drawn_together(n).standard_error(dimension))
    errors[n:] = _numpy(slots.standard_error(dimension, bounded=True))[n:]  # the constant is of another kind
    tensor_errors = _numpy(account.estimates.tensors.widened().standard_error(math.inf))
    values, tensors = means_of(account.estimates, tensor_errors)
    shaped = (axes, errors[:n].reshape(places.shape))
    names = list(problem.params)
    density = found.quadrature
    return Allocation(
        capacity=xr.DataArray(values[:n].reshape(places.shape), dims=axes).assign_coords(standard_error=shaped),
        bias=float(values[n:].sum()),
        by_parameter=xr.DataArray(tensors, dims="parameter", coords={"parameter": names}),
        spectrum=None if density is None else spectrum_of(density, found.rank),
        attrs=attrs
        | facts(found, account, found.probing.ridges[index], density)
        | {
            "bias_standard_error": float(errors[n:].sum()),
            "by_parameter_standard_error": dict(zip(names, tensor_errors.tolist(), strict=True)),
        },
    )


def means_of(found: Estimates, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the capacities of slots and of tensors, none below zero.

    Tensors sum to what slots sum to: the difference falls on them in proportion to their variances, `errors` squared.
    """
    slots, tensors = _numpy(found.slots.mean).clip(0), _numpy(found.tensors.mean)
    weights = errors**2 / max((errors**2).sum(), np.finfo(float).tiny)
    tensors = (tensors + weights * (slots.sum() - tensors.sum())).clip(0)
    return slots, tensors * (slots.sum() / tensors.sum() if tensors.sum() > 0 else 0.0)


def facts(found: Measured, account: Account, ridge: float, density: Quadrature | None) -> dict[str, Any]:
    """Return what is written down about the answer at one ridge."""
    examples, dimension, total = found.probing.examples, found.probing.examples.dimension, account.estimates.total
    reached = account.estimates.relative_error(dimension)
    extra: dict[str, Any] = {}
    if density is not None:
        bounds = density.total(ridge, found.rank)
        extra["spectrum_total"] = [bounds.lower, bounds.upper]
        extra["spectrum_total_standard_error"] = bounds.standard_error
    return extra | {
        "solver": "stochastic",
        "ridge": ridge,
        "coordinates": found.probing.settings.coordinates,
        "differentiation": examples.operator.name,
        "precision": str(examples.x.dtype).removeprefix("torch."),
        "batch_size": found.plan.batch_size,
        "num_probes": total.probes,
        "early_probes": found.state.early_probes,
        "output_probes": examples.output_probes,
        "total_standard_error": float(total.standard_error(dimension, bounded=True)[0]),
        "relative_standard_error": reached,
        "stopped_by": found.state.reason,
        "iterations": account.iterations,
        "rounds": found.state.rounds,
        "solve_error": account.error,
        "solve_residual": account.residual,
        "mean_eigenvalue": found.mean_eigenvalue,
        "forecast_bytes": found.expected.num_bytes,
        "forecast_seconds": found.expected.seconds,
        "notes": notes(found, account, reached),
    }


def notes(found: Measured, account: Account, reached: float) -> list[str]:
    """Return what a reader of the answer has to know."""
    probing, examples = found.probing, found.probing.examples
    said = []
    if examples.output_probes is not None:
        said.append(
            f"{examples.output_probes} random combinations stand for the {examples.num_outputs} outputs of "
            "each example: constraints are a sample, and the total is biased down unless they far outnumber parameters"
        )
    if reached > probing.settings.rtol and probing.fixed is None:
        said.append(
            f"the relative standard error of a part is {reached:.2g}, more than the {probing.settings.rtol:.2g} asked: "
            "out of time or probes"
        )
    if account.error > probing.tolerance:
        said.append(
            f"the solves stopped early, with a squared error of {account.error:.2g} of the capacity: it may be off "
            "by about as much; give them more max_seconds, or take a larger ridge"
        )
    return [*said, *found.late, *notes_of_zeros(examples.scale)]


def spectrum_of(found: Quadrature, num_params: int) -> xr.DataArray:
    """Return how many eigenvalues of G stand for each node, over "node" with the coordinate `eigenvalue`."""
    order = np.argsort(found.nodes.ravel())[::-1]
    nodes, weights = found.nodes.ravel()[order], found.weights.ravel()[order]
    return xr.DataArray(weights * (num_params / len(found.nodes)), dims="node", coords={"eigenvalue": ("node", nodes)})


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
