"""Stationary processes to predict, each by its autocovariance r_0, r_1, ...; samples by circulant embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve
from torch import Tensor
from torch.fft import fft

from capalloc._runtime.arguments import checked
from capalloc.linear.arrays import RealArray, real_tensor

#: Negative eigenvalues of a circulant embedding up to this, relative to the largest, count as zero.
EMBEDDING_ROUNDING = 1e-8


@dataclass(frozen=True)
class Process:
    """A centred stationary process.

    Args:
        name: what it is.
        autocovariance: from a number n to $r_0, ..., r_(n-1)$, float64.
        long_memory: whether lags are worth a logarithmic axis.

    """

    name: str
    autocovariance: Callable[[int], Tensor] = field(repr=False)
    long_memory: bool = False

    def sample(self, length: int, generator: torch.Generator) -> Tensor:
        """Draw a Gaussian sample path of the process, (length,), exact in law (Davies and Harte, 1987).

        Raises:
            ValueError: the circulant matrix that the covariance is embedded in has negative eigenvalues.

        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        r = self.autocovariance(length + 1)
        eigenvalues = fft(torch.cat([r, r[1:-1].flip(0)])).real
        if float(eigenvalues.min()) < -EMBEDDING_ROUNDING * float(eigenvalues.max()):
            raise ValueError(
                f"{self.name}: the circulant embedding of {length} values has a negative eigenvalue "
                f"({float(eigenvalues.min()):.3g}, largest {float(eigenvalues.max()):.3g}); cut it from a longer path"
            )
        noise = torch.randn(2, len(eigenvalues), generator=generator, dtype=torch.float64)
        spectrum = (eigenvalues.clamp(min=0) / len(eigenvalues)).sqrt() * torch.complex(noise[0], noise[1])
        path: Tensor = fft(spectrum).real[:length]
        return path


@checked
def white_noise(variance: float = 1.0) -> Process:
    """Make values without memory: the best prediction is the mean.

    Raises:
        ValueError: a variance that is not positive.

    """
    _check_positive(variance=variance)

    def autocovariance(n: int) -> Tensor:
        r = torch.zeros(n, dtype=torch.float64)
        r[0] = variance
        return r

    return Process("white noise", autocovariance)


@checked
def autoregression(coefficients: Sequence[float], variance: float = 1.0) -> Process:
    """Make $X_t = sum_k a_k X_(t-k) + innovation$, AR(p): the best prediction one step ahead has p weights, the $a_k$.

    Args:
        coefficients: $a_1, ..., a_p$.
        variance: of the innovation.

    Raises:
        ValueError: no coefficient, a variance that is not positive, or a process that is not stationary.

    """
    _check_positive(variance=variance)
    a = np.asarray(coefficients, dtype=float)
    if a.ndim != 1 or not len(a) or not np.isfinite(a).all():
        raise ValueError(f"coefficients must be a sequence of finite numbers, got {coefficients!r}")
    largest = float(abs(np.roots([1.0, *-a])).max(initial=0.0))
    if largest >= 1:
        raise ValueError(
            f"an autoregression with coefficients {a.tolist()} is not stationary: its largest root is {largest:.4g}, "
            "and must lie inside the unit circle"
        )

    def autocovariance(n: int) -> Tensor:
        r = list(_yule_walker(a, variance))
        while len(r) < n:
            r.append(float(a @ r[: -len(a) - 1 : -1]))
        return torch.tensor(r[:n], dtype=torch.float64)

    return Process(f"AR({len(a)})", autocovariance)


