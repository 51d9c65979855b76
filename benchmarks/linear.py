"""Linear capacity of a stationary process by FFT against a dense covariance, and its growth up to a million lags."""

from __future__ import annotations

import math
import multiprocessing
import resource
import time

import numpy as np
import torch

from benchmarks.table import Table
from capalloc.linear import Stationary, fractional_noise, linear_capacity

HURST = 0.8
#: The dense answer needs n^3 operations: only up to here.
DENSE = (1_000, 3_000)
FFT = (1_000, 3_000, 10_000, 100_000, 1_000_000)
PARAMS = 4


def run() -> Table:
    """Each figure in a fresh process, so that peak memory is its own."""
    rows = []
    previous: tuple[int, float] | None = None
    for n in FFT:
        seconds, mib, error = alone("fft", n)
        growth = ""
        if previous is not None and n >= 100_000:
            ratio = (seconds / previous[1]) / (n * math.log(n) / (previous[0] * math.log(previous[0])))
            growth = f"{ratio:.2f}"
        rows.append(("FFT", f"{n:,}", f"{seconds:.2f} s", f"{mib:.0f} MiB", growth, f"{error:.0e}" if error else ""))
        previous = (n, seconds)
    for n in DENSE:
        seconds, mib, _ = alone("dense", n)
        rows.append(("dense", f"{n:,}", f"{seconds:.2f} s", f"{mib:.0f} MiB", "", ""))
    return Table(
        "Linear capacity in the metric of a stationary process",
        f"Fractional Gaussian noise, H = {HURST}, {PARAMS} parameters, symmetric root, float64, one thread. FFT: the "
        "autocovariance alone. Dense: an eigendecomposition of the n x n covariance. Growth: time over that of the row "
        "above, divided by the ratio of n log n. Error: largest difference of a capacity to the dense answer. Memory: "
        "peak resident size of a fresh process, less that after imports.",
        ("covariance", "lags", "time", "peak memory", "growth / (n log n)", "error"),
        rows,
    )


def alone(kind: str, n: int) -> tuple[float, float, float]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(_figures, (kind, n))


def _figures(kind: str, n: int) -> tuple[float, float, float]:
    torch.set_num_threads(1)
    J = jacobian(n)
    r = fractional_noise(HURST).autocovariance(n)
    linear_capacity(J[:64], Stationary(r[:64]))  # warm up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = linear_capacity(J, Stationary(r)) if kind == "fft" else linear_capacity(J, dense(r))
    seconds = time.perf_counter() - start
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    error = 0.0
    if kind == "fft" and n in DENSE:
        error = float(abs(found.capacity - linear_capacity(J, dense(r)).capacity).max())
    return seconds, mib, error


def dense(r: torch.Tensor) -> torch.Tensor:
    lag = torch.arange(len(r))
    return r[(lag[:, None] - lag).abs()]


def jacobian(n: int) -> np.ndarray:
    """Four filters: noise, exponential, oscillating and power-law."""
    t = np.arange(n)
    columns = [np.random.default_rng(0).normal(size=n), 0.999**t, np.cos(0.01 * t), 1 / (1 + t)]
    return np.stack(columns[:PARAMS], 1)
