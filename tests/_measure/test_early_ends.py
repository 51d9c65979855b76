"""Rounds whose solves end early: the answer of solves to the end, with an error that counts what they lack."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_stochastic import IMAGES, OF, exact_of

from capalloc import Allocation, measure
from capalloc._linalg.block_cg import HELD_EARLY, Iterate, Mark, begin, step
from capalloc._measure import examples as examples_module
from capalloc._measure import probe
from capalloc._measure.estimates import Estimate, with_early
from capalloc._runtime.steps import Journal
from capalloc._settings import PLAIN_RUN, Run, Stochastic
from capalloc.partitions import patches
from measured import data

DIMENSION = 40


def on_sphere(count: int, seed: int) -> torch.Tensor:
    z = data(count, DIMENSION, seed=seed)
    return z * (DIMENSION**0.5 / z.norm(dim=1, keepdim=True))


def quadratic(z: torch.Tensor, *forms: torch.Tensor) -> Estimate:
    """The estimate from inner products with B, or with the difference of two."""
    inner = sum(sign * (z @ B @ z.T) for sign, B in zip((1, -1), forms, strict=False))
    return Estimate.of(inner[None], torch.zeros(1, dtype=torch.float64))


def test_many_early_probes_and_a_few_whole_ones_are_unbiased_with_the_variance_told() -> None:
    """Of forms z'B z with fixed B: V(B)/N + V(B - B_early)(1/n - 1/N), over 1500 draws of n = 4 and N = 12."""
    root = data(12, DIMENSION, seed=1)
    whole = root.T @ root / DIMENSION
    early = 0.9 * whole + 0.05 * torch.eye(DIMENSION, dtype=torch.float64)
    early[:8, :8] *= 0.6
    found, told = [], []
    for seed in range(1500):
        some, others = on_sphere(4, 2 * seed), on_sphere(8, 2 * seed + 1)
        one = with_early(
            quadratic(some, whole), quadratic(some, early), quadratic(some, whole, early), quadratic(others, early)
        )
        assert one.probes == 12
        found.append(float(one.mean))
        told.append(float(one.standard_error(DIMENSION) ** 2))
    assert np.mean(found) == pytest.approx(float(whole.trace()), abs=4 * np.std(found) / math.sqrt(1500))
    assert np.mean(told) == pytest.approx(np.var(found), rel=0.15)
    alone = 2 / (1 + 2 / DIMENSION) * float((whole @ whole).trace() - whole.trace() ** 2 / DIMENSION) / 4
    assert np.mean(told) < 0.6 * alone  # of the whole ones without the others


def test_early_iterates_reach_back_to_a_third() -> None:
    A = torch.diag(torch.linspace(1, 400, 60, dtype=torch.float64))
    now, before = begin(data(2, 60, seed=3), lambda r: r), {}
    for count in range(1, 26):
        before[count - 1] = now.solution
        now = step(now, lambda v: v @ A, lambda r: r)
        mark = now.early_mark(0)
        if count > 6:
            assert count / 3 <= mark.iterations <= count / 2 + 1
            torch.testing.assert_close(mark.solution, before[mark.iterations])
        assert len(now.early) <= HELD_EARLY
    assert now.early_mark(12).iterations == 12
    assert now.early_mark(7) is None
    assert now.early_mark(30).solution is now.solution


def found_by(
    monkeypatch: pytest.MonkeyPatch, examples: int, seed: int, run: Run = PLAIN_RUN, **settings: object
) -> Allocation:
    """An answer by blocks of four probes."""
    make, ridge = OF[examples]
    monkeypatch.setattr(examples_module, "first_block", lambda params: 4)
    solver = Stochastic(spectrum=False, **settings)
    generator = torch.Generator().manual_seed(seed)
    return measure(make(), IMAGES[:examples], ridge=ridge, solver=solver, generator=generator, run=run)


@pytest.mark.parametrize("examples", [24, 2])
def test_rounds_that_end_early_tell_what_the_others_tell(monkeypatch, examples) -> None:
    """Over seeds: means within their own error, and errors as told."""
    exact = exact_of(examples)
    found = [found_by(monkeypatch, examples, seed, rtol=0.05) for seed in range(12)]
    assert np.mean([one.attrs["early_probes"] / one.attrs["num_probes"] for one in found]) > 0.25
    z = np.stack([(one.capacity - exact.capacity) / one.capacity.standard_error for one in found])
    assert np.mean(np.abs(z) <= 2) > 0.88
    assert np.sqrt(np.mean(z**2)) > 0.7
    off = np.stack([one.by(patches(4, 4)) / exact.by(patches(4, 4)) - 1 for one in found])
    assert np.abs(off.mean(0)).max() < 4 * 0.05 / math.sqrt(12)
    assert np.mean([abs(one.total - exact.total) <= 2 * one.attrs["total_standard_error"] for one in found]) > 0.7
    names = exact.by_parameter.parameter.values
    errors = np.array([[one.attrs["by_parameter_standard_error"][name] for name in names] for one in found])
    parts = np.stack([one.by_parameter - exact.by_parameter for one in found])
    assert np.mean(np.abs(parts) <= 2 * errors) > 0.85


