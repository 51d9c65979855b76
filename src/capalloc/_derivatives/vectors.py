"""Between vectors and what they stand for: parameters by name, rows of constraints by slot.

Index convention: k vectors, o outputs, e examples, s slots; parameter vectors are (k, params), rows (k, o, e, s).
"""

from __future__ import annotations

import torch
from torch import Tensor

from capalloc._derivatives.metric import InputMetric
from capalloc._model.problem import Problem


def own_values(problem: Problem) -> dict[str, Tensor]:
    """The selected parameters' own values."""
    return {name: p.detach() for name, p in problem.params.items()}


def split(problem: Problem, vector: Tensor) -> dict[str, Tensor]:
    """A vector over all parameters, (params), as tensors by name."""
    parts = vector.split([p.numel() for p in problem.params.values()])
    return {name: part.view_as(p) for (name, p), part in zip(problem.params.items(), parts, strict=True)}


def slots_of(space: InputMetric, slope: Tensor, value: Tensor, x: Tensor) -> Tensor:
    """Rows from changes of the slopes (o, e, *inputs) and of the outputs (o, e): (o, e, s)."""
    flat = slope.flatten(2)
    rows = times_root(space, flat)
    if not space.intercept:
        return rows
    constant = value - (flat * x.flatten(1)).sum(2)
    return torch.cat([rows, constant[..., None]], 2)


def directions_of(space: InputMetric, r: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The transpose: rows (..., o, e, s) to input directions (..., o, e, *inputs) and weights of the output."""
    n = space.num_inputs
    v = times_root(space, r[..., :n])
    constant = r[..., n] if space.intercept else r.new_zeros(r.shape[:-1])
    return (v - x.flatten(1) * constant[..., None]).unflatten(-1, space.shape), constant


def times_root(space: InputMetric, flat: Tensor) -> Tensor:
    """S^(1/2) along the last axis."""
    if space.root is None:
        return flat
    return flat * space.root if space.root.ndim == 1 else flat @ space.root
