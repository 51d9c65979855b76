"""The ridge that a noise level and a prior stand for."""

from __future__ import annotations

import math


def ridge_from_noise(noise_variance: float, num_examples: int, prior_variance: float) -> float:
    """The ridge at which capacity counts the parameters that the data determine better than the prior.

    With independent errors of variance s^2 on every constraint of N examples and independent parameters of prior
    variance t^2, the posterior precision is N G / s^2 + 1 / t^2, proportional to G + s^2 / (N t^2); the total
    capacity at this ridge is the effective number of parameters (docs/theory.md, section 1).

    Args:
        noise_variance: s^2, in squared units of the output for one standard deviation of the input (of the metric).
        num_examples: N.
        prior_variance: t^2, for example the variance of the initial weights.

    Raises:
        ValueError: an argument is not a finite positive number.

    Reference: D. MacKay, Bayesian interpolation, Neural Computation 4 (1992) 415-447.

    """
    given = {"noise_variance": noise_variance, "num_examples": num_examples, "prior_variance": prior_variance}
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    return noise_variance / (num_examples * prior_variance)