def _yule_walker(a: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
    """Solve for r_0 .. r_p: r_h - sum_k a_k r_|h-k| is the innovation's variance at h = 0, and zero beyond."""
    p = len(a)
    equations = np.eye(p + 1)
    for h in range(p + 1):
        for k in range(1, p + 1):
            equations[h, abs(h - k)] -= a[k - 1]
    r: NDArray[np.float64] = solve(equations, np.array([variance, *[0.0] * p]))
    return r


@checked
def fractional_noise(hurst: float, variance: float = 1.0) -> Process:
    """Make increments of fractional Brownian motion: $r_h = variance (|h+1|^(2H) - 2 |h|^(2H) + |h-1|^(2H)) / 2$.

    Memory is long for $H > 1/2$, $r_h ~ H (2H - 1) h^(2H-2)$; $H = 1/2$ is white (Mandelbrot and Van Ness, 1968).

    Args:
        hurst: H, strictly between 0 and 1.
        variance: of one value.

    Raises:
        ValueError: H outside (0, 1), or a variance that is not positive.

    """
    _check_positive(variance=variance)
    if not 0 < hurst < 1:
        raise ValueError(f"hurst must lie strictly between 0 and 1, got {hurst}")

    def autocovariance(n: int) -> Tensor:
        h = torch.arange(n, dtype=torch.float64)
        exponent = 2 * hurst
        # beyond some hundred lags the second difference cancels: its Taylor series in 1/h has the digits
        r = ((h + 1) ** exponent - 2 * h**exponent + (h - 1).abs() ** exponent) / 2
        far = h[h > FAR]
        r[h > FAR] = far**exponent * _second_difference(exponent, 1 / far)
        return variance * r

    return Process(f"fractional noise, H = {hurst:g}", autocovariance, long_memory=True)


#: Lags from which on the series is used; its first term left out is below rounding there.
FAR = 100


def _second_difference(exponent: float, x: Tensor) -> Tensor:
    """Return ((1 + x)^e + (1 - x)^e) / 2 - 1 by its even binomial series."""
    term, total = torch.ones_like(x), torch.zeros_like(x)
    for k in range(1, 9):
        term = term * (exponent - k + 1) / k * x
        total = total + term if k % 2 == 0 else total
    return total


@checked
def sinusoids(frequencies: Sequence[float], amplitudes: Sequence[float] | None = None, noise: float = 0.1) -> Process:
    """Make sinusoids of random phase in white noise: $r_h = sum_j (a_j^2 / 2) cos(2 pi f_j h) + noise 1[h = 0]$.

    Args:
        frequencies: in cycles per sample.
        amplitudes: of each; 1 by default.
        noise: its variance, positive: without noise prediction is exact and the covariance singular.

    Raises:
        ValueError: no frequency, not as many amplitudes, or noise that is not positive.

    """
    _check_positive(noise=noise)
    f = real_tensor(frequencies, "frequencies", ndim=1).double()
    power = torch.ones_like(f) if amplitudes is None else real_tensor(amplitudes, "amplitudes", ndim=1).double()
    if not len(f) or len(f) != len(power):
        raise ValueError(f"{len(f)} frequencies and {len(power)} amplitudes; pass one amplitude for each")

    def autocovariance(n: int) -> Tensor:
        h = torch.arange(n, dtype=torch.float64)
        r = (power.square()[:, None] / 2 * torch.cos(2 * torch.pi * f[:, None] * h)).sum(0)
        r[0] += noise
        return r

    return Process(f"{len(f)} sinusoid{'s' if len(f) > 1 else ''} in noise", autocovariance, long_memory=True)


@checked
def empirical(name: str, series: RealArray, long_memory: bool = False) -> Process:
    """Make a process with the autocovariance of a series, $sum_t x_t x_(t+h) / N$ about its mean, zero beyond it.

    Dividing by N at every lag keeps the autocovariance positive definite.

    Args:
        name: what it is.
        series: (length,).
        long_memory: whether lags are worth a logarithmic axis.

    Raises:
        ValueError: fewer than two values, not finite, or all the same.

    """
    x = real_tensor(series, "series", ndim=1).double()
    if len(x) < 2 or float(x.max()) == float(x.min()):
        raise ValueError(f"series {name!r} must have at least two different values, got {len(x)}")
    x = x - x.mean()
    power = torch.fft.rfft(x, 2 * len(x)).abs().square()
    r = torch.fft.irfft(power, 2 * len(x))[: len(x)] / len(x)

    def autocovariance(n: int) -> Tensor:
        return torch.nn.functional.pad(r[:n], (0, max(0, n - len(r))))

    return Process(name, autocovariance, long_memory)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above zero, got {value}")
