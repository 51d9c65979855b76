"""What `make fuzz` and `make oldest` rest on: outcomes are told apart, and every public function is tried."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import time
from pathlib import Path

import pytest
from fuzz import calls
from fuzz.outcome import Case, judge, tally
from oldest import constraints

import capalloc

#: Public names that are tried elsewhere, or that hold what others made.
NOT_TRIED = {
    *("Call", "rule", "serve", "co2", "sunspots", "names", "register", "patches", "Identity"),
    *("CapacityWarning", "RankError", "UnsupportedOperatorError", "Allocation", "Basis", "Metric", "PredictionTask"),
    *("token_table", "Process", "Trained", "Evolution", "Architecture", "Partition", "Reading"),
}
SUBJECTS = ("", ".solvers", ".gates", ".linear", ".depth_limit", ".architectures", ".partitions", ".design")


def toy(rng):
    def refuse():
        return judge(ValueError("size must be positive"), "size")

    yield Case("clear", lambda: ("clear", ""))
    yield Case("foreign", refuse)
    yield Case("crash", lambda: os._exit(9))
    yield Case("hang", lambda: time.sleep(60))
    yield Case("silent", lambda: ("silent", "another answer"))


@pytest.mark.parametrize("lanes", [1, 2, 7])
def test_outcomes_are_told_apart(lanes):
    found = tally(toy, seed=0, seconds=30, patience=1.0, lanes=lanes)
    assert found.counts == {"clear": 1, "unclear": 1, "silent": 1, "hang": 1, "crash": 1}
    assert {name for _, name, _ in found.bad} == {"foreign", "crash", "hang", "silent"}


def endless(rng):
    while True:
        yield Case("clear", lambda: (time.sleep(0.01), ("clear", ""))[1])


def test_cases_without_end_are_stopped():
    assert tally(endless, seed=0, seconds=0.3, lanes=3).counts["clear"] > 0  # and ends


@pytest.mark.parametrize("accuracy", [-1.0, "much"])
def test_an_error_of_ours_that_names_the_argument_is_clear(accuracy):
    with pytest.raises((TypeError, ValueError)) as caught:
        capalloc.solvers.Dense(accuracy)
    assert judge(caught.value, "accuracy")[0] == "clear"
    assert judge(caught.value, "ridge")[0] == "unclear"


@pytest.mark.filterwarnings("ignore::capalloc.CapacityWarning")
def test_every_public_function_is_tried():
    tried = {function.__name__ for function in calls.BASES}
    for subject in SUBJECTS:
        module = importlib.import_module(f"capalloc{subject}")
        public = {name for name in module.__all__ if callable(getattr(module, name))}
        assert public - tried <= NOT_TRIED, (subject, public - tried - NOT_TRIED)
    for function, base in calls.BASES.items():
        inspect.signature(function).bind(**base())


def test_no_lower_bound_is_above_what_is_pinned():
    text = (Path(__file__).parent.parent / "constraints.txt").read_text()
    pinned = {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==([\d.]+)", text, re.MULTILINE)}
    for name, lowest in constraints().items():
        numbers = [[int(part) for part in version.split(".")] for version in (lowest, pinned[name.lower()])]
        assert numbers[0] <= numbers[1], name
