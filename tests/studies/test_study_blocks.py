"""The study of blocks and optimisers: its networks by hand, its optimisers against torch's, how a step scales."""

from __future__ import annotations

import pytest
import torch
from studies import blocks

from study_pages import assert_page_has_places


def test_outputs_are_those_of_the_blocks_one_by_one():
    stem, weights, readout = blocks.initial(3, 2, 0, (5, 2))
    x, h = torch.randn(4, 5), None
    h = x @ stem
    for first, last in weights:
        h = h + 0.3 * torch.relu(torch.relu(h) @ first) @ last
    found = blocks.outputs([stem[None], weights[None], readout[None]], x, torch.tensor([[[0.3]]]))
    torch.testing.assert_close(found[0], h @ readout)


@pytest.mark.parametrize(("name", "torch_s"), [("SGD", torch.optim.SGD), ("Adam", torch.optim.Adam)])
def test_steps_are_those_of_torch(name, torch_s):
    generator = torch.Generator().manual_seed(0)
    theirs = torch.randn(3, generator=generator).requires_grad_()
    ours = theirs.detach().clone()
    descent = torch_s([theirs], lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
    step = blocks.STEPS[name]([torch.zeros(3)], [torch.zeros(3)])
    for _ in range(5):
        theirs.grad = torch.randn(3, generator=generator)
        descent.step()
        ours -= 0.1 * step((theirs.grad,))[0]
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.proves("5", "a step of each optimiser", oracle="the change of outputs after one step")
@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_a_step_moves_outputs_by_its_power_of_the_depth(name, exponent):
    """Blocks alone move, of one layer, from weights of 0: L eps^2 under SGD and L eps under Adam, exactly."""
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))

    stem, _, readout = (part[None].double() for part in blocks.initial(1, 1, 0, (5, 2)))

    def moved(depth: int) -> float:
        weights = torch.zeros(1, depth, 1, blocks.WIDTH, blocks.WIDTH, dtype=torch.float64, requires_grad=True)
        eps = torch.full((1, 1, 1), depth**-exponent, dtype=torch.float64)
        forward = lambda w: blocks.outputs([stem, w, readout], x.double(), eps)[0, :, 0].sum()  # noqa: E731
        gradient = torch.autograd.grad(forward(weights), weights)
        zeros = torch.zeros_like(weights)
        move = blocks.STEPS[name]([zeros], [zeros.clone()])(gradient)[0]
        with torch.no_grad():
            return float(forward(weights - 1e-6 * move) - forward(weights))

    assert moved(64) / moved(4) == pytest.approx(16 ** -blocks.SHIFT[name](exponent), rel=1e-2)


def test_the_page_has_a_place_for_the_table():
    study = blocks.run(quick=True)
    assert_page_has_places(study)
    assert len(study.tables["blocks"].splitlines()) == 2 + 2 * 2 * 2
