"""Section 3, many layers: the moment recursion against linear capacity, the Markov rule, enumeration and measure."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import capalloc
from capalloc._decoupling.gate_decoupling import gate_moments
from capalloc._decoupling.gaussian_gates import gaussian_gate_moment
from capalloc._decoupling.second_moments import propagate_moments
from capalloc._measure.measure import measure
from capalloc._settings import Dense
from capalloc.app.studies.decoupling_study import KernelStack, equal_moment
from zoo import REFERENCE_CAPACITY, SCALED_REFERENCE_CAPACITY, dense, gaussian, reference_weights


def random_weights(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.tensor(rng.normal(size=(b, a))) for a, b in itertools.pairwise(sizes)]


def equal(weights, delta):
    return [equal_moment(len(w), delta) for w in weights[:-1]]


def by_patterns(weights, patterns, metric=None) -> np.ndarray:
    """kappa by section 2's definition: every combination of gate patterns, one value of each layer, equally likely.

    Rows are (output, input) for each combination, columns parameters: the mixed derivative of the gated product.
    """
    root = np.eye(weights[0].shape[1]) if metric is None else torch.linalg.cholesky(metric).numpy().T
    if metric is not None:
        values, vectors = np.linalg.eigh(metric.numpy())
        root = (vectors * np.sqrt(values)) @ vectors.T
    blocks = []
    for chosen in itertools.product(*patterns):
        gated = [w.numpy() * g.numpy()[:, None] for w, g in zip(weights[:-1], chosen, strict=True)]
        gated.append(weights[-1].numpy())
        columns = []
        for k, w in enumerate(weights):
            gate = chosen[k].numpy() if k < len(chosen) else np.ones(len(w))
            above = np.linalg.multi_dot([*gated[:k:-1], np.diag(gate)]) if gated[k + 1 :] else np.diag(gate)
            below = np.linalg.multi_dot([*gated[k - 1 :: -1], root]) if k > 1 else (gated[0] @ root if k else root)
            columns.append(np.einsum("oj,ix->oxji", above, below).reshape(-1, w.numel()))
        blocks.append(np.concatenate(columns, 1))
    matrix = np.concatenate(blocks)
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    leverage = (u[:, s > 1e-9 * s[0]] ** 2).sum(1)
    return leverage.reshape(-1, weights[0].shape[1]).sum(0)


def linear_capacity(weights, metric=None) -> np.ndarray:
    """Section 1: leverage of the derivatives of the product matrix."""
    ones = [[torch.ones(len(w), dtype=torch.float64)] for w in weights[:-1]]
    return by_patterns(weights, ones, metric)


def markov(weights) -> list[np.ndarray]:
    """Section 4, dense layered networks: every layer's capacity, before it pays for its own rescaling."""
    squares = [w.numpy() ** 2 for w in weights]
    energy = [np.ones(squares[0].shape[1])]
    for square in squares[:-1]:
        energy.append(square @ energy[-1])
    held, layers = np.zeros(len(squares[-1])), []
    for k in reversed(range(len(squares))):
        arriving = squares[k] * energy[k]
        own_symmetry = 1 if k < len(squares) - 1 else 0  # the units above are hidden
        step = arriving / arriving.sum(1, keepdims=True)
        held = len(squares[k]) + step.T @ (held - own_symmetry)
        layers.append(held)
    return layers[::-1]


@pytest.mark.proves("7", "dense networks of section 7, decoupled and linear", oracle="moments of the gates")
@pytest.mark.parametrize(
    ("scale", "expected"), [((1, 1, 1), REFERENCE_CAPACITY), ((1, 2, 0.3), SCALED_REFERENCE_CAPACITY)]
)
def test_reference_values_at_total_decoupling(scale, expected):
    weights = reference_weights(scale)
    layers = propagate_moments(weights, equal(weights, 1.0))
    np.testing.assert_allclose(layers[0], expected, rtol=5e-9)  # section 7 prints 9 digits
    for got, rule in zip(layers, markov(weights), strict=True):
        np.testing.assert_allclose(got, rule, atol=1e-10)
    np.testing.assert_allclose(propagate_moments(weights, equal(weights, 0.0))[0], [2, 2, 2], atol=1e-10)


@pytest.mark.proves("3", "delta = 0 is the linear model, delta = 1 the Markov rule", oracle="sections 1 and 4 in numpy")
@settings(max_examples=15, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 4), min_size=3, max_size=5), seed=st.integers(0, 999))
def test_the_two_ends_are_exact(sizes, seed):
    weights = random_weights(sizes, seed)
    total = propagate_moments(weights, equal(weights, 1.0))
    for got, rule in zip(total, markov(weights), strict=True):
        np.testing.assert_allclose(got, rule, atol=1e-10)
    assert float(total[0].sum()) == pytest.approx(sum(w.numel() for w in weights) - sum(sizes[1:-1]), abs=1e-10)
    np.testing.assert_allclose(propagate_moments(weights, equal(weights, 0.0))[0], linear_capacity(weights), atol=1e-10)


