"""PredictionTask of a stationary process by a linear filter of its past: the exact loss, and the best filter.

Index convention: windows X = (x_(t-n+1), ..., x_t) in time order; the target is x_(t+k), k steps ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.linear.metrics import Stationary
from capalloc.linear.processes import Process


@dataclass(frozen=True)
class PredictionTask:
    """$E(x_(t+k) - w'X)^2 = r_0 - 2 c'w + w'S w$, exactly: $S = cov(X)$, $c = cov(X, x_(t+k))$."""

    metric: Stationary
    target: Tensor  # c, (inputs,), in time order

    @property
    def variance(self) -> float:
        """r_0, the loss of predicting the mean."""
        return float(self.metric.autocovariance[0])

    def loss(self, w: Tensor) -> Tensor:
        """Return the loss of a filter (inputs,) in time order."""
        return self.variance - 2 * self.target @ w + w @ self.metric.multiply(w)

    @cached_property
    def optimal_filter(self) -> Tensor:
        """The best filter of the window, $S^-1 c$: one Toeplitz solve."""
        return self.metric.solve(self.target)

    def excess(self, w: Tensor) -> float:
        """Return what w loses beyond the best filter, (w - w*)'S(w - w*), without cancellation."""
        error = w - self.optimal_filter
        return max(0.0, float(error @ self.metric.multiply(error)))


@checked
@undisturbed()
def prediction(process: Process, lags: int, steps: int = 1) -> PredictionTask:
    """Set the task of predicting a process `steps` ahead from its last `lags` values.

    Raises:
        ValueError: a number below 1.

    """
    for name, value in {"lags": lags, "steps": steps}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    r = process.autocovariance(lags + steps)
    return PredictionTask(Stationary(r[:lags]), r[steps:].flip(0))
