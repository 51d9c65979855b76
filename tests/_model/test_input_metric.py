"""Moments of the inputs, and the metrics made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import capalloc
from capalloc._model.input_metric import input_metric
from capalloc._model.input_moments import InputMoments, note_of_still, still_inputs
from capalloc._model.places import Places
from capalloc._model.problem import prepare
from zoo import gaussian, seeded_module

MODEL = seeded_module(torch.nn.Linear, 4, 1)


def examples(number: int = 40):
    x = gaussian(number, 4, seed=2)
    return (x + 0.7 * x.roll(1, 1)) * torch.tensor([1.0, 3.0, 0.2, 1.0]) + torch.tensor([1e3, 0.0, -5.0, 1.0])


@pytest.mark.parametrize("size", [1, 7, 40])
def test_moments_do_not_depend_on_batches(size):
    x = examples()
    found = InputMoments.of([(batch, None) for batch in x.split(size)])
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.variance, x.var(0, correction=0), rtol=1e-12)
    assert found.count == 40


def test_an_input_that_never_varies_has_no_variance_at_all():
    x = examples().float()
    x[:, 2] = 0.1
    assert float(InputMoments.of(x.split(9)).variance[2]) == 0
    assert still_inputs(x.split(9)).tolist() == [False, False, True, False]
    assert still_inputs(x[:1]) is None


@pytest.mark.proves(
    "2",
    "the root D C^(1/2) of the shrunk covariance commutes with scaling",
    oracle="Ledoit and Wolf's estimator on standardised data, a change of units",
)
def test_the_root_of_the_covariance_commutes_with_scaling():
    x, units = examples(), torch.tensor([2.0, 255.0, 0.1, 1.0], dtype=torch.float64)
    one, other = (input_metric("covariance", prepare(MODEL, y)).root for y in (x, x * units + 3))
    np.testing.assert_allclose(other, units[:, None] * one, rtol=1e-9, atol=1e-12)
    deviation = x.std(0, correction=0)
    shrunk = capalloc.linear.estimate_covariance((x - x.mean(0)) / deviation).matrix
    np.testing.assert_allclose(one @ one.T, deviation[:, None] * np.asarray(shrunk) * deviation.numpy(), rtol=1e-9)


def test_inputs_that_never_vary_stay_out_of_a_covariance():
    x = examples()
    x[:, 1] = 3.0
    root = input_metric("covariance", prepare(MODEL, x)).root
    assert not root[1].any()
    assert not root[:, 1].any()
    kept = [0, 2, 3]
    rest = input_metric("covariance", prepare(seeded_module(torch.nn.Linear, 3, 1), x[:, kept])).root
    np.testing.assert_allclose(root[kept][:, kept], rest, rtol=1e-12)


@pytest.mark.parametrize("metric", ["variance", "covariance"])
@pytest.mark.parametrize("method", [capalloc.measure, capalloc.propagate, capalloc.walk, capalloc.scaling])
def test_data_that_say_nothing_are_refused(method, metric):
    with pytest.raises(ValueError, match="inputs hold 1 example: pass at least 2, or metric='identity'"):
        method(MODEL, examples(1), metric=metric)
    with pytest.raises(ValueError, match="no input varies over the 3 examples"):
        method(MODEL, torch.ones(3, 4).double(), metric=metric)


@pytest.mark.parametrize("method", [capalloc.measure, capalloc.propagate, capalloc.receptive_field])
def test_unknown_words_are_refused(method):
    with pytest.raises(
        ValueError, match="metric must be one of identity, variance, covariance, or a tensor, got 'var'"
    ):
        method(MODEL, examples(), metric="var")


def test_a_covariance_of_too_many_inputs_is_refused(monkeypatch):
    monkeypatch.setattr("capalloc._model.input_moments.MOST_CORRELATED", 3)
    with pytest.raises(ValueError, match="serves up to 3; there are 4: use metric='variance'"):
        capalloc.measure(MODEL, examples(), metric="covariance")


def test_the_note_names_the_first_few():
    x = torch.zeros(2, 3, 3)
    (note,) = note_of_still(x, torch.ones(3, 3), Places.of((3, 3)))
    assert note.startswith("9 inputs never vary in these examples and hold 100.0% of the map: (0, 0), (0, 1), ")
    assert ", ...;" in note
    x[0, 1:] = 1
    x[0, 0, 1:] = 1
    (note,) = note_of_still(x, torch.eye(3), Places.of((3, 3)))
    assert note.startswith("1 input never varies in these examples and holds 33.3% of the map: (0, 0);")
    assert not note_of_still(x, torch.zeros(3, 3), Places.of((3, 3)))


def test_empty_batches_stand_in_the_way_of_no_method():
    model, x = seeded_module(lambda: torch.nn.Linear(3, 2)), gaussian(9, 3)
    batches = [x[:0], x[:4], x[:0], x[4:]]
    np.testing.assert_array_equal(still_inputs(batches), still_inputs(x))
    for solver in ("markov", "block", "segments"):
        found, whole = (capalloc.propagate(model, given, solver=solver) for given in (batches, x))
        np.testing.assert_allclose(found.capacity, whole.capacity)
