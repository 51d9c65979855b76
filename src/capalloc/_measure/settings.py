"""What the stochastic solver is told, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Outputs up to which every one is constrained by default.
ALL_OUTPUTS = 100
#: Random combinations of outputs for each example beyond that.
OUTPUT_PROBES = 32


@dataclass(frozen=True)
class Settings:
    """Accuracy, effort and what is computed; `rtol` is the relative standard error asked of every part."""

    ridges: tuple[float, ...]
    rtol: float = 0.02
    num_probes: int | str = "auto"
    max_seconds: float | None = None
    output_probes: int | None = None
    spectrum: bool = True
    seed: int = 0
    progress: bool | None = False

    def __post_init__(self) -> None:
        if not self.ridges:
            raise ValueError("ridges is empty; pass at least one ridge > 0")
        for ridge in self.ridges:
            if not 0 < ridge < math.inf:
                raise ValueError(
                    f"the stochastic solver needs a ridge > 0, got {ridge!r}; with noise of variance s2 on the "
                    "constraints of N examples and parameters of prior variance t2 it is s2 / (N t2), see "
                    "capalloc.solvers.ridge_from_noise; or take 1e-2 of capalloc.solvers.mean_eigenvalue(model, "
                    "inputs), 0.1 of it where rows are fewer than parameters"
                )
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol must lie between 0 and 1, got {self.rtol!r}; 0.02 asks for 2 % on every part")
        if self.num_probes != "auto" and not (_is_count(self.num_probes) and int(self.num_probes) >= 2):
            raise ValueError(
                f'num_probes must be "auto" or an integer >= 2 (one probe knows no error), got {self.num_probes!r}'
            )
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be > 0 or None, got {self.max_seconds!r}")
        if self.output_probes is not None and not (_is_count(self.output_probes) and self.output_probes >= 1):
            raise ValueError(f"output_probes must be an integer >= 1 or None, got {self.output_probes!r}")

    def probes_of(self, num_outputs: int) -> int | None:
        """Random combinations of outputs for each example; None where every output is constrained."""
        if self.output_probes is not None:
            return None if self.output_probes >= num_outputs else self.output_probes
        return None if num_outputs <= ALL_OUTPUTS else OUTPUT_PROBES

    @property
    def solve_tolerance(self) -> float:
        """Squared error of the solves in the norm of G + ridge, relative to the capacity found.

        It bounds the total's bias, and stays below the standard error asked of the parts.
        """
        return 0.2 * self.rtol


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
