"""Models that `torch.export` refuses, against the same models written so that it takes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import capalloc
from capalloc._graph import retrace
from zoo import gaussian


class Branching(nn.Module):
    def __init__(self, where: str | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b, self.where = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2), where
        self.register_buffer("large", torch.tensor(3.0))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x))
        tests = {"buffer": lambda: self.large > 2, "parameter": lambda: self.a.weight.sum() < 1e3, None: lambda: True}
        tests |= {"made": lambda: torch.ones(3, 3).triu().sum() > 5}
        tests |= {"inputs": lambda: x.sum() > 0, "shapes": lambda: len(x[:, 0].nonzero())}
        if tests[self.where]():
            h = torch.relu(h)
        return self.b(h)


@pytest.mark.parametrize("where", ["buffer", "parameter", "made"])
def test_branches_on_what_does_not_depend_on_the_inputs_are_taken_as_they_are(where: str) -> None:
    x = gaussian(7, 4)
    found = capalloc.propagate(Branching(where), x, solver="markov")
    plain = capalloc.propagate(Branching(None), x, solver="markov")
    np.testing.assert_allclose(found.capacity, plain.capacity)
    np.testing.assert_allclose(found.by_parameter.sum(), plain.by_parameter.sum())
    assert retrace.RETRACED in found.attrs["notes"]
    assert retrace.RETRACED not in plain.attrs["notes"]


@pytest.mark.parametrize("where", ["inputs", "shapes"])
def test_branches_and_shapes_of_the_inputs_are_refused(where: str) -> None:
    with pytest.raises(ValueError, match="makes a branch or a shape of the inputs"):
        retrace.retrace(Branching(where), gaussian(2, 4))


def test_a_causal_mask_that_is_looked_for_is_the_one_that_is_declared() -> None:
    class Encoder(nn.Module):
        def __init__(self, declared: bool | None) -> None:
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
            self.encoder, self.declared = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), declared

        def forward(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(3)
            return self.encoder(x, mask=mask, is_causal=self.declared)[:, -1]

    x = gaussian(5, 3, 4).float()
    found, declared = (capalloc.propagate(Encoder(d), x, solver="markov") for d in (None, True))
    np.testing.assert_allclose(found.capacity, declared.capacity, rtol=1e-5)


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    model, state = Branching("buffer").train(), torch.get_rng_state()
    capalloc.propagate(model, gaussian(7, 4), solver="markov")
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
