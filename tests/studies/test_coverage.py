"""The sweep over other people's architectures, on a family of toys: what counts as right, and how it goes on."""

from __future__ import annotations

import contextlib
import math
import os
import re

import pytest
import torch
from benchmarks import coverage
from benchmarks.coverage_zoo import Architecture, architectures
from torch import nn

import capalloc
from zoo import gaussian, seeded_module


def toy(name: str, model: nn.Module) -> Architecture:
    return Architecture("toys", name, lambda: (model, (2,)))


class Unbuilt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        raise OSError("weights are elsewhere")


class Loud(nn.Module):
    """Outputs that do not depend on the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own.expand(len(x), 2)


def built() -> capalloc.Allocation:
    model = seeded_module(lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    return capalloc.propagate(model, gaussian(4, 2), solver="markov")


def test_an_allocation_is_finite_whole_and_at_most_all_parameters() -> None:
    found = built()
    assert coverage.allocation_faults(found, 13) == []
    assert coverage.allocation_faults(found, 5) == ["more than all parameters"]
    # a result refuses to be built of such numbers: what stands in its place has the same names
    part = type("Part", (), {"capacity": found.capacity, "bias": found.bias, "total": found.total})
    assert coverage.allocation_faults(type("_", (part,), {"bias": math.nan}), 13) == ["not finite"]
    assert coverage.allocation_faults(type("_", (part,), {"capacity": -found.capacity}), 13) == [
        "negative",
        "inputs and constant do not sum to the total",
    ]


def test_a_receptive_field_is_a_law_on_the_inputs_that_paths_reach() -> None:
    model = seeded_module(lambda: nn.Conv1d(1, 1, 3))
    field = capalloc.receptive_field(model, gaussian(2, 1, 7))
    assert coverage.field_faults(field, 4) == []
    part = type("Part", (), {"map": field.map, "support": field.support})
    for fault, changed in {
        "not finite": {"map": field.map * math.nan},
        "more than all probability": {"map": 2 * field.map},
        "paths from beyond the theoretical field": {"support": field.support & False},
    }.items():
        assert fault in coverage.field_faults(type("_", (part,), changed), 4)
    assert "negative" in coverage.field_faults(type("_", (part,), {"map": -field.map}), 4)


def test_a_sweep_names_what_fails_and_goes_on_where_it_was(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys = [toy("fine", nn.Linear(2, 1)), toy("constant", Loud()), Architecture("toys", "unbuilt", Unbuilt)]
    zoo = [(each, ["markov"]) for each in toys]
    records = coverage.sweep(zoo, tmp_path / "found.jsonl")
    assert records[0]["markov"]["wrong"] == ""
    assert records[0]["parameters"] == 3
    assert records[1]["markov"]["wrong"].startswith("ValueError: outputs do not depend on inputs")
    assert records[2]["unbuilt"] == "OSError: weights are elsewhere"
    monkeypatch.setattr(coverage, "examine_apart", None)  # nothing is examined again
    assert coverage.sweep(zoo, tmp_path / "found.jsonl") == records
    shown = coverage.table(records).markdown()
    assert re.search(r"\| toys \| 2 \| 1/2 \(\d\.\d\) \| – \| – \| – \|", shown)
    assert "- constant, markov: ValueError: outputs do not depend" in shown
    assert "- unbuilt: OSError: weights are elsewhere" in shown
    assert "One sweep of one state" in shown
    assert "over 2 states" in coverage.table([*records, {**records[0], "state": "another"}]).markdown()


class Endless(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while True:
            with contextlib.suppress(Exception):  # as a method that tries something else
                super().forward(x)


def test_what_takes_too_long_is_ended_and_the_next_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "TIME_LIMIT", 0.2)
    found = coverage.examine(Endless(2, 1), torch.ones(2, 2), ["markov", "blocks"])
    assert [each["wrong"] for each in found.values()] == ["more than 0.2 seconds"] * 2


def test_a_process_that_dies_is_a_fault_of_its_call() -> None:
    found = coverage.examine_apart(toy("dies", Dies(2, 1)), ["markov", "blocks"])
    assert found["markov"]["wrong"] == "died (out of memory or time)"


class Dies(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        os._exit(1)


def test_the_first_of_each_family_come_first_and_some_are_asked_for_all_calls() -> None:
    asked = coverage.in_turns(Architecture(family, f"{family}{k}", Unbuilt) for family in "ab" for k in range(7))
    assert [each.name for each, _ in asked[:4]] == ["a0", "b0", "a1", "b1"]
    assert [each.name for each, calls in asked if "blocks" in calls] == ["a0", "b0", "a6", "b6"]


def test_architectures_have_names_of_their_own() -> None:
    found = architectures()
    assert len({architecture.name for architecture in found}) == len(found) >= 150
    assert len({architecture.family for architecture in found}) >= 6