def test_asked_for_by_number_all_probes_are_solved_to_the_end(monkeypatch) -> None:
    assert found_by(monkeypatch, 24, 0, num_probes=12).attrs["early_probes"] == 0


def test_where_early_iterates_tell_little_no_round_ends_early(monkeypatch) -> None:
    """As where early iterates are zero."""

    def nothing(now: Iterate, iterations: int) -> Mark:
        return Mark(torch.zeros_like(now.solution), now.residual, 0.0, 2)

    monkeypatch.setattr(Iterate, "early_mark", nothing)
    found = found_by(monkeypatch, 24, 0, rtol=0.05)
    assert found.attrs["early_probes"] == 0
    assert found.attrs["rounds"] > 1


def test_a_round_that_has_no_time_to_reach_its_early_end_is_dropped(monkeypatch) -> None:
    ended, states = probe.ended_early, []

    def late(probing, state, at, now, ridge):
        states.append(state)
        return ended(probing, state, replace(at, late=True), now, ridge)

    monkeypatch.setattr(probe, "ended_early", late)
    found = found_by(monkeypatch, 24, 0, rtol=0.05)
    assert found.attrs["stopped_by"] == "limit"
    assert (found.attrs["num_probes"], found.attrs["early_probes"]) == (4, 0)
    assert len(states) == 1


@pytest.mark.parametrize(("iterations", "probes"), [(1, 8), (8, 12)])
def test_a_round_that_is_cut_short_counts_where_it_helps(monkeypatch, iterations, probes) -> None:
    """One of the others' kind, after some that ended early: after one iteration it would tell less than nothing."""
    iterated, next_is_early = probe.iterated, probe.may_end_early

    def last_is_late(probing, state, at, now, ridge):
        found = iterated(probing, state, at, now, ridge)
        late = state.early and not at.early and found.round.now.iterations >= iterations
        return replace(found, round=replace(found.round, late=True)) if late else found

    monkeypatch.setattr(probe, "iterated", last_is_late)
    monkeypatch.setattr(probe, "may_end_early", lambda p, state: not state.early and next_is_early(p, state))
    found = found_by(monkeypatch, 24, 0, rtol=0.07)
    assert found.attrs["stopped_by"] == "limit"  # no time for another round
    assert (found.attrs["early_probes"], found.attrs["num_probes"]) == (4, probes)
    assert np.isfinite(found.capacity.standard_error).all()


class Clock:
    """Every look at it takes a second."""

    def __init__(self) -> None:
        self.now = time.perf_counter()

    def perf_counter(self) -> float:
        """Return the seconds."""
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("settings", [{"rtol": 0.02}, {"num_probes": 400, "rtol": 0.02}])
def test_no_round_is_begun_that_has_no_time_to_end(monkeypatch, settings) -> None:
    monkeypatch.setattr(examples_module, "WIDEST", 4)  # rounds of four where their number is known
    rounds = []
    for limit in (120.0, 180.0, 300.0):
        clock = Clock()
        monkeypatch.setattr(probe, "time", clock)
        began = clock.now
        found = found_by(monkeypatch, 24, 0, max_seconds=limit, **settings)
        rounds.append(found.attrs["rounds"])
        assert found.attrs["stopped_by"] == "limit"
        assert found.attrs["solve_error"] <= probe.SOLVES * settings["rtol"]  # each to its end
        assert 0.5 * limit < clock.now - began < limit
    assert 1 <= rounds[0] < rounds[1] < rounds[2]


def test_a_run_goes_on_from_within_a_round_that_ends_early(monkeypatch, tmp_path) -> None:
    """Bit for bit, from a point in each of the last rounds."""
    whole = found_by(monkeypatch, 24, 0, rtol=0.05)
    pause, points = Journal.pause, []
    for point in (16, 19, 22):

        def until(self: Journal, step: str, state: object, point: int = point) -> None:
            pause(self, step, state)
            points.append(state[1].round)
            if len(points) == point:
                raise KeyboardInterrupt

        points.clear()
        run = Run(tmp_path / f"{point}.safetensors", checkpoint_seconds=0)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "pause", until)
            with pytest.raises(KeyboardInterrupt):
                found_by(monkeypatch, 24, 0, run=run, rtol=0.05)
        assert any(at is not None and at.early for at in points)
        again = found_by(monkeypatch, 24, 0, run=run, rtol=0.05)
        np.testing.assert_array_equal(again.capacity, whole.capacity)
        assert again.attrs["early_probes"] == whole.attrs["early_probes"] > 0
