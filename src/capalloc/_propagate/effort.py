"""Effort for an answer from constraints: probes, outputs, steps; and how far it still is (docs/theory.md, 4)."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capalloc._derivatives.still_gates import gates_stay
from capalloc._linalg.kronecker import merged_axes
from capalloc._measure.examples import ALL_OUTPUTS, OUTPUT_PROBES, Examples
from capalloc._measure.forecast import seconds_of_operation, seconds_of_product
from capalloc._measure.precondition import CONSTANT_TIME, Sample
from capalloc._measure.refine import Refinement
from capalloc._measure.work_plan import LONGEST_APART, Size
from capalloc._model.problem import Problem, random_signs
from capalloc._runtime.memory import Budget
from capalloc._settings import Block

#: Where combinations of outputs make fewer constraints for each parameter, or fewer of the constant, steps lead to what
#: these constrain, away from the answer of all outputs (docs/validation.md). Large networks have no time for them.
ROWS_PER_PARAM, CONSTANT_ROWS_PER_PARAM = 4, 0.5
#: What is missing after so many steps or more, at most, in units of the change since half of them: chosen on 36
#: networks (docs/validation.md).
FIRST_TOLD, MISSING_RATIO = 4, 2.0
#: Steps of the first reading, and what is missing before and after it, at most, whatever the change; and where examples
#: are fewer than so many, or the constant does not stand beside the blocks (docs/validation.md).
FIRST_READ, MISSING_AT_MOST, NEEDED_EXAMPLES, MISSING_OF_FEW = 2, (0.12, 0.08), 4, (0.25, 0.15)
#: Share of the total from which on steps have found enough to be trusted as those of the 36 networks, which had found
#: so much after two; and the least that a doubling of steps is taken to find.
NEEDED_SHARE, LEAST_SHARE = 1 / 3, 0.02
#: Distance at which "auto" stops, and that at which it does where twice the steps would take longer than there is time;
#: most steps; the part of it that the probes may add.
ENOUGH, NEAR_ENOUGH, MOST_STEPS, NOISE = 0.03, 0.05, 16, 0.02
#: Total variation that standard errors leave, in units of their sum: half the mean of |z|, z standard normal, and what
#: is told of it, half as much again for chance.
EXPECTED_SHARE, TOLD_SHARE = 0.4, 0.6
#: What blocks and the constant are known from; less of large networks, whose constant does not stand beside them.
SAMPLE, SAMPLE_OF_LARGE, LARGE_PARAMS = Sample(32, 8, 2048, 1024), Sample(4, 2, 512), 2_000_000
#: Fewest and most probes that "auto" takes.
FEWEST_PROBES, MOST_PROBES = 16, 64
#: Probes times examples of large networks, with two combinations of outputs: some thirty passes.
PRODUCTS_OF_LARGE = 4
#: A reading is a product with C, a step one with C and C'.
STEPS_OF_A_READING = 0.5
#: Share of the time that blocks without a step take; operations of eigenvectors in units of their number cubed.
ALONE, OF_EIGENVECTORS = 0.85, 10
#: Passes of an example that a row of the blocks takes, and that a step takes for each output, where gates stay and
#: where they move; those of a large network, and for each of its examples; its turns. They are of a few networks, and
#: rough.
PASSES = {True: (2.0, 1.2), False: (8.0, 5.0)}
PASSES_OF_LARGE, TURNS_OF_LARGE = {True: (20, 13), False: (30, 25)}, 20
#: Vectors of a probe beside one for each step.
OTHER_VECTORS = 6


def probe_vectors(examples: Examples, *numbers: int) -> Tensor:
    """Return random signs, one for each parameter, (numbers, params), in the precision of products."""
    found = examples.x.new_empty(len(numbers), examples.num_params)
    for row, k in zip(found, numbers, strict=True):
        row.copy_(random_signs(row.shape, examples.x, examples.generator(9, k)))
    return found


def readings_at(settings: Block, steps: int) -> tuple[int, ...]:
    """Return numbers of steps to read after: those asked for and half of them, or 2, 4, 8 ... until it is enough."""
    if settings.num_steps != "auto":
        return steps // 2, steps
    return tuple(2**k for k in range(1, steps.bit_length()))


def in_memory(at: tuple[int, ...], settings: Block, z: Tensor, budget: Budget) -> tuple[int, ...]:
    """Return the numbers of steps, those of "auto" as far as the vectors of all steps fit.

    Raises:
        MemoryError: the vectors do not fit.

    """
    each = z.numel() * z.element_size()
    while settings.num_steps == "auto" and len(at) > 1 and (at[-1] + OTHER_VECTORS) * each > budget.num_bytes:
        at = at[:-1]
    what = f"{at[-1]} steps of {len(z)} probes of {z.shape[1]} parameters"
    budget.set_aside(
        (at[-1] + OTHER_VECTORS) * each, what, "take fewer steps or probes, or fewer parameters with params="
    )
    return at


def probes_for(size: Size) -> int:
    """Return the number of probes that leaves an error of about `NOISE` of the map.

    A slot's capacity kappa_s has the variance of at most kappa_s / 2 from one probe where its constraints are many, so
    that n slots that share p leave a distance of .28 sqrt(n / (p probes)).
    """
    wanted = math.ceil((EXPECTED_SHARE / NOISE) ** 2 * size.slots / size.params / 2)
    if size.params > LARGE_PARAMS:
        return max(2, math.ceil(PRODUCTS_OF_LARGE / size.examples))
    return min(max(wanted, FEWEST_PROBES), MOST_PROBES)


@dataclass(frozen=True)
class Effort:
    """The examples, with their combinations of outputs, that probes read, and the steps that these take at most."""

    examples: Examples
    probes: int
    steps: int


def in_time(wanted: Effort, left: float, fixed: bool, keep: bool) -> Effort:
    """Return what there is time for: two steps of sixteen probes or more, else none, of fewer outputs if not `fixed`.

    With `keep` the constraints of every batch are held.
    """
    examples, step = wanted.examples, seconds_of_step(wanted.examples)
    enough = left >= FEWEST_PROBES * (FIRST_READ + STEPS_OF_A_READING) * step
    steps = wanted.steps if enough else 0
    if not steps and not fixed:
        fewer = fewer_outputs(examples, left, step)
        if fewer is not examples:
            examples = fewer.prepared() if keep else fewer
            step = seconds_of_step(examples)
    probes = affordable(wanted.probes, left, (min(steps, FIRST_TOLD) + STEPS_OF_A_READING) * step)
    return Effort(examples, probes, steps)


def fewer_outputs(examples: Examples, left: float, step: float) -> Examples:
    """Return them with as many random combinations of outputs as the fewest probes have time for, if not with all.

    A step of a probe takes `step` seconds, a reading of what it sees a part of that. Two combinations or more tell
    what outputs have in common.
    """
    outputs = examples.num_constrained
    kept = max(2, int(outputs * left / (FEWEST_PROBES * STEPS_OF_A_READING * step)))
    return replace(examples, output_probes=kept, ready=()) if kept < outputs else examples


def affordable(probes: int, left: float, each: float) -> int:
    """Return as many probes as the seconds left allow, two or more, where a probe takes so many."""
    return max(2, min(probes, int(left / each)))


def seconds_of_step(examples: Examples) -> float:
    """Time a probe's products with C and C', by those of the first batch."""
    batches = len(examples.x) / min(examples.batch_size, len(examples.x))
    return seconds_of_product(examples, examples.vectors) * batches / examples.vectors


def forecast_seconds(problem: Problem, size: Size, of_pass: float, limit: float) -> float:
    """Forecast blocks and steps, where a pass of an example takes `of_pass` seconds.

    Four steps of all probes, where these fit into the limit; else none, of as many probes as there is time for.
    """
    if size.params > LARGE_PARAMS:
        return seconds_of_large(problem, size.examples, of_pass)
    of_turn, of_bases = seconds_of_bases(problem, SAMPLE.longest)
    of_row, of_output = PASSES[gates_stay(problem, problem.probe, nullcontext)]
    each = of_row * of_pass + of_turn
    of_examples = 2 * min(SAMPLE.examples, size.examples) * SAMPLE.each * each
    of_constant = min(SAMPLE.constant, LONGEST_APART // size.params) * each
    of_examples += of_bases
    blocks = of_examples + min(of_constant, CONSTANT_TIME * max(0.0, limit - of_examples))
    outputs = size.outputs if size.outputs <= ALL_OUTPUTS else OUTPUT_PROBES
    step = of_output * of_pass * size.examples * outputs + 2 * of_turn
    steps = FIRST_TOLD
    if FEWEST_PROBES * (FIRST_READ + STEPS_OF_A_READING) * step > limit - blocks:
        steps, limit = 0, ALONE * limit  # fewer probes, or outputs, stand for what there is no time for
    return max(blocks, min(limit, blocks + probes_for(size) * (steps + STEPS_OF_A_READING) * step))


def seconds_of_large(problem: Problem, examples: int, of_pass: float) -> float:
    """Forecast the blocks of a large network, whatever time there is: they are the least."""
    once, each = PASSES_OF_LARGE[gates_stay(problem, problem.probe, nullcontext)]
    of_turn, of_bases = seconds_of_bases(problem, SAMPLE_OF_LARGE.longest)
    return of_pass * (once + each * max(2, examples)) + TURNS_OF_LARGE * of_turn + of_bases


def seconds_of_bases(problem: Problem, longest: int) -> tuple[float, float]:
    """Return how long it takes to turn a vector into the bases of the blocks, and to find these."""
    turned, found = 0.0, 0.0
    for p in problem.params.values():
        axes = [axis for axis in merged_axes(p.shape) if axis <= longest]
        turned += 2 * p.numel() * sum(axes)
        found += OF_EIGENVECTORS * sum(axis**3 for axis in axes)
    of_operation = seconds_of_operation(problem.probe.device)
    return turned * of_operation, found * of_operation


def steps_for(settings: Block, examples: Examples) -> int:
    """Return the number of steps to take, at most, if time allows."""
    if settings.num_steps != "auto":
        return settings.num_steps
    if examples.num_params > LARGE_PARAMS:
        return 0
    return MOST_STEPS if has_many_constraints(examples) else 0


def has_many_constraints(examples: Examples) -> bool:
    """Return True where all outputs are constrained, or their combinations constrain as all would."""
    if examples.output_probes is None:
        return True
    of_constant, params = examples.num_examples * examples.output_probes, examples.num_params
    return examples.num_rows >= ROWS_PER_PARAM * params and of_constant >= CONSTANT_ROWS_PER_PARAM * params


@dataclass(frozen=True)
class Enough:
    """The rule that ends the steps."""

    settings: Block
    began: float

    def __call__(self, found: Refinement) -> bool:
        """Return True where what is missing is small, or the time is over."""
        if self.settings.num_steps != "auto" or found.last.steps < FIRST_TOLD:
            return False  # two steps say little of networks that have the constraints for more
        return self.late or missing(found) < (ENOUGH if self.left >= self.taken else NEAR_ENOUGH)

    def after(self, steps: int, seconds: float) -> bool:
        """Return True where the time is over before another step, of so many seconds, and its reading."""
        return steps >= FIRST_READ and self.left < (1 + STEPS_OF_A_READING) * seconds

    @property
    def taken(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.began

    @property
    def limit(self) -> float | None:
        """Seconds that "auto" may take."""
        return self.settings.max_seconds if self.settings.num_steps == "auto" else None

    @property
    def left(self) -> float:
        """Seconds that are left of them."""
        return math.inf if self.limit is None else self.limit - self.taken

    @property
    def late(self) -> bool:
        """True where the time of "auto" is over."""
        return self.left < 0


def missing(found: Refinement, total: float | None = None) -> float:
    """Return how far the answer may still be, as a share of the capacity to be moved, the constant counted.

    Steps that have found a small share of `total`, by default of the parameters that move, move the map in proportion
    to what they find: what the others will move follows from that.
    """
    last = found.last
    few = len(last.moments.first) < NEEDED_EXAMPLES or not last.constant
    of_blocks, after_two = MISSING_OF_FEW if few else MISSING_AT_MOST
    used = float((~found.unused).sum()) if total is None else total
    seen = last.least_total / max(used, 1.0)
    most = after_two if last.steps >= FIRST_READ and seen >= NEEDED_SHARE else of_blocks
    if last.steps < FIRST_TOLD:
        return most
    gained = max(seen - found.half.least_total / max(used, 1.0), LEAST_SHARE)
    return min(most, max(MISSING_RATIO, (1 - seen) / gained) * distance(last.held(used), found.half.held(used)))


def distance(a: Tensor, b: Tensor) -> float:
    """Return the total-variation distance of two maps, each divided by its sum."""
    tiny = torch.finfo(a.dtype).tiny
    return float((a / a.sum().clamp(min=tiny) - b / b.sum().clamp(min=tiny)).abs().sum()) / 2
