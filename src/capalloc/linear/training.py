"""A linear model trained to the optimum of its exact population loss, in float64, by scipy.

L-BFGS goes down from the initial parameters into a good valley; nonlinear least squares, which works with the Jacobian
of the filter and so copes with the bad scales of products of layers, takes the filter to the last digits.

Index convention: J is (inputs, params), the filter w (inputs,), the parameters one vector (params,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize
from torch import Tensor, nn
from torch.func import jacfwd

from capalloc._model.problem import Problem, prepare
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.linear.metrics import Metric
from capalloc.linear.of_model import linear_map
from capalloc.linear.prediction_task import PredictionTask
from capalloc.results.text import briefly

#: Largest entry of the gradient, relative to the variance of the process, at which training stops, and up to which it
#: counts as an optimum where rounding lets no step come closer. The first is far below what a loss needs: weights that
#: switch a branch off must be zero to working precision for the rank of the Jacobian to show it.
OPTIMAL_GRADIENT, NEAR_OPTIMAL_GRADIENT = 1e-13, 1e-6
#: Relative change of the loss and of the parameters that counts as rounding.
ROUNDING_OF_STEPS = 1e-15
#: Excess loss of a filter that overflows, relative to the variance.
DIVERGED = 1e30
#: Steps that L-BFGS remembers.
HISTORY = 50
#: Windows up to this many values keep the root of their covariance as a matrix.
ROOT_MATRIX = 4096


@dataclass(frozen=True)
class Trained:
    """A model at its optimum.

    Args:
        model: a copy of the one given, in float64, trained.
        filter: its w, (inputs,) in time order.
        loss: $E(Y - w'X)^2$.
        gradient: largest entry of the loss's gradient in the parameters, over the variance of the process.
        converged: whether that fell below 1e-6 and training stopped because no step lowers the loss beyond rounding.

    """

    model: nn.Module
    filter: Tensor
    loss: float
    gradient: float
    converged: bool

    __repr__ = briefly


@checked
@undisturbed()
def train(model: nn.Module, task: PredictionTask, max_iterations: int = 200) -> Trained:
    """Minimise the exact population loss of a linear model from where its parameters are.

    Args:
        model: from windows (examples, inputs) to predictions (examples, 1), linear in them.
        task: what to predict.
        max_iterations: of L-BFGS, and of least squares after it.

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
    fit = FilterFit(problem, task)
    limits = {"maxiter": max_iterations, "maxfun": 2 * max_iterations, "maxcor": HISTORY, "gtol": OPTIMAL_GRADIENT}
    near = minimize(fit.excess, fit.start(), jac=True, method="L-BFGS-B", options=limits | {"ftol": 0.0})
    whiten = whitener(task.metric)
    found = least_squares(
        lambda point: whiten(fit.error(point)[:, None])[:, 0].numpy(),
        near.x,
        lambda point: whiten(fit.jacobian(point)).numpy(),
        ftol=ROUNDING_OF_STEPS,
        xtol=ROUNDING_OF_STEPS,
        gtol=OPTIMAL_GRADIENT * task.variance / 2,
        max_nfev=max_iterations,
    )
    gradient = 2 * float(np.abs(found.grad).max()) / task.variance
    values = fit.unpack(torch.from_numpy(found.x))
    with torch.no_grad():
        for name, p in values.items():
            problem.params[name].copy_(p)
    w = linear_map(problem, values)[0]
    return Trained(problem.model, w, float(task.loss(w)), gradient, found.success and gradient <= NEAR_OPTIMAL_GRADIENT)


@dataclass(frozen=True)
class FilterFit:
    """A model's filter as a function of one vector of parameters, beside the best filter of the task."""

    problem: Problem
    task: PredictionTask

    def start(self) -> NDArray[np.float64]:
        """Return the parameters as they are."""
        return torch.cat([p.detach().flatten() for p in self.problem.params.values()]).numpy()

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """Split the vector by name and shape."""
        params = self.problem.params
        parts = theta.split([p.numel() for p in params.values()])
        return {name: part.reshape(p.shape) for (name, p), part in zip(params.items(), parts, strict=True)}

    def filter(self, theta: Tensor) -> Tensor:
        """Return w(theta)."""
        return linear_map(self.problem, self.unpack(theta))[0]

    def error(self, point: NDArray[np.float64]) -> Tensor:
        """Return w(theta) - w*, (inputs,)."""
        return self.filter(torch.from_numpy(point)) - self.task.optimal_filter

    def jacobian(self, point: NDArray[np.float64]) -> Tensor:
        """Return dw/dtheta, (inputs, params)."""
        J: Tensor = jacfwd(self.filter)(torch.from_numpy(point))
        return J

    def excess(self, point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return (w - w*)'S(w - w*), over the variance, and its gradient."""
        theta = torch.from_numpy(point).requires_grad_()
        with torch.enable_grad():
            error = self.filter(theta) - self.task.optimal_filter
            excess = error @ self.task.metric.multiply(error) / self.task.variance
        if not bool(torch.isfinite(excess)):  # an unstable recurrence: the line search comes back
            return DIVERGED, np.zeros_like(point)
        (gradient,) = torch.autograd.grad(excess, theta)
        return excess.item(), gradient.numpy()


def whitener(metric: Metric) -> Callable[[Tensor], Tensor]:
    """Make the map J -> R'J with R R' = S, a matrix for short windows and without one for long ones."""
    if metric.size is None or metric.size > ROOT_MATRIX:
        return lambda J: metric.whiten(J, "cholesky")
    root = metric.whiten(torch.eye(metric.size, dtype=torch.float64), "cholesky")
    return lambda J: root @ J
