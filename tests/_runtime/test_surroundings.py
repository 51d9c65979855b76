"""Answers do not depend on what surrounds the call: autocast, default devices, inference mode, other threads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import capalloc
from zoo import gaussian

NET = nn.Sequential(nn.Conv1d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
X = gaussian(6, 1, 4).float()

CALLS: dict[str, Callable[[], Any]] = {
    "measure": lambda: capalloc.measure(NET, X, ridge=0.1).capacity.values,
    "propagate": lambda: capalloc.propagate(NET, X, solver="markov").capacity.values,
    "walk": lambda: capalloc.walk(NET, X).inputs.values,
    "output_gram": lambda: capalloc.output_gram(NET, X).numpy(),
    "effective_parameters": lambda: capalloc.effective_parameters(NET, X, ridge=0.1).total,
    "receptive_field": lambda: capalloc.receptive_field(NET[:1], X).map.values,
    "decoupling": lambda: capalloc.decoupling(NET, X).data.to_array().values,
    "scaling": lambda: capalloc.scaling(NET, X).data.to_dataframe().to_string(),
    "shattering": lambda: capalloc.shattering(NET, X).data.to_dataframe().to_string(),
    "diagnose": lambda: repr(capalloc.diagnose(NET, X)),
}


@contextmanager
def default_device(name: str):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


AROUND = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another default device": lambda: default_device("meta"),
    "a device for a while": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
}


@pytest.fixture(autouse=True)
def weights():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for p in NET.parameters():
            p.data.normal_()


def test_every_method_that_takes_a_model_is_tried():
    takes = {name for name in dir(capalloc) if "model" in _parameters(getattr(capalloc, name))}
    assert takes == set(CALLS)


def _parameters(thing: Any) -> list[str]:
    return list(inspect.signature(thing).parameters) if inspect.isfunction(thing) else []


@pytest.mark.parametrize("name", CALLS)
def test_surroundings_change_nothing(name: str):
    expected = CALLS[name]()
    for around in AROUND.values():
        with around():
            found = CALLS[name]()
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["measure", "propagate", "output_gram"])
def test_calls_of_several_threads_wait_for_each_other(name: str):
    expected = CALLS[name]()
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: CALLS[name](), range(6)):
            np.testing.assert_array_equal(found, expected)
