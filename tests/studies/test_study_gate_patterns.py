"""Hypothesis (H) measured: its flat map, the limit of an example a cell, and moments of cells in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from studies import gate_patterns
from torch import nn

import capalloc
from study_pages import assert_page_has_places


def gaussian(examples: int, inputs: int) -> torch.Tensor:
    return torch.randn(examples, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.proves("2", "one hidden layer is flat", oracle="a count: one for each unit and slot")
@pytest.mark.parametrize("biases", [False, True])
def test_one_hidden_layer_is_flat_under_the_hypothesis(biases):
    """Every slot holds one for each hidden unit; the output's bias is one more of the constant."""
    model, z = gate_patterns.network([5, 4, 1], biases, seed=0), gaussian(4000, 5)
    expected = torch.full((5 + biases,), 4.0, dtype=torch.float64)
    expected[5:] += 1
    torch.testing.assert_close(
        gate_patterns.under_hypothesis(*gate_patterns.found(model, z)), expected, rtol=1e-9, atol=0
    )


@pytest.mark.proves("2", "a cell for each example", oracle="leverages of effective_parameters times squares of inputs")
@pytest.mark.parametrize(("widths", "biases"), [([4, 3, 1], False), ([4, 3, 2], True), ([3, 4, 4, 2], True)])
def test_a_cell_for_each_example_leaves_the_squares_of_inputs(widths, biases):
    model, z = gate_patterns.network(widths, biases, seed=0), gaussian(9, widths[0])
    slots = gate_patterns.slots_of(model, z)
    cells = gate_patterns.visited(slots, torch.arange(len(z))[:, None])
    own = gate_patterns.without_hypothesis(cells, gate_patterns.constraints(model, z[cells.first]))
    leverage = torch.as_tensor(capalloc.effective_parameters(model, z).data["leverage"].to_numpy())
    expected = (
        leverage.reshape(len(z), -1).sum(1, keepdim=True) * slots.square() / slots.square().sum(1, keepdim=True)
    ).sum(0)
    torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.proves("2", "each cell with its own moments", oracle="the output Jacobian at all examples")
def test_without_it_constraints_are_those_of_the_outputs():
    """G = E[g g']: the sum over cells of J_s' E[z z' | s] J_s is the Gram matrix of the outputs' gradients."""
    model, z = gate_patterns.network([3, 4, 3, 2], True, seed=1), gaussian(300, 3)
    cells, rows = gate_patterns.found(model, z)
    weighted = torch.einsum("c,cij,cjok->ciok", cells.share.sqrt(), gate_patterns.roots(cells.moments), rows).flatten(
        0, 2
    )
    jacobian = torch.func.jacrev(torch.func.functional_call, 1)(model, dict(model.named_parameters()), (z,))
    g = torch.cat([part.flatten(2) for part in jacobian.values()], 2).flatten(0, 1)
    torch.testing.assert_close(weighted.T @ weighted, g.T @ g / len(z), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("biases", [False, True])
def test_under_it_the_map_is_the_measured_one(biases):
    model, z = gate_patterns.network([3, 4, 3, 2], biases, seed=2), gaussian(60, 3)
    kappa = gate_patterns.under_hypothesis(*gate_patterns.found(model, z))
    measured = capalloc.measure(model, z)
    expected = np.append(measured.capacity.to_numpy(), [measured.bias] * biases)
    np.testing.assert_allclose(kappa, expected, rtol=1e-9)


@pytest.mark.proves("2", "second moments of a cell", oracle="arcs of the circle in closed form")
def test_cells_of_two_gaussian_inputs_are_arcs():
    """Arcs (a, b) of the plane, where no unit has a bias, have the share (b - a) / 2 pi.

    E[z z'] = 1 + [[sin 2b - sin 2a, cos 2a - cos 2b], [., sin 2a - sin 2b]] / 2 (b - a) in them.
    """
    model, z = gate_patterns.network([2, 3, 1], False, seed=3), gaussian(200_000, 2)
    normals = model[0].weight.detach()
    edges = torch.atan2(normals[:, 1], normals[:, 0])[:, None] + torch.tensor([-math.pi / 2, math.pi / 2])
    a = (edges.flatten() % (2 * math.pi)).sort().values
    b = torch.cat([a[1:], a[:1] + 2 * math.pi])
    middle = torch.stack([((a + b) / 2).cos(), ((a + b) / 2).sin()], 1)
    sine, cosine = (2 * b).sin() - (2 * a).sin(), (2 * a).cos() - (2 * b).cos()
    moments = torch.stack([sine, cosine, cosine, -sine], 1).view(-1, 2, 2) / (2 * (b - a))[:, None, None] + torch.eye(2)
    exact = gate_patterns.Cells(torch.arange(len(a)), (b - a) / (2 * math.pi), moments)
    by_arcs = gate_patterns.without_hypothesis(exact, gate_patterns.constraints(model, middle))
    by_examples = gate_patterns.without_hypothesis(*gate_patterns.found(model, z))
    torch.testing.assert_close(by_examples, by_arcs, rtol=0, atol=0.02)  # shares of 200 000: to 1e-3
    assert gate_patterns.distance(by_arcs, torch.ones(2)) > 0  # and not flat


def test_a_larger_input_holds_less_or_more_by_the_root():
    """Under (H) nothing changes; without it the symmetric root decides which way."""
    model = gate_patterns.network([4, 6, 1], False, seed=0)
    assumed, own, in_units = gate_patterns.of_first(model, gaussian(20_000, 4), 3.0)
    assert assumed == pytest.approx(1, abs=1e-9)
    assert own < 0.98 < 1.02 < in_units


def test_roots_have_no_direction_that_their_cell_lacks():
    x = gaussian(2, 4)
    moments = x[:, :, None] * x[:, None]
    root = gate_patterns.roots(moments)
    torch.testing.assert_close(root @ root, moments)
    assert torch.linalg.matrix_rank(root).tolist() == [1, 1]


def test_the_page_has_a_place_for_the_table():
    study = gate_patterns.run(quick=True)
    assert_page_has_places(study)
    lines = study.tables["gate patterns"].splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 1 + 2


def test_gates_are_those_of_each_relu():
    model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.ReLU())
    assert gate_patterns.gates(model, torch.tensor([[-1.0, 2.0]])).tolist() == [[False, True, False, True]]
