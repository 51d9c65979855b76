"""The stochastic solver from a checked problem to allocations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from capalloc._derivatives import InputMetric
from capalloc._derivatives.products import ConstraintOperator
from capalloc._derivatives.verify import choose_operator
from capalloc._linalg.block_cg import Iterate, Mark
from capalloc._linalg.kronecker import Kronecker
from capalloc._linalg.lanczos import Quadrature, Recurrence, quadrature
from capalloc._linalg.row_fit import Fit
from capalloc._measure.estimates import Tallies, Tally
from capalloc._measure.example_sums import Products, silent
from capalloc._measure.plan import Cut, load_of, make_cut
from capalloc._measure.precondition import precondition
from capalloc._measure.probe import Round, Run, Solved, State, solve
from capalloc._measure.settings import Settings
from capalloc._model.problem import Problem, axis_names
from capalloc._runtime.distributed import Reducer
from capalloc._runtime.passes import ALONE, Passes
from capalloc.results.allocation import Allocation
from capalloc.results.regions import Partition, labels, patches

#: A patch of 4 x 4 inputs, or as many of a single axis.
PATCH, PATCH_OF_ONE_AXIS = (4, 4), (16,)
#: Examples whose gates are looked at together, and the relative difference that says that they move: float32 rounding
#: is below it.
CHECKED, APART = 8, 1e-3
#: Products of a solve at a ridge of 0.1 of the mean eigenvalue without a preconditioner, at 0.01 with one; seen on
#: residual and plain convolutional networks.
UNCONDITIONED, PRECONDITIONED = 60, 20
#: What a state is made of.
STORED = (Cut, State, Round, Solved, Tallies, Tally, Iterate, Fit, Mark, Recurrence)


@dataclass(frozen=True)
class Measured:
    """What all ridges share."""

    run: Run
    state: State
    cut: Cut
    spectrum: Quadrature | None
    forecast_seconds: float

    @property
    def num_params(self) -> int:
        """p."""
        return self.run.products.num_params

    @property
    def rank(self) -> int:
        """Of G, at most."""
        return min(self.num_params, self.run.products.num_rows)

    @property
    def mean_eigenvalue(self) -> float:
        """Of those eigenvalues of G that can be other than zero, from the lengths of the right-hand sides."""
        return self.state.trace / self.state.probes / self.rank


def measure_stochastic(products: Products, cut: Cut, settings: Settings, passes: Passes = ALONE) -> Measured:
    """Run the stochastic solver on products with the constraints of all examples, as `products_of` makes them.

    Rank 0 solves; the others wait to be told which product comes next, and add their examples' share to it.

    Raises:
        TypeError, ValueError: a partition that does not fit.

    """
    started = time.perf_counter()
    cut = passes.once("cut", lambda: cut)
    products = replace(products, batch_size=cut.batch_size, vectors=cut.vectors)
    seconds = seconds_of_product(products, cut)
    parts = parts_of_slots(products.operator.space, settings.asked.partition).to(products.x.device)
    whole, products = products, shared(products, passes.reducer)
    products = products.prepared() if cut.hold else products
    run = Run(products, Kronecker(()), settings, parts, cut.block)

    def solve_for_all() -> State:
        before, state = passes.stood("solve") or (0.0, None)
        began = started - before
        with tqdm(desc="measure", unit="solve step", disable=_hidden(settings.progress)) as bar:
            own = replace(
                run,
                preconditioner=Kronecker(()) if run.products.fewer_rows else precondition(whole),
                deadline=math.inf if settings.asked.max_seconds is None else began + settings.asked.max_seconds,
                tick=bar.update,
                keep=lambda state: passes.stand("solve", (time.perf_counter() - began, state)),
            )
            return solve(own, state)

    state = passes.once("state", lambda: together(run.products, passes.reducer, solve_for_all))
    spectrum = None if state.spectrum is None or not state.spectrum.steps else quadrature(state.spectrum)
    return Measured(run, state, cut, spectrum, seconds)


def shared(products: Products, reducer: Reducer) -> Products:
    """Products with this process's examples, summed over all; those of rank 0 tell the others what comes next."""
    own = reducer.shard(len(products.x))
    return replace(
        products,
        x=products.x[own],
        offset=own.start,
        replay=lambda index: products.replay(own.start + index),
        reduce=reducer.sum,
        announce=(lambda *asked: reducer.share(asked)) if reducer.rank == 0 else silent,
    )


