"""The functional dimension: how many directions of the parameters change the function near the examples.

Index convention: a row is the derivative of a random combination of the outputs at one point, a column a parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capalloc._derivatives.verify import choose_parts
from capalloc._measure.forecast import seconds_of_operation
from capalloc._model.problem import Problem, seeded

#: Points for each parameter at least, and a point for each input around each example up to so many: a unit that one
#: example opens has a slope along all inputs.
POINTS_PER_PARAM, SPARE_POINTS, MOST_NEARBY = 3, 64, 4096
#: Distance of the points from the examples, in deviations of the inputs.
NEAR = 0.03
#: Squares of singular values below this share of the largest are rounding, columns scaled to length 1.
NO_DIRECTION = 1e-12
POINTS_AT_ONCE = 256
#: A point takes about so many passes of an example, in float64, and an eigenvalue as many operations as this many rows.
PASSES_OF_POINT, ROWS_OF_EIGENVALUE = 4, 2.5


def _num_points(size: int, x: Tensor) -> int:
    return max(POINTS_PER_PARAM * size + SPARE_POINTS, min(len(x) * (x[0].numel() + 1), MOST_NEARBY))


def dimension_seconds(problem: Problem, x: Tensor, of_pass: float) -> float:
    """Forecast the time of the functional dimension, where a pass of one example takes `of_pass` seconds."""
    size = problem.num_params
    points = _num_points(size, x)
    operations = 2 * (points + ROWS_OF_EIGENVALUE * size) * size**2
    return points * PASSES_OF_POINT * of_pass + operations * seconds_of_operation(x.device)


def functional_dimension(problem: Problem, x: Tensor, deviation: Tensor, generator: torch.Generator) -> int:
    """Count the independent directions of parameters: the rank of the output Jacobian at points near the examples.

    Under hypothesis (H) the measured total is the same rank (docs/theory.md, section 2). It is a lower bound where a
    unit opens on hardly an example; Grigsby, Lindsey, Meyerhoff and Wu, arXiv 2209.04036.

    Args:
        problem: in float64.
        x: examples (examples, *inputs).
        deviation: of each input, of one example's shape, or one number.
        generator: of the points, and of the combinations of outputs.

    """
    size = problem.num_params
    gram = torch.zeros(size, size, dtype=x.dtype, device=x.device)
    outputs, source = problem(x[:1]).shape[1], choose_parts(problem, x[:2])
    for number in torch.arange(_num_points(size, x)).split(POINTS_AT_ONCE):
        noise = torch.randn(len(number), *x.shape[1:], generator=generator, dtype=x.dtype).to(x.device)
        weights = torch.randn(len(number), outputs, generator=generator, dtype=x.dtype).to(x.device)
        with seeded(0, x.device):
            ((_, parts),) = source(x[number % len(x)] + NEAR * deviation * noise, weights=weights)
        rows = torch.cat([parts[name].rows[:, 0] for name in problem.params], 1)
        gram += rows.T @ rows
    length = gram.diagonal().sqrt()
    used = length > 0
    if not bool(used.any()):
        return 0
    found = torch.linalg.eigvalsh((gram / (length[:, None] * length))[used][:, used])
    return int((found > NO_DIRECTION * found[-1]).sum())