@pytest.mark.proves("4", "Dense layered networks", oracle="moments of the gates at delta = 1")
def test_total_decoupling_is_what_propagate_computes():
    weights = random_weights([3, 5, 4, 2])
    allocation = capalloc.propagate(dense(weights), gaussian(1, 3), gates="unit", solver="markov")
    np.testing.assert_allclose(propagate_moments(weights, equal(weights, 1.0))[0], allocation.capacity, atol=1e-10)


@pytest.mark.proves("3", "many layers at any decoupling", oracle="every combination of gate patterns")
@pytest.mark.parametrize("metric", [None, torch.tensor([[2.0, 0.5, 0], [0.5, 1, -0.3], [0, -0.3, 0.7]]).double()])
def test_any_gate_moments_meet_enumeration(metric):
    """Independent layers of gates with a few equally likely patterns each: every combination, by brute force."""
    weights = random_weights([3, 3, 4, 2])
    patterns = [list(gaussian(2, 3, seed=3)), list(gaussian(3, 4, seed=4))]
    moments = [torch.stack(p).T @ torch.stack(p) / len(p) for p in patterns]
    got = propagate_moments(weights, moments, metric=metric)[0]
    np.testing.assert_allclose(got, by_patterns(weights, patterns, metric), atol=1e-8)
    if metric is None:
        np.testing.assert_array_equal(got, propagate_moments(weights, moments, metric=torch.eye(3))[0])
    else:
        assert not np.allclose(got, propagate_moments(weights, moments, metric=metric.diagonal())[0])


