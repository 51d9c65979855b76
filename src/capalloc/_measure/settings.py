"""What the stochastic solver works by: ridges, settings, a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from capalloc._settings import Stochastic

#: Outputs up to which every one is constrained by default.
ALL_OUTPUTS = 100
#: Random combinations of outputs for each example beyond that.
OUTPUT_PROBES = 32


@dataclass(frozen=True)
class Settings:
    """Ridges, from the largest down, and what was asked."""

    ridges: tuple[float, ...]
    asked: Stochastic
    seed: int = 0
    progress: bool | None = False

    def probes_of(self, num_outputs: int) -> int | None:
        """Return the number of random combinations of outputs; None where every output is constrained."""
        if self.asked.output_probes is not None:
            return None if self.asked.output_probes >= num_outputs else self.asked.output_probes
        return None if num_outputs <= ALL_OUTPUTS else OUTPUT_PROBES

    @property
    def solve_tolerance(self) -> float:
        """Squared error of the solves in the norm of G + ridge, relative to the capacity found.

        It bounds the total's bias, and stays below the standard error asked of the parts.
        """
        return 0.2 * self.asked.rtol


def check_ridge(ridge: float) -> None:
    """Refuse a ridge that leaves the solver without an answer, and say how to choose one."""
    if not 0 < ridge < math.inf:
        raise ValueError(
            f"the stochastic solver needs a ridge > 0, got {ridge!r}; with noise of variance s2 on the "
            "constraints of N examples and parameters of prior variance t2 it is s2 / (N t2), see "
            "capalloc.solvers.ridge_from_noise; or take 1e-2 of capalloc.solvers.mean_eigenvalue(model, "
            "inputs), 0.1 of it where rows are fewer than parameters"
        )