def together(products: Products, reducer: Reducer, lead: Callable[[], State]) -> State:
    """What `lead` finds on rank 0, while the others take part in its products."""
    if reducer.rank == 0:
        state = lead()
        reducer.share(None)
        return state
    while asked := reducer.share(None):
        name, *given = asked
        getattr(products, name)(*given)
    return State()


def products_of(
    problem: Problem,
    space: InputMetric,
    x: Tensor,
    replay: Callable[[int], AbstractContextManager[None]],
    settings: Settings,
    batch_size: int | str = "auto",
) -> tuple[Products, Cut]:
    """Products with the constraints of the examples, cut to the memory."""
    operator = choose_operator(problem, space, x[:1].to(problem.dtype), lambda: replay(0)).recast(x.dtype)
    if gates_move(operator, x, replay):
        operator = replace(operator, name="forward")
    num_outputs = operator.problem(x[:1]).shape[1]
    probes = settings.probes_of(num_outputs)
    cut = make_cut(load_of(operator, probes or num_outputs, len(x)), x, settings, batch_size)
    products = Products(
        operator, x, cut.batch_size, cut.vectors, num_outputs, probes, replay, settings.seed, num_examples=len(x)
    )
    return products, cut


def gates_move(operator: ConstraintOperator, x: Tensor, replay: Callable[[int], AbstractContextManager[None]]) -> bool:
    """Whether piecewise products are wrong at any example, by one product with each in forward mode beside."""
    if operator.name != "piecewise":
        return False
    other = replace(operator, name="forward")
    random = torch.Generator().manual_seed(0)
    for index, one in enumerate(x.split(CHECKED)):
        shape = (1, 1, len(one), operator.space.num_slots)
        rows = torch.randn(shape, generator=random).to(one)
        units = torch.randn(1, len(one), operator.problem(one[:1]).shape[1], generator=random).to(one)
        here, there = (o.at(one, units, partial(replay, index)).adjoint(rows) for o in (operator, other))
        if (here - there).norm() > APART * there.norm():
            return True
    return False


def seconds_of_product(products: Products, cut: Cut) -> float:
    """Forecast for one solve of one ridge, by timing one batch: so many products of the block as is usual."""
    batch = next(products.batches())
    w = products.normal_params(-2, min(cut.vectors, cut.block))
    began = time.perf_counter()
    products.adjoint(batch, products.apply(batch, w))
    each = time.perf_counter() - began
    usual = UNCONDITIONED if products.fewer_rows else PRECONDITIONED
    return usual * each * math.ceil(len(products.x) / cut.batch_size) * math.ceil(cut.block / cut.vectors)