@pytest.mark.proves("3", "many layers at any decoupling", oracle="measured capacity")
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
def test_measured_moments_meet_measure_with_one_hidden_layer(activation):
    weights = random_weights([4, 6, 2], seed=7)
    network = dense(weights, activation)
    x = gaussian(300, 4)
    (same,) = gate_moments(network, x).values()
    # The gates are all that J depends on: on the same examples the two agree to rounding.
    np.testing.assert_allclose(propagate_moments(weights, [same])[0], measure(network, x).capacity, atol=1e-8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_measured_moments_come_closer_to_measure_than_the_markov_rule(seed):
    """The table of docs/decoupling.md: what is left is the dependence between gates of different layers."""
    generator, sizes = torch.Generator().manual_seed(seed), (8, 10, 10, 2)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    weights = [draw(b, a) / a**0.5 for a, b in itertools.pairwise(sizes)]
    weights[0] = weights[0] * torch.linspace(0.3, 2, 8)
    network, x = dense(weights), draw(600, 8)
    shares = lambda kappa: np.asarray(kappa) / np.sum(np.asarray(kappa))  # noqa: E731
    exact = shares(measure(network, x).capacity)
    by_moments = shares(propagate_moments(weights, list(gate_moments(network, x).values()))[0])
    by_rule = shares(capalloc.propagate(network, x, solver="markov").capacity)
    moments, rule = (np.abs(s - exact).sum() / 2 for s in (by_moments, by_rule))
    assert moments < 0.01 < 0.015 < rule


def test_fresh_examples_and_theory_agree_within_sampling_error():
    weights = random_weights([4, 6, 2], seed=7)
    network = dense(weights)
    draws = np.array([measure(network, gaussian(500, 4, seed=s)).capacity.to_numpy() for s in range(10, 18)])
    mean, error = draws.mean(0), draws.std(0, ddof=1) / math.sqrt(len(draws))
    (fresh,) = gate_moments(network, gaussian(200_000, 4, seed=2), batch_size=20_000).values()
    rows = weights[0] / weights[0].norm(dim=1, keepdim=True)
    theory = gaussian_gate_moment("relu", (rows @ rows.T).clamp(-1, 1))
    for moment in (fresh, theory):
        # The capacity of a mean is not the mean capacity: the bias of order 1/N is below 0.02 here.
        difference = np.abs(propagate_moments(weights, [moment])[0].numpy() - mean)
        assert (difference < 4 * error + 0.02).all(), (difference, error)


@pytest.mark.proves("4", "Convolutions, away from borders, one output position", oracle="convolutions of laws in numpy")
def test_shared_weights_of_a_convolution():
    """One channel, away from borders: kappa_x = sum_l 1_(k_l) * walk without step l - (L - 1) walk (section 4)."""
    stack = KernelStack.random(4, 1, 3, torch.Generator().manual_seed(3))
    matrices, tangents = stack.matrices(), stack.tangents()
    got = propagate_moments(matrices, equal(matrices, 1.0), tangents)[0]
    laws = [(k.flatten() ** 2 / k.square().sum()).numpy() for k in stack.kernels]
    walk = lambda steps: [1.0] if not steps else np.convolve(walk(steps[1:]), steps[0])  # noqa: E731
    expected = sum(np.convolve(np.ones(3), walk(laws[:k] + laws[k + 1 :])) for k in range(4)) - 3 * walk(laws)
    np.testing.assert_allclose(got, expected, atol=1e-10)
    x = gaussian(1, 1, 9)
    model = nn.Sequential(*(nn.Conv1d(*k.shape[1::-1], 3, bias=False, dtype=k.dtype) for k in stack.kernels))
    for layer, kernel in zip(model, stack.kernels, strict=True):
        layer.weight.data = kernel
    product = torch.linalg.multi_dot(matrices[::-1])
    np.testing.assert_allclose(model(x).detach().flatten(), (product @ x.flatten()).flatten(), atol=1e-12)


@pytest.mark.proves("3", "G = K'(A o WW')K", oracle="the formula in dense matrices")
def test_fixed_layers_and_constraints_at_the_outputs():
    """Section 3: G = K'(A o WW')K, kappa_i = trace(G^+ K'(A o w_.i w_.i')K) for constraints K on gated outputs."""
    weight, functions, gates = gaussian(5, 3), gaussian(5, 4, seed=2), gaussian(9, 5, seed=3)
    moment = gates.T @ gates / 9
    fixed = torch.empty(0, 5, 3)
    got = propagate_moments([weight, torch.zeros(1, 5)], [moment], [fixed, functions.T[:, None]])[0]
    pulled = lambda part: functions.T @ (moment * part) @ functions  # noqa: E731
    inverse = torch.linalg.pinv(pulled(weight @ weight.T))
    expected = [float((inverse @ pulled(torch.outer(column, column))).trace()) for column in weight.T]
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_ridge_gives_effective_degrees_of_freedom():
    weights = random_weights([3, 4, 2])
    network, x = dense(weights), gaussian(50, 3)
    (moment,) = gate_moments(network, x).values()
    got = propagate_moments(weights, [moment], ridge=0.3)[0]
    np.testing.assert_allclose(
        got, measure(network, x, ridge=0.3, solver=Dense(coordinates="plain")).capacity, atol=1e-9
    )


@pytest.mark.proves("3", "invariant under a change of parameters", oracle="the same layers in other parameters")
def test_reparametrised_weights_hold_the_same_capacity():
    weights = random_weights([3, 4, 2])
    mixed = [torch.linalg.qr(gaussian(w.numel(), w.numel(), seed=k))[0] * 3**k for k, w in enumerate(weights)]
    tangents = [m.reshape(-1, *w.shape) for m, w in zip(mixed, weights, strict=True)]
    for delta in (0.0, 0.4, 1.0):
        plain, rotated = (propagate_moments(weights, equal(weights, delta), t) for t in (None, tangents))
        for a, b in zip(plain, rotated, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)


def test_no_parameters_hold_no_capacity():
    weights = random_weights([3, 4, 2])
    none = [torch.empty(0, *w.shape) for w in weights]
    assert [float(k.sum()) for k in propagate_moments(weights, equal(weights, 0.5), none)] == [0, 0]


def test_an_unclear_rank_is_told():
    weights = random_weights([3, 4, 2])
    with pytest.warns(RuntimeWarning, match="the rank is unclear"):
        propagate_moments(weights, equal(weights, 1e-11), rtol=1e-12)


ONE = [torch.ones(4, 3), torch.ones(2, 4)]
ASYMMETRIC: Tensor = torch.ones(4, 4).triu()


@pytest.mark.parametrize(
    ("weights", "moments", "options", "match"),
    [
        ([], [], {}, "weights must be matrices, at least one"),
        ([torch.ones(3)], [], {}, "weights must be matrices"),
        ([ONE[1], ONE[0]], [torch.eye(2)], {}, r"weights\[1\] reads 3 units, but weights\[0\] has 2 rows"),
        (ONE, [], {}, "one matrix for each of 1 hidden layers, got 0"),
        (ONE, [torch.eye(3)], {}, r"gate_moments\[0\] must be 4 x 4"),
        (ONE, [torch.eye(4) * math.nan], {}, r"gate_moments\[0\] holds NaN"),
        (ONE, [ASYMMETRIC], {}, r"gate_moments\[0\] must be symmetric"),
        (ONE, [torch.eye(4) - 1], {}, "no negative eigenvalue"),
        (ONE, [torch.eye(4)], {"ridge": -1.0}, "ridge must be non-negative"),
        (ONE, [torch.eye(4)], {"metric": torch.ones(4)}, r"metric must be \(3,\) or \(3, 3\)"),
        (ONE, [torch.eye(4)], {"metric": -torch.eye(3)}, "metric must have no negative"),
        (ONE, [torch.eye(4)], {"constraints": [torch.ones(1, 4, 3)]}, "one tensor for each of 2 layers, got 1"),
        (
            ONE,
            [torch.eye(4)],
            {"constraints": [torch.ones(4, 3)] * 2},
            r"constraints\[0\] must be \(parameters, 4, 3\)",
        ),
    ],
)
def test_refusals(weights, moments, options, match):
    with pytest.raises(ValueError, match=match):
        propagate_moments(weights, moments, **options)


def test_what_does_not_fit_is_refused_before_it_is_built():
    weights = [torch.ones(300, 300)] * 2
    with pytest.raises(MemoryError, match="the moment recursion"):
        propagate_moments(weights, [torch.eye(300)])
