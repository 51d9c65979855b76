"""Capacity from the constraints themselves: exact where they are few, else by blocks and steps (docs/theory.md, 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from capalloc._derivatives.tape import Tape, names_of
from capalloc._energy import markov
from capalloc._energy.batches import Batches, solve_in_range
from capalloc._linalg.credibility import credible, students_factor
from capalloc._measure.dense import measure_dense
from capalloc._measure.example_sums import ExampleSums
from capalloc._measure.examples import Examples, plan_examples
from capalloc._measure.forecast import over_limit
from capalloc._measure.precondition import Sample, inverse_root
from capalloc._measure.rank import rank_of
from capalloc._measure.refine import ProbeReading, Refinement, blocks_alone, refine
from capalloc._measure.task import Task
from capalloc._measure.work_plan import Plan, Size
from capalloc._model.made_from import words_for_axes
from capalloc._model.problem import Problem
from capalloc._operators.decompositions import RECURRENT
from capalloc._propagate.by_solver import AS_HELD, holds_gates
from capalloc._propagate.effort import (
    LARGE_PARAMS,
    SAMPLE,
    SAMPLE_OF_LARGE,
    TOLD_SHARE,
    Effort,
    Enough,
    in_memory,
    in_time,
    missing,
    probe_vectors,
    probes_for,
    readings_at,
    steps_for,
)
from capalloc._runtime.memory import budget_of, give_back
from capalloc._runtime.phases import Phases
from capalloc._runtime.steps import Steps
from capalloc._settings import PLAIN_RUN, Block, Dense
from capalloc.results.allocation import Allocation
from capalloc.results.regions import named_parts

#: Seconds of one core, at most, for each of rows params^2 + 6 params^3 products, and for each number that rows add up
#: (`numbers_in_use`), of networks of 360 to 3400 parameters, 4000 to 141,000 rows and up to 160 steps; and how many of
#: them the exact answer may take unasked.
OF_PRODUCT, CUBES, OF_NUMBER, EXACT_SECONDS = 1e-10, 6, 6.5e-9, 30.0
#: Parameters up to which the total is the rank of as many random combinations of constraints, in float64.
RANKED_PARAMS = 2000
#: What the graph's symmetries are where they are not all: some of those of the function, or those of another one.
LEAST = "symmetries are a lower bound"


@dataclass(frozen=True)
class Count:
    """The total capacity: a rank, or a range and its upper end."""

    total: float
    range: tuple[float, float]
    exact: bool
    notes: tuple[str, ...] = ()


def exact_seconds(size: Size, in_use: int) -> float:
    """Return what the exact answer takes at most, with `numbers_in_use`; infinite where its matrices are not made."""
    products = (size.rows + CUBES * size.params) * size.params**2
    return math.inf if size.wide else OF_PRODUCT * products + OF_NUMBER * size.rows * in_use


def numbers_in_use(problem: Problem) -> int:
    """Return the numbers of all uses of parameters, which a row adds up: a recurrence uses its own in every step.

    A fused layer is taken to run over all places of the input.
    """
    with Tape(names_of(problem)) as tape:
        problem(problem.probe)
    sizes = {name: p.numel() for name, p in problem.params.items()}
    used = sum(sizes[name] for call in tape.calls for name in (call.weight, call.bias) if name is not None)
    fused = sum(sizes[name] for name, function in tape.opaque.items() if function in RECURRENT)
    return max(problem.num_params, used + fused * problem.probe[..., 0].numel())


def is_small(size: Size, in_use: int) -> bool:
    """Return True where the exact answer takes half a minute at most."""
    return exact_seconds(size, in_use) <= EXACT_SECONDS


def exactly(task: Task) -> Allocation:
    """Return the exact answer, by the dense solver of `measure`."""
    found = measure_dense(task, 0.0, Dense(), PLAIN_RUN, Steps())
    return found.replace(attrs=found.attrs | idle(task.size.params, found.attrs["unused_params"], found.attrs["rank"]))


def idle(params: int, unused: int, rank: int) -> dict[str, Any]:
    """Return the record of what changes nothing on these examples: unused parameters, and directions of the others.

    Symmetries are among these directions. Constraints see parameters that steer gates, so that none goes unseen.
    """
    counts = {"unused_params": unused, "unseen_params": 0, "unseen_share": 0.0}
    return {**counts, "symmetries": params - unused - rank, "symmetries_exact": False}


@dataclass(frozen=True)
class Planned:
    """The work on a task as it is cut; that of a large network has the model in the precision of products alone."""

    task: Task
    examples: Examples
    probes: int
    sample: Sample
    keep: bool
    phases: Phases


def planned(task: Task, settings: Block) -> Planned:
    """Return the plan of `by_blocks`, which takes the model of a large task over."""
    phases = Phases()
    ranked, large = task.size.params <= RANKED_PARAMS, task.size.params > LARGE_PARAMS
    probes = probes_for(task.size) if settings.num_probes == "auto" else settings.num_probes
    sample = SAMPLE_OF_LARGE if large else SAMPLE
    alone = large and settings.num_steps in ("auto", 0)
    together = (1 if alone else 2) if large else probes  # large ones hold few vectors
    give_back(task.size.params)
    if large and settings.output_probes is None:
        examples, plan = plan_combinations(task, settings, together, sample.longest, own=True)
    else:
        task_of_rank = replace(task, precision=torch.float64) if ranked else task
        examples, plan = plan_examples(task_of_rank, settings, together, sample.longest, own=large)
    if large:
        task = replace(task, problem=examples.operator.problem)
        examples = replace(examples, replay=task.replay)
    examples = replace(examples, batch_size=plan.batch_size, vectors=plan.chunk)
    if alone and examples.operator.name == "piecewise":
        examples = replace(examples, lean=True, vectors=2, longest=1)  # two share what an output's layers tell
    phases("derivatives")
    keep = plan.keep and not alone  # two passes are no reason to hold layers
    return Planned(task, examples, probes, sample, keep, phases)


def by_blocks(plan: Planned, settings: Block) -> Allocation:
    """Return the answer of the blocks, and of as many steps as were asked for or help."""
    task, examples, probes, phases = plan.task, plan.examples, plan.probes, plan.phases
    give_back(task.size.params)
    ranked, large = task.size.params <= RANKED_PARAMS, task.size.params > LARGE_PARAMS
    if plan.keep:
        examples = examples.prepared()
    ends = Enough(settings, task.started)
    root = inverse_root(examples, SAMPLE_OF_LARGE if ends.late else plan.sample, ends.left)
    give_back(task.size.params)
    phases("blocks")
    effort = Effort(examples, probes, steps_for(settings, examples))
    if not large and settings.num_probes == "auto" and ends.limit is not None:
        fixed = ranked or settings.output_probes is not None  # a rank is of all outputs
        effort = in_time(effort, ends.left, fixed, plan.keep)
    examples, numbers = effort.examples, torch.arange(effort.probes)
    sums = ExampleSums(examples, Steps(examples))
    if effort.steps and not ends.late:
        z = probe_vectors(examples, *numbers.tolist()).double()
        left = budget_of(z.device)  # beside the blocks, and the constraints that are held
        at = in_memory(readings_at(settings, effort.steps), settings, z, left)
        found = refine(sums, root, z, at, ends, ends.after)
    else:  # few at a time: each is as long as the model is large
        directions = (probe_vectors(examples, *part.tolist()) for part in numbers.split(2 if examples.lean else 1))
        found = blocks_alone(sums, root, directions, together=not large)
    del root
    give_back(task.size.params)
    phases("steps")
    counted = count(task, examples, found, rank_of(sums) if ranked else None)
    phases("total")
    answer = allocation(task, examples, found, counted)
    notes = [*answer.attrs["notes"], *over_limit(ends.taken, ends.limit)]
    return answer.replace(attrs=answer.attrs | {"phases": phases.shares(), "notes": notes})


def plan_combinations(
    task: Task, settings: Block, together: int, longest_axis: int, own: bool = False
) -> tuple[Examples, Plan]:
    """Return the examples of a large network with two combinations of outputs each, or one if memory holds no more."""
    try:
        return plan_examples(task, replace(settings, output_probes=2), together, longest_axis, own)
    except MemoryError:
        return plan_examples(task, replace(settings, output_probes=1), together, longest_axis, own)


def count(task: Task, examples: Examples, found: Refinement, rank: int | None) -> Count:
    """Return the total: a rank, or parameters less symmetries as far as they are known."""
    used = task.size.params - int(found.unused.sum())
    if rank is not None and (rank == used or examples.output_probes is None):  # more outputs may constrain more
        return Count(rank, (rank, rank), exact=True, notes=tuple(task.size.limits(rank)[0]))
    reached = max(found.last.least_total, rank or 0)
    try:
        symmetries, note = symmetries_of(task)
    except (NotImplementedError, ValueError, TypeError, MemoryError) as error:
        symmetries, note = 0, f"symmetries are not counted: {str(error).splitlines()[0]}"
    total, upper = float(used - symmetries), float(used if note == AS_HELD else used - symmetries)
    notes = [note] if note else []
    if task.size.rows < total:
        notes.append(
            f"{task.size.rows} constraints of these examples for the {used} parameters that they move: the total is "
            "what more such examples would constrain"
        )
    return Count(total, (min(reached, total), upper), exact=False, notes=tuple(notes))


def symmetries_of(task: Task) -> tuple[int, str]:
    """Return the symmetries that the graph shows, of large networks on one example, and the note on what they are."""
    problem = replace(task.problem, inputs=task.problem.probe) if task.size.params > LARGE_PARAMS else task.problem
    result, batches = solve_in_range(
        lambda dtype: Batches.of(problem, "data", "auto", dtype=dtype),
        lambda batches: markov.solve(batches, single=batches.number == 1, layers=False, table=False, linear=True),
    )
    return int(result.symmetries), AS_HELD if holds_gates(batches, result) else LEAST


def allocation(task: Task, examples: Examples, found: Refinement, counted: Count) -> Allocation:
    """Return the shape that the last reading gives, with the total counted."""
    last: ProbeReading = found.last
    probes = len(last.slots)
    places = task.problem.places
    held = capped(last.held(counted.total).cpu().numpy(), task.size.examples * task.size.outputs)
    slots = places.pooled(torch.as_tensor(held)).numpy()
    by_probe = places.pooled(last.slots)
    seen, errors = scaled(by_probe, counted.total, places.number)
    errors *= slots / np.maximum(seen, np.finfo(float).tiny)
    of_regions = errors_of_regions(task, by_probe.cpu().numpy(), slots)
    tensors, tensor_errors = scaled(last.tensors, counted.total)
    tensor_errors *= students_factor(len(last.tensors) - 1)  # each stands alone, as the constant does
    sizes = np.array([p.numel() for p in task.problem.params.values()], float)
    tensors = capped(tensors, sizes)
    n, shape, axes = places.number, places.shape, places.dims
    names = list(task.problem.params)
    lacking = missing(found, counted.total)
    share = TOLD_SHARE / max(counted.total, 1.0)
    noise, noise_of_regions = share * float(errors.sum()), share * sum(of_regions.values())
    attrs: dict[str, Any] = task.attrs() | {
        "kind": "propagated",
        "solver": "block",
        "differentiation": examples.operator.name,
        "num_probes": probes,
        "output_probes": examples.output_probes,
        "num_steps": last.steps,
        "missing": lacking,
        "noise": noise,
        "noise_of_regions": noise_of_regions,
        "total_range": list(counted.range),
        "total_exact": counted.exact,
        **task.size.limits(counted.total)[1],
        **idle(task.size.params, int(found.unused.sum()), round(counted.total)),
        "bias_standard_error": float(errors[n:].sum()) * students_factor(probes - 1),
        "by_parameter_standard_error": dict(zip(names, tensor_errors.tolist(), strict=True)),
        "by_region_standard_error": of_regions,
        "notes": [stated(lacking, noise, noise_of_regions, last.steps), *counted.notes],
    }
    shaped = (axes, errors[:n].reshape(shape))
    return Allocation(
        capacity=xr.DataArray(slots[:n].reshape(shape), dims=axes).assign_coords(standard_error=shaped),
        bias=float(np.sum(slots[n:])),
        by_parameter=xr.DataArray(tensors, dims="parameter", coords={"parameter": names}),
        attrs=attrs,
    )


def scaled(values: Tensor, total: float, alike: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the means over probes, (k, n) to (n,), none below zero and summing to `total`, and their standard errors.

    A probe's whole moves all its columns, and the total is known: errors are those of shares. The first columns, so
    many, are `alike`: of inputs.
    """
    mean = values.mean(0).clamp(min=0)
    whole = mean.sum().clamp(min=torch.finfo(values.dtype).tiny)
    beside = values - values.sum(1, keepdim=True) * (mean / whole)
    unit = total / whole
    variance = beside.var(0)
    of_row = mean[:alike].square()  # a slot has few rows, each of which a probe squares
    variance[:alike] = credible(variance[:alike], of_row, 2 / (len(values) - 1))
    return (unit * mean).cpu().numpy(), (unit * (variance / len(values)).sqrt()).cpu().numpy()


