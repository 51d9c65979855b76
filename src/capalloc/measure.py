"""Measured capacity of any differentiable network: leverage scores of its mixed derivative.

Index convention: a batch of constraints is (examples, outputs, directions, params); rows are its first three axes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from capalloc.allocation import Allocation
from capalloc.dense import Block, Blocks, Scores, cached, score_in_memory, score_in_passes
from capalloc.jacobian import (
    Choice,
    Constraints,
    InputMetric,
    choose_jacobian,
    differentiable_kernels,
    input_metric,
)
from capalloc.memory import Plan, Size, make_plan
from capalloc.problem import ModelLike, OutputSelection, ParamSelection, Problem, axis_names, prepare, seeded

#: Examples on which a way to the mixed derivative is tried and checked.
TRIAL_EXAMPLES = 2
#: Relative error up to which two float64 outputs count as equal.
SAME = 1e-7
#: A numerical rank is called unclear when the singular values on its two sides differ by less than this factor.
CLEAR_GAP = 10.0


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
) -> Allocation:
    """Capacity that a network devotes to each input, exactly, from its mixed derivative on examples.

    kappa_i = trace(G^+ M_i), with J_k(x) = d/dtheta_k grad_x f(x), M_i the mean over examples of the products of
    row i of S^(1/2) J, summed over outputs, and G = sum_i M_i; the table entry of parameter theta and input i is
    [G^(+1/2) M_i G^(+1/2)]_(theta, theta) (docs/theory.md, section 2). The total is the rank of G; with a ridge, G^+
    becomes (G + ridge)^-1 and the total is sum s / (s + ridge) over the eigenvalues s of G.

    Everything is computed in float64 on the model's device, on a private copy of the model in evaluation mode. A
    model that draws random numbers draws the same ones in every pass over a batch.

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
        generator: seeds the model's own random draws; a fixed seed by default.
        progress: show a progress bar; None shows it on a terminal only.

    Returns:
        The allocation, with `kind="measured"` and in `attrs` the rank, its tolerance (relative, on singular values
        of the constraint matrix, see `capalloc.dense`), settings, notes and seconds.

    Raises:
        ValueError: bad settings, a metric that is no covariance, examples that interact, random draws that do not
            repeat, or constraints that are not finite.
        TypeError: inputs or outputs that no method can use.
        MemoryError: the solver or one example would not fit.

    Warns:
        CapacityWarning: fewer rows of constraints than parameters and no ridge: the answer is flat and meaningless.

    Reference: J. Donier, Capacity allocation through neural network layers, arXiv 1902.08572.

    """
    start = time.perf_counter()
    _check_settings(ridge, batch_size)
    with torch.inference_mode(False), torch.no_grad(), differentiable_kernels(), torch.random.fork_rng([]):
        problem = prepare(model, inputs, outputs, params, dtype=torch.float64)
        space = input_metric(metric, problem.probe, intercept)
        replay = partial(_replay, _seed(generator), problem.probe.device)
        x = torch.cat(list(problem.batches(1024)))
        num_outputs = _check_examples(problem, x, replay)
        size = Size(len(x), num_outputs, space.num_slots, problem.num_params)
        _warn_if_flat(size, ridge)
        choice = choose_jacobian(problem, x[:TRIAL_EXAMPLES], partial(replay, 0))
        forecast = choice.forecast(size.outputs, size.params)
        plan = make_plan(size, forecast, batch_size, x.device)
        constraints = Constraints(problem, choice, space, x, plan, replay)
        scores = solve(constraints, size, plan, ridge, progress)
    notes = _notes(choice, scores, size, ridge)
    attrs = {
        "kind": "measured",
        "solver": "dense",
        "num_params": size.params,
        "num_examples": size.examples,
        "num_outputs": size.outputs,
        "rank": scores.root.rank,
        "tolerance": scores.root.tolerance,
        "ridge": float(ridge),
        "intercept": bool(intercept),
        "metric": "identity" if space.root is None else ("variances", "covariance")[space.root.ndim - 1],
        "differentiation": choice.name,
        "batch_size": plan.batch_size,
        "notes": notes,
        "seconds": time.perf_counter() - start,
    }
    return _allocation(scores.table, problem, space, attrs)


def solve(constraints: Constraints, size: Size, plan: Plan, ridge: float, progress: bool | None) -> Scores:
    """Scores of all constraints, on the smaller side of their matrix."""
    sizes = [p.numel() for p in constraints.problem.params.values()]
    passes = 1 if plan.keep else 2
    with tqdm(
        total=passes * len(constraints), desc="measure", disable=None if progress is None else not progress
    ) as bar:
        blocks = watched(constraints, bar.update)
        if size.wide:
            return score_in_memory(blocks, sizes, size.slots, ridge)
        return score_in_passes(cached(blocks) if plan.keep else blocks, sizes, size.slots, size.rows, ridge)


def watched(blocks: Blocks, tick: Callable[[], Any]) -> Blocks:
    """The same blocks, with a tick after each."""

    def again() -> Iterator[Block]:
        for block in blocks():
            yield block
            tick()

    return again


def _check_settings(ridge: float, batch_size: int | str) -> None:
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be a finite number >= 0, got {ridge!r}")
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f'batch_size must be "auto" or an integer >= 1, got {batch_size!r}')


def _seed(generator: torch.Generator | None) -> int:
    if generator is None:
        return 0
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))


def _replay(seed: int, device: torch.device, index: int) -> AbstractContextManager[None]:
    return seeded(seed + index, device)


def _check_examples(problem: Problem, x: Tensor, replay: Callable[[int], AbstractContextManager[None]]) -> int:
    """Examples must not see each other, and draws must repeat; returns the number of outputs."""
    runs = []
    for index in (0, 0, 1):
        with replay(index):
            runs.append(problem(x[:2]))
    first, again, other = runs
    if not _same(first, again):
        raise ValueError(
            "two passes over the same examples with the same seed give different outputs; "
            "let the model draw its random numbers from torch's default generator, and keep no state between calls"
        )
    if len(x) > 1 and _same(first, other):  # random draws depend on the shape of the batch
        with replay(0):
            alone = problem(x[:1])
        if not _same(first[:1], alone):
            raise ValueError(
                "examples interact: the outputs for one example change when another is in the batch; "
                "use a model that treats each example alone (batch statistics: track running ones)"
            )
    return first.shape[1]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= SAME * b.abs().max())


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


def _notes(choice: Choice, scores: Scores, size: Size, ridge: float) -> list[str]:
    notes = list(choice.reasons)
    root = scores.root
    if root.rank and ridge == 0 and root.dropped * CLEAR_GAP > float(root.singular[-1]):
        notes.append(
            f"the numerical rank is unclear: singular values {float(root.singular[-1]):.2g} (counted) and "
            f"{root.dropped:.2g} (not), largest {float(root.singular[0]):.2g}; a small ridge makes it smooth"
        )
    if size.wide and ridge == 0:
        notes.append(f"{size.rows} rows of constraints for {size.params} parameters: limited by the data")
    return notes


def _allocation(table: Tensor, problem: Problem, space: InputMetric, attrs: dict[str, Any]) -> Allocation:
    axes = axis_names(len(space.shape))
    n = space.num_inputs
    names = list(problem.params)
    values = table.cpu()
    bias = values[:, n:].sum(1)
    inner = values[:, :n].reshape(-1, *space.shape)
    return Allocation(
        capacity=xr.DataArray(inner.sum(0).numpy(), dims=axes),
        bias=float(bias.sum()),
        by_parameter=xr.DataArray(values.sum(1).numpy(), dims="parameter", coords={"parameter": names}),
        table=xr.DataArray(
            inner.numpy(),
            dims=("parameter", *axes),
            coords={"parameter": names, "bias": ("parameter", bias.numpy())},
        ),
        attrs=attrs,
    )
