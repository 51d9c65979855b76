"""The groups of benchmarks hold all of them, each can be imported, and its smallest pieces run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.__main__ import GROUPS, ON_REQUEST, discover
from torch import nn

MODULES = sorted(path.stem for path in Path(importlib.import_module("benchmarks").__path__[0]).glob("[!_]*.py"))


def test_every_benchmark_is_in_one_group_or_on_request() -> None:
    named = [*ON_REQUEST, *(name for group in GROUPS.values() for name in group)]
    assert sorted(named) == sorted(discover())


def imported(name: str) -> Any:
    """The module; a skip that names the package of others that it needs and this machine lacks."""
    try:
        return importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("capalloc", "benchmarks", "studies", "tests"):
            raise
        pytest.skip(f"benchmarks.{name} needs {error.name}")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name: str) -> None:
    imported(name)


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)).eval()


def images(number: int = 4) -> torch.Tensor:
    return torch.randn(number, 1, 6, 6, generator=torch.Generator().manual_seed(0))


#: The smallest piece of a benchmark that goes through capalloc, by its module.
PIECES: dict[str, Callable[[Any], object]] = {
    "architectures": lambda module: module.compared(net().double(), [net().double()], images(20).double()),
    "dense": lambda module: module.constraints_of(net().double(), images(2).double()),
    "design": lambda module: module.read(module.Design(depth=2, kernel=3, size=9)),
    "linear": lambda module: module._figures("fft", 80),
    "measure": lambda module: [
        rows(net().double(), images(1).double())
        for rows in (module.capacity, module.capalloc_rows, module.naive_rows, module.forward_over_reverse_rows)
    ],
    "calibration": lambda module: module.calibrated(net().double(), images(4).double(), 3, 2),
    "nulls": lambda module: module.equal_magnitudes(net()),
    "propagate": lambda module: module.propagation_seconds(net(), images()),
    "real_size": lambda module: module.seconds_of_pass(net(), images()),
    "fresh_process": lambda module: module.print_rows([tuple(module._printed("-c", "print(1, 2)").split())]),
    "scale": lambda module: module.product_seconds(2, 2),
    "segments": lambda module: module.compared([net().double(), net().double()], images(30).double(), None),
    "start": lambda module: module.processor_seconds(["-c", "pass"]),
    "stated": lambda module: module.plain(2, 2, 2)(torch.randn(1, 1, 28, 28)),
    "steps": lambda module: module.by_effort(net().double(), images(30).double(), module.STEPS).row(),
}
#: Those without a piece that takes seconds, and why.
WHOLE = {
    **dict.fromkeys(("correction", "few_constraints", "metric", "networks"), "train networks first"),
    **dict.fromkeys(("models", "limits", "depth", "side_by_side", "at_size"), "models of real size"),
    **dict.fromkeys(("gram", "gram_contenders"), "contenders of other packages, timed together"),
    "forecasts": "each figure is a process of its own",
    **dict.fromkeys(("coverage", "coverage_zoo"), "have tests of their own, in test_coverage.py"),
    "table": "what the others return",
}


def test_every_module_has_a_piece_or_a_reason() -> None:
    assert sorted([*PIECES, *WHOLE]) == MODULES


@pytest.mark.parametrize("name", PIECES)
def test_the_smallest_piece_runs(name: str) -> None:
    PIECES[name](imported(name))
