"""A linear model trained to the optimum of its exact population loss, in float64.

L-BFGS goes down from the initial parameters; Levenberg-Marquardt steps, which solve with the Jacobian of the filter
and so do not mind that products of layers are badly scaled, take it to the last digits.

Index convention: J is (inputs, params), the filter w (inputs,), the parameters one vector (params,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jacfwd

from capalloc._model.problem import Problem, prepare
from capalloc.linear.of_model import linear_map
from capalloc.linear.prediction_task import Prediction

#: Relative to the variance of the process: largest entry of the gradient at which training stops, and up to which it
#: counts as an optimum where rounding lets it come no closer; excess of a perfect filter.
GRADIENT, NEAR, PERFECT = 1e-10, 1e-6, 1e-22
#: Loss of a filter that overflows, relative to the variance.
DIVERGED = 1e30
#: Steps that L-BFGS remembers.
HISTORY = 50
#: Damping of Levenberg-Marquardt, relative to the mean diagonal of J'S J: at the start, at least, and at most.
DAMPING, LEAST, MOST = 1e-3, 1e-13, 1e13


@dataclass(frozen=True)
class Trained:
    """A model at its optimum.

    Args:
        model: a copy of the one given, in float64, trained.
        filter: its w, (inputs,) in time order.
        loss: E(Y - w'X)^2.
        gradient: largest entry of the loss's gradient in the parameters, over the variance of the process.
        converged: whether that fell below `GRADIENT`, or below `NEAR` where no step can lower the loss any more.

    """

    model: nn.Module
    filter: Tensor
    loss: float
    gradient: float
    converged: bool


def train(model: nn.Module, task: Prediction, max_iterations: int = 200) -> Trained:
    """Minimise the exact population loss of a linear model from where its parameters are.

    Args:
        model: from windows (examples, inputs) to predictions (examples, 1), linear in them.
        task: what to predict.
        max_iterations: of L-BFGS, and of Levenberg-Marquardt after it.

    Raises:
        ValueError: the model has several outputs, does not accept windows of the task's length, or max_iterations < 1.

    """
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    dtype = next((p.dtype for p in model.parameters()), torch.float64)
    problem = prepare(model, torch.zeros(1, task.metric.size, dtype=dtype), dtype=torch.float64)
    with torch.no_grad():
        outputs = problem(problem.probe).shape[1]
    if outputs != 1:
        raise ValueError(f"model has {outputs} outputs; a prediction needs one")
    fit = Fit(problem, task)
    theta, gradient, converged = polish(fit, descend(fit, fit.start(), max_iterations), max_iterations)
    w = fit.filter(theta)
    with torch.no_grad():
        for name, p in fit.unpack(theta).items():
            problem.params[name].copy_(p)
    return Trained(problem.model, w, float(task.loss(w)), gradient, converged)


@dataclass(frozen=True)
class Fit:
    """A model's filter as a function of one vector of parameters, and the task."""

    problem: Problem
    task: Prediction

    def start(self) -> Tensor:
        """The parameters as they are."""
        return torch.cat([p.detach().flatten() for p in self.problem.params.values()])

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """By name and shape."""
        params = self.problem.params
        parts = theta.split([p.numel() for p in params.values()])
        return {name: part.reshape(p.shape) for (name, p), part in zip(params.items(), parts, strict=True)}

    def filter(self, theta: Tensor) -> Tensor:
        """w(theta)."""
        return linear_map(self.problem, self.unpack(theta))[0]


def descend(fit: Fit, start: Tensor, max_iterations: int) -> Tensor:
    """L-BFGS with a strong Wolfe line search."""
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=GRADIENT,
        tolerance_change=0.0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = fit.task.loss(fit.filter(theta)) / fit.task.variance
        if not bool(torch.isfinite(loss)):  # a step too far, such as an unstable recurrence: the line search comes back
            theta.grad = torch.zeros_like(theta)
            return DIVERGED
        loss.backward()
        return loss.item()

    with torch.enable_grad():
        optimizer.step(closure)
    end = theta.detach()
    best: Tensor = min((start, end), key=lambda point: _excess(fit, fit.filter(point)))
    return best


def polish(fit: Fit, theta: Tensor, max_iterations: int) -> tuple[Tensor, float, bool]:
    """Levenberg-Marquardt: the parameters, the largest entry of the gradient, and whether it converged."""
    best, multiply, damping = fit.task.optimal_filter, fit.task.metric.multiply, DAMPING
    w = fit.filter(theta)
    excess = _excess(fit, w)
    for _ in range(max_iterations):
        J: Tensor = jacfwd(fit.filter)(theta)
        SJ = multiply(J.T.contiguous())
        slope = SJ @ (w - best)
        gradient = 2 * float(slope.abs().max()) / fit.task.variance
        if gradient <= GRADIENT or excess <= PERFECT * fit.task.variance:
            return theta, gradient, True
        step = _lower(fit, theta, excess, _damped(SJ @ J, slope), damping)
        if step is None:
            return theta, gradient, gradient <= NEAR
        theta, damping = step
        w = fit.filter(theta)
        excess = _excess(fit, w)
    return theta, gradient, gradient <= GRADIENT


def _damped(H: Tensor, slope: Tensor) -> Callable[[float], Tensor]:
    """The step -(H + damping)^-1 slope, damping relative to the mean diagonal of H."""
    identity = torch.eye(len(H), dtype=H.dtype) * H.diagonal().mean()

    def step(damping: float) -> Tensor:
        found: Tensor = torch.linalg.solve(H + damping * identity, -slope)
        return found

    return step


def _lower(
    fit: Fit, theta: Tensor, excess: float, step: Callable[[float], Tensor], damping: float
) -> tuple[Tensor, float] | None:
    """Parameters with less loss and the damping to go on with, or None where no damping finds any."""
    while damping <= MOST:
        there = theta + step(damping)
        if _excess(fit, fit.filter(there)) < excess:
            return there, max(damping / 3, LEAST)
        damping *= 4
    return None


def _excess(fit: Fit, w: Tensor) -> float:
    value = fit.task.excess(w) if bool(torch.isfinite(w).all()) else DIVERGED
    return min(value, DIVERGED)
