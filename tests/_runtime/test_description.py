"""Digests of functions, objects and models: the same in every process, others where something else is done."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from capalloc._runtime.description import Description


def digest(value: Any) -> str:
    told = Description()
    found = told.digest(value)
    assert not told.doubts
    return found


def scaled_by(factor: Any) -> Callable[[Any], Any]:
    return lambda y: y * factor


class Scale:
    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def __call__(self, y: Any) -> Any:
        return y * self.factor

    def method(self, y: Any) -> Any:
        return y * self.factor


def of_class(slope: float) -> nn.Module:
    """Models whose classes differ, and nothing else."""

    class Own(nn.Module):
        factor = slope

        def forward(self, x: Any) -> Any:
            return x * self.factor

    return Own()


def hooked(factor: float) -> nn.Module:
    net = nn.Identity()
    net.register_forward_hook(lambda module, args, y: y * factor)
    return net


def exported(factor: float) -> Any:
    return torch.export.export(nn.Sequential(nn.LeakyReLU(factor)), (torch.ones(2, 3),))


def recurrent(factor: float) -> nn.Module:
    """It holds weak references to its weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.LSTM(1, 2)
    with torch.no_grad():
        net.weight_hh_l0.mul_(factor)
    return net


def reading(value: Any) -> Callable[[Any], Any]:
    """A function that reads a global."""
    read = eval("lambda y: y * FACTOR", {"FACTOR": value})
    assert callable(read)
    return read


MAKERS: dict[str, Callable[[Any], Any]] = {
    "closure": scaled_by,
    "callable object": Scale,
    "bound method": lambda factor: Scale(factor).method,
    "partial": lambda factor: functools.partial(torch.mul, factor),
    "default": lambda factor: eval(f"lambda y, f={factor}: y * f"),
    "constant": lambda factor: eval(f"lambda y: y * {factor}"),
    "constant inside": lambda factor: eval(f"lambda y: [y * {factor} for y in y]"),
    "global": reading,
    "cache": lambda factor: functools.lru_cache(scaled_by(factor)),
    "vmap": lambda factor: torch.vmap(scaled_by(factor)),
    "class attribute": of_class,
    "attribute": nn.LeakyReLU,
    "hook": hooked,
    "compiled": lambda factor: torch.compile(nn.LeakyReLU(factor)),
    "graph": lambda factor: torch.fx.symbolic_trace(nn.Sequential(nn.LeakyReLU(factor))),
    "exported": exported,
    "array": lambda factor: {"a": [np.full(3, factor)]},
    "recurrent": recurrent,
    "sparse": lambda factor: torch.full((2, 2), factor).to_sparse(),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_does_something_else_has_another_digest(name):
    make = MAKERS[name]
    assert digest(make(0.25)) == digest(make(0.25)) != digest(make(0.5))


def test_functions_of_torch_and_python_go_by_name():
    digests = {digest(f) for f in (torch.tanh, torch.sin, nn.functional.relu, nn.functional.gelu, np.tanh, np.sin, len)}
    assert len(digests) == 7


def test_values_that_hold_themselves_have_an_end():
    loop: list[Any] = [1]
    loop.append(loop)
    assert digest(loop) != digest([1, [1]])


def test_marks_of_torch_are_of_no_account():
    plain, compiled = nn.LeakyReLU(), nn.LeakyReLU()
    torch.compile(compiled)
    assert digest(plain) == digest(compiled)


def test_places_and_numbers_of_hooks_are_of_no_account():
    """Ranks have each their own device, and handles count all hooks of their process."""
    assert digest(torch.device("cuda", 0)) == digest(torch.device("cuda", 1)) != digest(torch.device("cpu"))
    first, second = nn.Identity(), nn.Identity()
    for net in (first, second):
        net.handle = net.register_forward_hook(print)
    assert digest(first) == digest(second)


def test_what_cannot_be_seen_is_named():
    told = Description()
    told.digest({"inside": [threading.Lock()]})
    assert told.doubts == {"_thread.lock"}
    deep: Any = []
    for _ in range(2000):
        deep = [deep]
    told.digest(deep)
    assert "values nested too deeply" in told.doubts


def test_digests_are_those_of_every_process():
    """Other salts of hashes, and other orders of sets."""
    code = (
        "from test_description import *\n"
        "print(*(digest(make(0.25)) for make in MAKERS.values()), digest(scaled_by({'a', 'b', 'c', 'd'})))"
    )
    here = [digest(make(0.25)) for make in MAKERS.values()] + [digest(scaled_by({"a", "b", "c", "d"}))]
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.split() == here
