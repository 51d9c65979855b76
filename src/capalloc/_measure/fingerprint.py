"""The marks that tell one measurement from another: enough to refuse a checkpoint, or a rank, of another one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from capalloc._model.input_metric import InputMetric
from capalloc._model.problem import Problem, seeded
from capalloc._runtime.checkpoint import Fingerprint
from capalloc._runtime.packing import as_bytes

#: Outputs of the first example that stand for the function `outputs` and the model's own code, which have no values.
SHOWN = 8


def fingerprint(problem: Problem, space: InputMetric, x: Tensor, seed: int, settings: Mapping[str, Any]) -> Fingerprint:
    """Describe every argument of `measure`: values as digests, settings as they are, functions by what they return."""
    with seeded(seed, x.device):
        outputs = problem(x[:1])[0]
    return {
        "model": digest(*(part for name, t in sorted(problem.model.state_dict().items()) for part in (name, t))),
        "params": digest(*problem.params),
        "inputs": f"{tuple(x.shape)} {digest(x)}",
        "outputs": [float(len(outputs)), *outputs[:SHOWN].double().tolist()],
        "metric": "identity" if space.root is None else digest(*space.tensors()),
        "intercept": str(space.intercept),
        "seed": seed,
        **{name: plain(value) for name, value in settings.items()},
    }


def digest(*parts: Any) -> str:
    """Digest tensors and strings, in order: 16 hexadecimal digits, enough to tell mistakes apart."""
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            hashed.update(f"{part.dtype} {tuple(part.shape)}".encode())
            hashed.update(as_bytes(part.cpu()).numpy().data)
        else:
            hashed.update(f"{part} ".encode())
    return hashed.hexdigest()[:16]


def plain(value: Any) -> str | int | float | list[float] | None:
    """A setting as numbers or a word."""
    return value if value is None or isinstance(value, (str, int, float, list)) else repr(value)
