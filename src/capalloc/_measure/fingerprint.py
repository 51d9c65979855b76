"""The marks that tell one measurement from another: enough to refuse a checkpoint, or a rank, of another one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capalloc._model.input_metric import InputMetric
from capalloc._model.problem import Problem, random_signs, seeded
from capalloc._runtime.checkpoint import DOUBTS, Fingerprint
from capalloc._runtime.description import Description

#: Examples, from the first to the last, whose outputs stand for what the functions do.
SHOWN = 8
#: Numbers of outputs that are kept as they are; of more, that many random combinations.
COMBINATIONS = 256


def fingerprint(problem: Problem, space: InputMetric, x: Tensor, seed: int, settings: Mapping[str, Any]) -> Fingerprint:
    """Describe every argument of `measure`: values as digests, settings as they are, functions by code and outputs."""
    told = Description()
    marks = {
        "model": told.digest(*(part for named in _tensors(problem) for part in named)),
        "code": told.digest(problem.model, problem.program),
        "params": told.digest(*problem.params),
        "inputs": f"{tuple(x.shape)} {told.digest(x)}",
        "outputs": _outputs(problem, x, seed),
        "outputs=": told.digest(problem.outputs),
        "metric": told.digest(*space.tensors()) if space.tensors() else "identity",
        "intercept": str(space.intercept),
        "seed": seed,
        "versions": f"{version('capalloc')} {torch.__version__} {np.__version__} {sys.version_info[:2]}",
        **{name: plain(value) for name, value in settings.items()},
    }
    return marks | {DOUBTS: ", ".join(sorted(told.doubts))}


def digest(*parts: Any) -> str:
    """Digest values in order."""
    return Description().digest(*parts)


def plain(value: Any) -> str | int | float | list[float] | None:
    """A setting as numbers or a word."""
    return value if value is None or isinstance(value, (str, int, float, list)) else repr(value)


def _tensors(problem: Problem) -> list[tuple[str, Tensor]]:
    """List parameters and buffers, also those that a saved model leaves out."""
    return sorted([*problem.model.named_parameters(), *problem.model.named_buffers()], key=lambda named: named[0])


def _outputs(problem: Problem, x: Tensor, seed: int) -> list[float]:
    """Give the number of outputs, and what they are for some examples."""
    shown = x[torch.linspace(0, len(x) - 1, min(len(x), SHOWN)).long().to(x.device)]
    with seeded(seed, x.device):
        outputs = torch.cat([problem(one[None]) for one in shown])
    values = outputs.detach().double().flatten()
    if len(values) > COMBINATIONS:
        draws = torch.Generator().manual_seed(0)
        values = torch.stack([random_signs(values.shape, values, draws) @ values for _ in range(COMBINATIONS)])
    return [float(outputs.shape[1]), *values.tolist()]
