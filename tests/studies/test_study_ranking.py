"""The study of ranking: statistics against scipy and by hand, networks within bounds, runs that go on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from studies import ranking
from studies.ranking_networks import DATA, KINDS, LARGEST, SMALLEST, Plan, build, plans

from study_pages import assert_page_has_places

RNG = np.random.default_rng(0)
A, B, C = RNG.normal(size=(3, 40))
B = A + B


def test_spearman_with_ties():
    rounded = np.round(A)
    assert ranking.spearman(rounded, B) == pytest.approx(stats.spearmanr(rounded, B).statistic)
    assert ranking.spearman(np.ones(40), B) == 0


def test_what_is_no_number_ranks_last_and_infinity_first():
    assert ranking.ranks(np.array([[1.0, math.nan, math.inf, 0.5]])).tolist() == [[3, 1, 4, 2]]


def test_partial_correlation_of_three_by_its_formula():
    """(r_ab - r_ac r_bc) / sqrt((1 - r_ac^2)(1 - r_bc^2))."""
    ab, ac, bc = (ranking.spearman(*pair) for pair in ((A, B), (A, C), (B, C)))
    expected = (ab - ac * bc) / math.sqrt((1 - ac**2) * (1 - bc**2))
    assert ranking.partial(A, B, [C]) == pytest.approx(expected)
    assert math.isnan(ranking.partial(A, B, [A]))


def test_intervals_and_chance():
    low, high = ranking.interval(A, B)
    assert low < ranking.spearman(A, B) < high
    assert ranking.interval(A, B, A) == (0, 0)
    assert ranking.chance(100) == pytest.approx(1.96 / math.sqrt(99), rel=0.05)


def test_networks_are_different_within_bounds_and_of_every_kind():
    shapes = (((1, 8, 8), 10), ((3, 8, 8), 8))
    found = plans(40, shapes)
    assert len(set(found)) == 40
    assert {plan.kind for plan in found} == set(KINDS)
    for plan in found:
        for shape, classes in shapes:
            model = build(plan, shape, classes)
            assert SMALLEST <= sum(p.numel() for p in model.parameters()) <= LARGEST
            assert model(torch.randn(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize("name", DATA)
def test_data_are_split_and_of_one_shape(name):
    data = DATA[name]()
    assert data.x.shape[1:] == data.test_x.shape[1:]
    assert len(data.x) >= ranking.TRAINED
    assert set(data.y.tolist()) == set(data.test_y.tolist())


def test_a_run_goes_on_where_it_was_cut_short(tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    asked = []

    def one(plan: Plan, data: ranking.Data, epochs: int) -> dict[str, object]:
        asked.append(plan)
        return {**{name: float(len(asked)) for name in ranking.SCORES}, "accuracy": [0.1, 0.2, 0.3 + len(asked) / 99]}

    monkeypatch.setattr(ranking, "one", one)
    monkeypatch.setattr(ranking, "NETWORKS", 8)
    first = ranking.run(finished=rows)
    assert len(asked) == len(rows.read_text().splitlines()) == 8 * len(DATA)
    kept = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(kept[:20]))
    monkeypatch.setattr(
        ranking, "one", lambda *_: {key: json.loads(kept[20])[key] for key in (*ranking.SCORES, "accuracy")}
    )
    again = ranking.run(finished=rows)
    assert len(rows.read_text().splitlines()) == 8 * len(DATA)
    assert set(again.tables) == set(first.tables)


def test_one_network_is_scored_and_trained():
    data = DATA["digits"]()
    plan = Plan("dense", 4, 1, 1, "relu", False, "flat")
    found = ranking.one(plan, data, 1)
    assert found["parameters"] == 65 * 4 + 5 * 10
    assert len(found["accuracy"]) == ranking.SEEDS
    assert found["accuracy"][1] == ranking.trained(plan, data, 1, 1)


@pytest.mark.slow
def test_the_page_has_places_for_the_tables():
    assert_page_has_places(ranking.run(quick=True))
