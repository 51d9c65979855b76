"""The mark of the examples that a result stands on."""

from __future__ import annotations

import torch
from torch import nn

import capalloc
from capalloc._model.examples_digest import digest_of_examples
from zoo import gaussian, seeded_module


def test_the_mark_is_that_of_the_examples_alone():
    x = gaussian(7, 2, 3)
    mark = digest_of_examples(x)
    assert len(mark) == 16
    assert digest_of_examples(x.flip(0)) == mark
    assert digest_of_examples([(batch, None) for batch in x.split(3)]) == mark
    single = x.float()
    assert digest_of_examples(single) == digest_of_examples(single.double())
    assert digest_of_examples(x.transpose(1, 2).contiguous().transpose(1, 2)) == mark  # other strides


def test_other_examples_have_another_mark():
    x = gaussian(7, 2, 3)
    moved = x.clone()
    moved[3, 1, 2] += 1e-9
    others = [x[:6], torch.cat([x, x[:1]]), moved, x.transpose(1, 2), x.reshape(7, 6)]
    assert len({digest_of_examples(other) for other in (x, *others)}) == 6


def test_measure_and_propagate_mark_the_same_examples_alike():
    model = seeded_module(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    x = gaussian(30, 4).float()
    model = model.float()
    mark = digest_of_examples(x)
    assert capalloc.measure(model, x).attrs["data_digest"] == mark
    assert capalloc.measure(model, x, ridge=0.1, solver="stochastic").attrs["data_digest"] == mark
    for solver in ("markov", "block", "segments", "hessian"):
        found = capalloc.propagate(model, x.split(8), solver=solver)
        assert (found.attrs["data_digest"], found.attrs["num_examples"]) == (mark, 30)
    assert "data_digest" not in capalloc.propagate(model, x, gates="gaussian", solver="markov").attrs