def _hidden(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


def parts_of_slots(space: InputMetric, partition: Partition | None) -> Tensor:
    """The part of every slot, in any numbering; the constant input is in none."""
    shape = space.shape
    blank = xr.DataArray(np.zeros(shape), dims=axis_names(len(shape)))
    if partition is None:
        partition = patches(*(PATCH if len(shape) > 1 else PATCH_OF_ONE_AXIS))
    given = labels(blank, partition).broadcast_like(blank).transpose(*blank.dims).to_numpy().ravel()
    parts = np.unique(given, return_inverse=True)[1].ravel()
    return torch.cat([torch.as_tensor(parts), torch.full((int(space.intercept),), -1)])


def allocation(found: Measured, index: int, attrs: dict[str, Any]) -> Allocation:
    """The answer at the ridge of that index, with its standard errors."""
    run, solved = found.run, found.state.solved[index]
    problem, space = run.products.operator.problem, run.products.operator.space
    n, axes = space.num_inputs, axis_names(len(space.shape))
    errors = _numpy(solved.tallies.slots.standard_error(run.dimension))
    tensor_errors = _numpy(solved.tallies.tensors.standard_error(math.inf))
    values, tensors = means_of(solved.tallies, tensor_errors)
    shaped = (axes, errors[:n].reshape(space.shape))
    names = list(problem.params)
    return Allocation(
        capacity=xr.DataArray(values[:n].reshape(space.shape), dims=axes).assign_coords(standard_error=shaped),
        bias=float(values[n:].sum()),
        by_parameter=xr.DataArray(tensors, dims="parameter", coords={"parameter": names}),
        spectrum=None if found.spectrum is None else spectrum_of(found.spectrum, found.rank),
        attrs=attrs
        | facts(found, solved, run.settings.ridges[index])
        | {
            "bias_standard_error": float(errors[n:].sum()),
            "by_parameter_standard_error": dict(zip(names, tensor_errors.tolist(), strict=True)),
        },
    )


def means_of(found: Tallies, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Capacities of slots and of tensors, none below zero.

    Tensors sum to what slots sum to: the difference falls on them in proportion to their variances, `errors` squared.
    """
    slots, tensors = _numpy(found.slots.mean).clip(0), _numpy(found.tensors.mean)
    weights = errors**2 / max((errors**2).sum(), np.finfo(float).tiny)
    tensors = (tensors + weights * (slots.sum() - tensors.sum())).clip(0)
    return slots, tensors * (slots.sum() / tensors.sum() if tensors.sum() > 0 else 0.0)


def facts(found: Measured, solved: Solved, ridge: float) -> dict[str, Any]:
    """What is written down about the answer at one ridge."""
    run, total = found.run, solved.tallies.total
    reached = solved.tallies.relative_error(run.dimension)
    extra: dict[str, Any] = {}
    if found.spectrum is not None:
        bounds = found.spectrum.total(ridge, found.rank)
        extra["spectrum_total"] = [bounds.lower, bounds.upper]
        extra["spectrum_total_standard_error"] = bounds.standard_error
    return extra | {
        "solver": "stochastic",
        "ridge": ridge,
        "differentiation": run.products.operator.name,
        "precision": str(run.products.x.dtype).removeprefix("torch."),
        "batch_size": found.cut.batch_size,
        "num_probes": total.probes,
        "output_probes": run.products.output_probes,
        "total_standard_error": float(total.standard_error(run.dimension)[0]),
        "relative_standard_error": reached,
        "stopped_by": found.state.reason,
        "iterations": solved.iterations,
        "rounds": found.state.rounds,
        "solve_error": solved.error,
        "solve_residual": solved.residual,
        "mean_eigenvalue": found.mean_eigenvalue,
        "forecast_bytes": found.cut.forecast,
        "forecast_seconds": found.forecast_seconds,
        "notes": notes(found, solved, reached),
    }


def notes(found: Measured, solved: Solved, reached: float) -> list[str]:
    """What a reader of the answer has to know."""
    run = found.run
    said = []
    if run.products.output_probes is not None:
        said.append(
            f"{run.products.output_probes} random combinations stand for the {run.products.num_outputs} outputs of "
            "each example: constraints are a sample, and the total is biased down unless they far outnumber parameters"
        )
    if reached > run.settings.asked.rtol and isinstance(run.settings.asked.num_probes, str):
        said.append(
            f"the relative standard error of a part is {reached:.2g}, more than the "
            f"{run.settings.asked.rtol:.2g} asked: out of time or probes"
        )
    if solved.error > run.settings.solve_tolerance:
        said.append(
            f"the solves stopped early, with a squared error of {solved.error:.2g} of the capacity: it may be off "
            "by about as much; give them more max_seconds, or take a larger ridge"
        )
    return said


def spectrum_of(found: Quadrature, num_params: int) -> xr.DataArray:
    """How many eigenvalues of G stand for each node, over "node" with the coordinate `eigenvalue`."""
    order = np.argsort(found.nodes.ravel())[::-1]
    nodes, weights = found.nodes.ravel()[order], found.weights.ravel()[order]
    return xr.DataArray(weights * (num_params / len(found.nodes)), dims="node", coords={"eigenvalue": ("node", nodes)})


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
