"""Scales for the ridge: that of a noise level and a prior, and that of G."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from capalloc._derivatives import exact_derivatives
from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._measure.example_sums import ExampleSums
from capalloc._measure.examples import plan_examples
from capalloc._measure.task import Task, make_task
from capalloc._model.input_metric import InputMetricLike
from capalloc._model.problem import ModelLike, OutputSelection
from capalloc._model.selected_params import ParamSelection
from capalloc._runtime.arguments import checked
from capalloc._runtime.steps import Steps
from capalloc._settings import Coordinates, Dense, Stochastic

#: What `ridge="auto"` takes of the mean eigenvalue of G, and where rows are fewer than parameters.
AUTO_SHARE, AUTO_SHARE_OF_FEW_ROWS = 1e-2, 0.1
#: Probes of the mean eigenvalue: its relative standard error is a half at most, and small for many alike eigenvalues.
SCALE_PROBES = 8


@checked
def ridge_from_noise(noise_variance: float, num_examples: int, prior_variance: float) -> float:
    """The ridge at which constraints count by how much better they determine parameters than the prior does.

    With independent errors of variance $s^2$ on every constraint of N examples and independent parameters of prior
    variance $t^2$, the posterior precision is $N G / s^2 + 1 / t^2$, proportional to $G + s^2 / (N t^2)$. In
    `capalloc.effective_parameters` constraints are outputs, and the total is MacKay's effective number of parameters.
    In `capalloc.measure` they are gradients to the inputs, which no data set observes: the total is then a count of the
    function's parameters, and far larger (docs/theory.md, section 2); and in its coordinates $log|theta|$ $t^2$ is the
    prior variance of $log|theta|$, that of relative changes.

    Args:
        noise_variance: $s^2$, that of the outputs; for `measure` in squared units of the output for one standard
            deviation of the input (of the metric).
        num_examples: N.
        prior_variance: $t^2$, for example the variance of the initial weights; in $log|theta|$, 1 for a factor of e.

    Raises:
        ValueError: an argument is not a finite positive number.

    Reference: D. MacKay, Bayesian interpolation, Neural Computation 4 (1992) 415-447.

    """
    given = {"noise_variance": noise_variance, "num_examples": num_examples, "prior_variance": prior_variance}
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    return noise_variance / (num_examples * prior_variance)


@checked
def mean_eigenvalue(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    metric: InputMetricLike = DEFAULT_METRIC,
    intercept: bool = True,
    *,
    params: ParamSelection = None,
    num_probes: int = SCALE_PROBES,
    coordinates: Coordinates = "log",
) -> float:
    """Mean of G's eigenvalues, a scale for the ridge: $trace G / min(params, rows)$.

    Its trace is $E |C' xi|^2$, $xi$ normal. With fewer rows of constraints (examples x outputs x (inputs + 1)) than
    parameters the others are zero: left out. So are parameters of zero in the coordinates $log|theta|$.

    Args:
        model: as in `measure`, and so are the next ones.
        inputs: the examples.
        outputs: the outputs that count, as in `measure`.
        metric: the metric of the inputs, as in `measure`.
        intercept: give the bias an input of its own.
        params: the parameters that count, as in `measure`.
        num_probes: more make it more precise; its relative standard error is root 2 / num_probes at most.
        coordinates: those of the parameters, as in `capalloc.solvers.Dense`.

    Raises:
        ValueError, TypeError, MemoryError: as `measure`.

    """
    settings = Stochastic(num_probes=num_probes, coordinates=coordinates)
    with exact_derivatives():
        task = make_task(model, inputs, outputs, metric, intercept, params)
        return _estimate(task, settings, Steps())[0]


def auto_ridge(task: Task, asked: Dense | Stochastic, steps: Steps) -> float:
    """Return a share of the mean eigenvalue of G, for all ranks.

    Raises:
        ValueError: G is zero.

    """
    settings = Stochastic(num_probes=SCALE_PROBES, coordinates=asked.coordinates)
    if isinstance(asked, Stochastic):
        settings = replace(settings, output_probes=asked.output_probes)
    else:
        task = replace(task, precision=torch.float64)
    mean, fewer_rows = _estimate(task, settings, steps)
    if not mean > 0:
        raise ValueError(
            'ridge="auto" is a share of the mean eigenvalue of G, which is zero: no parameter moves the outputs; give '
            "a number"
        )
    return (AUTO_SHARE_OF_FEW_ROWS if fewer_rows else AUTO_SHARE) * mean


def _estimate(task: Task, settings: Stochastic, steps: Steps) -> tuple[float, bool]:
    """Return the mean of G's eigenvalues, and whether rows are fewer than parameters; on all ranks."""
    examples, plan = plan_examples(task, settings)
    plan = steps.agree("plan of the scale", lambda: plan)
    examples = replace(examples, batch_size=plan.batch_size, vectors=plan.chunk)
    own = examples.shard(steps.reducer.shard(len(examples.x)))
    sums = ExampleSums(own, steps.over(own))
    probes = plan.probes
    trace = sums.steps.lead("scale", lambda: float(sums.noise(0, probes).square().sum()) / probes)
    return trace / max(examples.rank, 1), examples.fewer_rows


def check_ridge(ridge: float) -> None:
    """Refuse a ridge that leaves the stochastic solver without an answer, and say how to choose one."""
    if not 0 < ridge < math.inf:
        raise ValueError(
            f"the stochastic solver needs a ridge > 0, got {ridge!r}; with noise of variance s2 on the "
            "constraints of N examples and parameters of prior variance t2 it is s2 / (N t2), see "
            "capalloc.solvers.ridge_from_noise; or take 1e-2 of capalloc.solvers.mean_eigenvalue(model, "
            'inputs), 0.1 of it where rows are fewer than parameters, as ridge="auto" does'
        )
