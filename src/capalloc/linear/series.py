"""Real series that statsmodels ships, made stationary as far as a polynomial trend goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capalloc._runtime.extras import load_extra
from capalloc.linear.processes import Process, empirical


def sunspots() -> Process:
    """Load yearly numbers of sunspots, 1700 to 2008: a cycle of about 11 years.

    Raises:
        ModuleNotFoundError: statsmodels is not installed.

    """
    return empirical("sunspots", standardised(_dataset("sunspots")["SUNACTIVITY"].to_numpy(), degree=0))


def co2() -> Process:
    """Load weekly carbon dioxide at Mauna Loa, 1958 to 2001, without its quadratic trend: a yearly cycle.

    Gaps are filled linearly.

    Raises:
        ModuleNotFoundError: statsmodels is not installed.

    """
    return empirical("CO2", standardised(_dataset("co2")["co2"].interpolate().to_numpy(), degree=2), long_memory=True)


def standardised(values: NDArray[np.float64], degree: int) -> Tensor:
    """Return the series less a polynomial in time, over its standard deviation."""
    time = np.linspace(-1, 1, len(values))
    rest = values - np.polynomial.polynomial.polyval(time, np.polynomial.polynomial.polyfit(time, values, degree))
    return torch.from_numpy(rest / rest.std())


def _dataset(name: str) -> Any:
    return load_extra(f"the {name} series", f"statsmodels.datasets.{name}").load_pandas().data
