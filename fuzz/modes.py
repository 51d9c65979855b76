"""Every method in every mode and context that torch has: the answer of a call without them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

import capalloc
from fuzz.outcome import CLEAR, SILENT, Case, Verdict, judge

THREADS = 4


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _random_state() -> Iterator[None]:
    torch.manual_seed(random.randrange(2**32))
    yield


#: Contexts that must change nothing.
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype float64": lambda: _default_dtype(torch.float64),
    "default device meta": lambda: torch.device("meta"),
    "another random state": _random_state,
    "anomaly detection": torch.autograd.detect_anomaly,
}


@cache
def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(3), nn.GELU(), nn.Flatten(), nn.Linear(18, 2))


@cache
def _inputs() -> torch.Tensor:
    return torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(0))


METHODS: dict[str, Callable[[], Any]] = {
    "measure": lambda: capalloc.measure(_model(), _inputs()).capacity.values,
    "markov": lambda: capalloc.propagate(_model(), _inputs(), solver="markov").capacity.values,
    "block": lambda: capalloc.propagate(_model(), _inputs(), solver="block").capacity.values,
    "walk": lambda: capalloc.walk(_model(), _inputs()).inputs.values,
    "receptive_field": lambda: capalloc.receptive_field(_model(), _inputs()).map.values,
    "decoupling": lambda: capalloc.decoupling(_model(), _inputs()).data.decoupling.values,
    "output_gram": lambda: capalloc.output_gram(_model(), _inputs()).numpy(),
    "effective_parameters": lambda: [capalloc.effective_parameters(_model(), _inputs(), ridge=1e-3).total],
}


@cache
def _plain(method: str) -> Any:
    return METHODS[method]()


def cases(rng: random.Random) -> Iterator[Case]:
    """Modes of one thread, and several threads at once."""
    while True:
        method, mode = rng.choice(list(METHODS)), rng.choice([*MODES, "threads"])
        train = rng.random() < 0.3
        name = f"{method} under {mode}{', a model in training' if train else ''}"
        yield Case(name, lambda m=method, o=mode, t=train: _try(m, o, t))


def _try(method: str, mode: str, train: bool) -> Verdict:
    expected, model = _plain(method), _model().train(train)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        if mode == "threads":
            with ThreadPoolExecutor(THREADS) as pool:
                found = list(pool.map(lambda _: METHODS[method](), range(THREADS)))
        else:
            with MODES[mode]():
                found = [METHODS[method]()]
    except Exception as error:
        return judge(error, "model", "inputs")
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    if changed or model.training is not train:
        return SILENT, f"the model is changed: {changed}"
    same = all(np.allclose(values, expected, rtol=1e-5, atol=1e-7, equal_nan=True) for values in found)
    return (CLEAR, "") if same else (SILENT, "another answer")