def errors_of_regions(task: Task, seen: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """Return standard errors of the regions that results name, by what probes have `seen`, (k, s), and slots hold."""
    places = task.problem.places
    n, words = places.number, words_for_axes(task.problem.model, task.x) or ()
    axes = words if len(words) == len(places.dims) else places.dims

    def summed(values: np.ndarray) -> xr.DataArray:
        shaped = values[:, :n].reshape(-1, *places.shape)
        return named_parts(xr.DataArray(shaped, dims=("probe", *axes), coords=places.coords), keep="probe")

    by_probe, sums = summed(seen), summed(held[None])[0]
    every = torch.as_tensor(np.hstack([by_probe, seen[:, n:]]))
    mean, errors = (one[: len(sums)] for one in scaled(every, float(held.sum()), len(sums)))
    names = sums["region"].to_numpy().tolist()
    return dict(zip(names, (errors * sums.to_numpy() / np.maximum(mean, np.finfo(float).tiny)).tolist(), strict=True))


def capped(values: np.ndarray, most: float | np.ndarray) -> np.ndarray:
    """Return values of the same sum, none above `most`: what is too much goes to the others in proportion.

    A tensor holds no more than its parameters, and a slot no more than its constraints; blocks alone give some tensors
    far more, and chance some slots a little.
    """
    most = np.broadcast_to(np.asarray(most, float), values.shape)
    if np.isclose(most.sum(), values.sum(), rtol=1e-9) and (values > 0).all():
        return np.asarray(most * (values.sum() / most.sum()))
    if most.sum() <= values.sum():
        return values
    full = np.zeros(len(values), bool)
    while ((values > most) & ~full).any():
        full |= values > most
        rest = values.sum() - most[full].sum()
        others = np.where(full, 0.0, values)
        if not others.sum() > 0:
            break
        values = np.where(full, most, others * (rest / others.sum()))
    return values


def stated(lacking: float, noise: float, noise_of_regions: float, steps: int) -> str:
    """Return the sentence that says how far the map may be from the measured one."""
    how = f"after {steps} steps" if steps else "from blocks alone"
    return (
        f"estimated {how}: the map, the constant counted, is within about {lacking + noise:.2f} of the measured one in "
        f"total variation ({lacking:.2f} not yet reached, {noise:.2f} from random probes, {noise_of_regions:.2f} for "
        "sums of regions)"
    )
