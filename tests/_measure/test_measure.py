"""Measured capacity against brute force, closed forms and conservation laws."""

from __future__ import annotations

import copy
import itertools
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from capalloc._derivatives.recognise import RECOGNISERS
from capalloc._linalg.row_block import RowBlock
from capalloc._measure.forecast import duration
from capalloc._measure.measure import CapacityWarning, measure
from capalloc._measure.task import make_task
from capalloc._measure.work_plan import Size
from capalloc._runtime.memory import available_bytes
from capalloc._settings import Dense, Run, Stochastic
from measured import MODELS, Branches, Centre, Counter, Cube, CubeNew, Cubic, Signs, build, data, snapshot
from reference import by_tensor, capacity_table, constraints, dense_markov, whiten


def slots(allocation) -> np.ndarray:
    """(parameter, inputs then bias)."""
    table = allocation.table
    return np.concatenate([table.values.reshape(len(table), -1), table["bias"].values[:, None]], 1)


#: Derivatives along the parameters as they are.
PLAIN = Dense(coordinates="plain")


def magnitudes_of(model) -> np.ndarray:
    """|theta|, in the order of the columns."""
    return np.concatenate([p.detach().double().abs().numpy().ravel() for p in model.parameters()])


def assert_equals_reference(model, x, metric=None, covariance=None, ridge=0.0, intercept=True, atol=1e-7, **kwargs):
    kwargs = {"solver": PLAIN} | kwargs
    allocation = measure(model, x, metric=metric, ridge=ridge, intercept=intercept, **kwargs)
    C = constraints(model, x, intercept, 0.0 if metric is None else x.mean(0))
    if kwargs["solver"] != PLAIN:
        C = C * magnitudes_of(model)
    if covariance is not None:
        C = whiten(C, covariance, intercept)
    expected = by_tensor(capacity_table(C, ridge), model)
    if not intercept:
        expected = np.pad(expected, ((0, 0), (0, 1)))
    np.testing.assert_allclose(slots(allocation), expected, atol=atol, rtol=1e-6)
    return allocation


@pytest.mark.proves(
    "2",
    "kappa_i = trace(G^+ M_i) and its joint table",
    oracle="nested autograd by example, a dense inverse",
)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_equals_brute_force(name):
    make, shape = MODELS[name]
    model = build(make)
    p = sum(q.numel() for q in model.parameters())
    x = data(max(6, p // 16), *shape)
    assert_equals_reference(model, x, ridge=1e-3, solver="dense")
    allocation = assert_equals_reference(model, x, ridge=1e-3)
    assert allocation.attrs["differentiation"] == "forward", allocation.attrs["notes"]


@pytest.mark.proves(
    "2",
    "kappa_i = trace(G^+ M_i) and its joint table",
    oracle="nested autograd by example, singular vectors",
)
@pytest.mark.parametrize("name", ["relu", "twice", "shared", "batchnorm1d"])
@pytest.mark.parametrize("intercept", [True, False])
def test_pseudo_inverse_equals_brute_force(name, intercept):
    make, shape = MODELS[name]
    assert_equals_reference(build(make), data(40, *shape), intercept=intercept, atol=1e-5)


def test_wide_and_tall_solvers_share_one_ridge_answer():
    model = build(MODELS["relu"][0])
    assert_equals_reference(model, data(2, 4), ridge=0.3)  # 20 rows, 37 parameters
    assert_equals_reference(model, data(20, 4), ridge=0.3)


@pytest.mark.proves("2", "rows in the metric S", oracle="nested autograd whitened by a dense root")
@pytest.mark.parametrize("form", ["variances", "matrix", "axes"])
def test_metric_mixes_inputs_by_its_symmetric_root(form):
    model, x = build(MODELS["conv2d"][0]), data(12, 1, 4, 4)
    if form == "variances":
        metric = data(1, 4, 4, seed=3).abs()
        covariance = metric.flatten().diag()
    else:
        factor = data(16, 16, seed=3)
        metric = covariance = factor @ factor.T
    if form == "axes":
        metric = covariance.reshape(1, 4, 4, 1, 4, 4)
    assert_equals_reference(model, x, metric=metric, covariance=covariance.numpy(), ridge=0.1)


def test_directions_come_in_chunks_where_one_example_is_too_large():
    """Two of four at a time, where memory holds the solver and two and a half."""
    model, x = build(MODELS["tanh"][0]), data(20, 3)
    whole = measure(model, x)
    size = Size(20, 2, 4, whole.attrs["num_params"])
    one = (whole.attrs["forecast_bytes"] - size.solver_bytes - size.stored_bytes) / (20 * 4)
    found = measure(model, x, run=Run(max_bytes=size.solver_bytes + 2.5 * one))
    assert found.attrs["forecast_bytes"] == size.solver_bytes + 2 * one
    np.testing.assert_allclose(slots(found), slots(whole), rtol=1e-9, atol=1e-9)


# Closed forms


@pytest.mark.proves("1", "kappa_i is a leverage score of C", oracle="singular vectors of a Kronecker product")
def test_linear_network_gives_leverage_scores_of_its_jacobian():
    model = build(lambda: nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(2, 4, bias=False)))
    allocation = measure(model, data(30, 5))
    W1, W2 = (p.detach().numpy() for p in model.parameters())
    # w = W2 W1, (outputs, inputs): its Jacobian has the columns of both factors, rank 2 (4 + 5 - 2)
    J = np.concatenate([np.kron(W2, np.eye(5)), np.kron(np.eye(4), W1.T)], 1)
    left, singular, _ = np.linalg.svd(J, full_matrices=False)
    leverage = (left[:, singular > 1e-10] ** 2).sum(1).reshape(4, 5).sum(0)
    np.testing.assert_allclose(allocation.capacity, leverage, rtol=1e-9)
    assert allocation.total == pytest.approx(14, rel=1e-12)
    assert allocation.bias == pytest.approx(0, abs=1e-12)


@pytest.mark.proves("2", "with ridge: sum of s / (s + lambda)", oracle="eigenvalues of a brute-force G")
def test_ridge_gives_effective_degrees_of_freedom():
    model, x = build(MODELS["relu"][0]), data(50, 4)
    C = constraints(model, x)
    G = np.einsum("eoik,eoil->kl", C, C) / len(x)
    values = np.linalg.eigvalsh(G)
    for ridge in (1e-3, 0.1, 10.0):
        expected = (values / (values + ridge)).sum()
        assert measure(model, x, ridge=ridge, solver=PLAIN).total == pytest.approx(expected, rel=1e-9)


@pytest.mark.proves(
    "2",
    "kappa_i = d log pdet G / d log(weight of input i)",
    oracle="finite differences, nested autograd",
)
def test_the_derivative_of_the_log_determinant():
    """Weights of inputs are those of the metric; central differences, of an error of 1e-8."""
    model, x, weights = build(MODELS["relu"][0]), data(60, 4), np.array([0.5, 1.0, 2.0, 3.0])
    C = constraints(model, x, center=x.mean(0))

    def log_determinant(weights: np.ndarray) -> float:
        G = np.einsum("eoik,i,eoil->kl", C, np.append(weights, 1), C) / len(x)
        values = np.linalg.eigvalsh(G)
        return float(np.log(values[values > 1e-10 * values[-1]]).sum())

    steps = 1e-4 * np.eye(4)
    up, down = ([log_determinant(weights * np.exp(sign * step)) for step in steps] for sign in (1, -1))
    found = measure(model, x, metric=torch.from_numpy(weights)).capacity
    np.testing.assert_allclose(found, (np.array(up) - down) / 2e-4, rtol=1e-6)


@pytest.mark.proves("2", "invariant under rescaling", oracle="the same function rescaled")
def test_invariance_under_reparametrisation_of_parameters_and_inputs():
    """Capacity ignores how parameters are scaled, and a change of units undone by the metric."""
    plain = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    scaled = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    units = torch.tensor([1.0, 2.0, 0.3], dtype=torch.float64)
    gains = torch.tensor([1.0, 0.1, 3.0, 2.0, 0.5], dtype=torch.float64)
    scaled[0].weight.data = gains[:, None] * plain[0].weight.data / units
    scaled[2].weight.data = plain[2].weight.data / gains
    x = data(60, 3)
    expected = measure(plain, x, metric=torch.ones(3)).capacity
    np.testing.assert_allclose(measure(scaled, x * units, metric=units**2).capacity, expected, rtol=1e-8)


@pytest.mark.proves("2", "additive over independent models", oracle="each model measured alone")
def test_capacity_is_additive_over_independent_models():
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
            self.right = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.left(x[:, :2]), self.right(x[:, 2:])], 1)

    model, x = build(Side), data(60, 5)
    whole = measure(model, x)
    left, right = measure(model.left, x[:, :2]), measure(model.right, x[:, 2:])
    np.testing.assert_allclose(whole.capacity, np.concatenate([left.capacity, right.capacity]), rtol=1e-7)
    assert whole.bias == pytest.approx(left.bias + right.bias, rel=1e-7)


@pytest.mark.proves("2", "no constant input without biases", oracle="a count of weights less rescalings")
def test_homogeneous_network_without_biases_has_no_constant_input():
    model = build(MODELS["relu_no_bias"][0])
    allocation = measure(model, data(40, 4))
    assert allocation.bias == pytest.approx(0, abs=1e-9)
    assert allocation.total == pytest.approx(30 - 5, rel=1e-10)  # one rescaling for each hidden unit


def sign_network(scale: Tensor | None = None) -> nn.Module:
    weights, _ = dense_markov()
    model = nn.Sequential(
        nn.Linear(3, 4, bias=False), Signs(), nn.Linear(4, 3, bias=False), Signs(), nn.Linear(3, 2, bias=False)
    ).double()
    for layer, weight in zip(model[::2], weights, strict=True):
        layer.weight.data = torch.from_numpy(weight)
    if scale is not None:
        model[0].weight.data *= scale
    return model


@pytest.mark.proves("4", "Dense layered networks", oracle="measured capacity with gates drawn as signs")
def test_random_signs_converge_to_the_markov_rule():
    """Section 7. Moments of the gates over N draws have errors ~ 1/sqrt(N)."""
    _, expected = dense_markov()
    errors = []
    for count in (500, 8000):
        runs = [
            measure(sign_network(), torch.ones(count, 3).double(), generator=torch.Generator().manual_seed(k))
            for k in range(3)
        ]
        assert all(run.total == pytest.approx(23, abs=1e-8) for run in runs)
        errors.append(np.sqrt(np.mean([(run.capacity.values - expected) ** 2 for run in runs])))
    assert errors[1] < 3 / np.sqrt(8000)
    assert errors[1] < errors[0] / 2  # 16 times the draws: a quarter expected


def test_random_draws_repeat_with_the_generator_and_leave_the_global_state():
    model, x = sign_network(), torch.ones(50, 3).double()
    state = torch.get_rng_state()
    first = measure(model, x, generator=torch.Generator().manual_seed(5))
    again = measure(model, x, generator=torch.Generator().manual_seed(5))
    other = measure(model, x, generator=torch.Generator().manual_seed(6))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.table, again.table)
    assert not np.allclose(first.table, other.table)


# Properties


@pytest.mark.proves("2", "kappa = rank G, marginals of the table", oracle="conservation on random networks")
@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
    activation=st.sampled_from([nn.ReLU, nn.Tanh, nn.LeakyReLU, nn.Softplus]),
    bias=st.booleans(),
)
def test_total_is_the_rank_and_marginals_agree(widths, seed, activation, bias):
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b, bias=bias), activation()]
    model = nn.Sequential(*layers[:-1]).double()
    allocation = measure(model, data(60, widths[0], seed=seed))
    table = slots(allocation)
    rank = allocation.attrs["rank"]
    assert (table >= 0).all()
    # Whitened rows lose eps times the condition number, which the rank's own tolerance lets reach 1e12 and more.
    assert allocation.total == pytest.approx(rank, rel=1e-4)
    assert rank <= allocation.attrs["num_params"]
    np.testing.assert_allclose(table.sum(0)[:-1], allocation.capacity, atol=1e-12)
    np.testing.assert_allclose(table.sum(1), allocation.by_parameter, atol=1e-12)


# The same answer by every road


@pytest.mark.parametrize("name", ["relu", "tanh", "shared"])
def test_batch_size_and_kind_of_batches_do_not_matter(name):
    make, shape = MODELS[name]
    model, x = build(make), data(21, *shape)
    whole = measure(model, x, ridge=1e-6)
    labels = torch.zeros(21, dtype=torch.long)
    pairs = [(x[:10], labels[:10]), (x[10:], labels[10:])]
    for inputs, batch_size in ((x, 1), (x, 4), (x, 100), (pairs, 4), (iter(pairs), "auto")):
        other = measure(model, inputs, ridge=1e-6, batch_size=batch_size)
        np.testing.assert_allclose(slots(other), slots(whole), rtol=1e-7, atol=1e-9)


def test_rows_recomputed_equal_rows_kept():
    model, x = build(MODELS["relu"][0]), data(30, 4)
    kept, again = (measure(model, x, batch_size=7, solver=Dense(kept_share=share)) for share in (0.5, 0.0))
    assert again.attrs["forecast_bytes"] < kept.attrs["forecast_bytes"]
    np.testing.assert_allclose(slots(again), slots(kept), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{"ridge": 0.1}, {"ridge": 0.1, "batch_size": 3}, {}])
def test_weights_of_other_outputs_are_skipped(monkeypatch, settings):
    """The last layer's weights into one output are no columns of the others' rows; the answer does not know it."""
    model, x = build(lambda: nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))), data(40, 4)
    seen: list[list] = []
    spans = RowBlock.spans
    monkeypatch.setattr(RowBlock, "spans", lambda self: (seen.append(spans(self)[1]), spans(self))[1])
    found = measure(model, x, **settings)
    assert all(len(own) == 3 and all(own) for own in seen)  # each output has columns of its own
    monkeypatch.setattr(RowBlock, "spans", lambda self: ([(0, self.rows.shape[1])], [[] for _ in self.filled]))
    whole = measure(model, x, **settings)
    np.testing.assert_allclose(slots(found), slots(whole), rtol=1e-8, atol=1e-10)


def test_params_restricts_the_columns():
    model, x = build(MODELS["relu"][0]), data(30, 4)
    C = constraints(model, x)
    expected = capacity_table(C[..., 25:])  # the second layer's weight and bias
    for params in (["2.weight", "2.bias"], lambda name: name.startswith("2")):
        allocation = measure(model, x, params=params)
        assert list(allocation.by_parameter["parameter"].values) == ["2.weight", "2.bias"]
        np.testing.assert_allclose(slots(allocation).sum(0), expected.sum(0), atol=1e-8)


def test_outputs_selects_constraints():
    model, x = build(MODELS["relu"][0]), data(40, 4)
    one = nn.Sequential(model[0], model[1], nn.Linear(5, 1).double())
    one[2].weight.data, one[2].bias.data = model[2].weight.data[:1], model[2].bias.data[:1]
    selected = measure(model, x, outputs=lambda y: y[:, :1])
    np.testing.assert_allclose(selected.capacity, measure(one, x).capacity, rtol=1e-8)


def test_float32_model_is_measured_in_float64():
    model, x = build(MODELS["relu"][0]).float(), data(30, 4).float()
    expected = measure(copy.deepcopy(model).double(), x.double())
    np.testing.assert_allclose(slots(measure(model, x)), slots(expected), rtol=1e-10, atol=1e-12)


# Models that function transforms cannot enter


@pytest.mark.parametrize(("function", "way"), [(None, "forward"), (CubeNew, "reverse"), (Cube, "loop")])
def test_custom_functions_take_a_slower_way_to_the_same_answer(function, way):
    model, x = build(lambda: Cubic(function)), data(20, 3)
    plain = Cubic(None).double()
    plain.load_state_dict(model.state_dict())
    allocation = assert_equals_reference(plain, x, ridge=1e-3)
    other = measure(model, x, ridge=1e-3, solver=PLAIN)
    np.testing.assert_allclose(slots(other), slots(allocation), rtol=1e-7, atol=1e-9)
    assert other.attrs["differentiation"] == way
    slower = [note for note in other.attrs["notes"] if not note.startswith("not settled")]
    assert bool(slower) == (way != "forward")


def test_control_flow_on_values_is_measured_one_example_at_a_time():
    allocation = measure(build(Branches), data(30, 3))
    assert allocation.attrs["differentiation"] == "loop"
    assert allocation.total == pytest.approx(16, rel=1e-9)  # two affine maps, each with examples of its own


def test_unused_parameters_bring_nothing():
    model = build(lambda: nn.Linear(3, 2))
    model.register_parameter("spare", nn.Parameter(torch.ones(2).double()))
    allocation = measure(model, data(10, 3))
    assert allocation.by_parameter.sel(parameter="spare") == 0
    assert allocation.total == pytest.approx(8)


def test_parameters_that_nothing_moves_are_counted_exactly():
    """Whatever the magnitudes of the others: six shut units of 16, what they read, their biases, what reads them."""
    model = build(lambda: nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3)))
    nn.init.zeros_(model[0].bias)
    nn.init.zeros_(model[2].bias)
    nn.init.constant_(model[0].bias[:6], -50.0)
    for number in (200, 5):  # more constraints than parameters, and fewer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CapacityWarning)  # of few examples
            found = measure(model, data(number, 10))
        moved = constraints(model, data(number, 10))
        assert found.attrs["unused_params"] == int((abs(moved) == 0).all((0, 1, 2)).sum()) >= 6 * (10 + 1 + 3)


def test_function_without_parameters_in_reach_has_no_capacity():
    model = build(lambda: nn.Linear(3, 2))
    allocation = measure(model, data(10, 3), params=["bias"], intercept=False)
    assert allocation.total == 0
    assert allocation.attrs["rank"] == 0


def test_every_call_rule_agrees_with_autograd():
    """A rule is tested by a model above whose parameters it taps."""
    tapped = set()
    for make, shape in MODELS.values():
        tap = Watch()
        with tap:
            build(make)(data(1, *shape))
        tapped |= tap.functions
    untested = {rule.__name__ for rule in RECOGNISERS.values()} - {RECOGNISERS[f].__name__ for f in tapped}
    assert not untested


class Watch(TorchFunctionMode):
    """Which rules a model meets with one of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.functions = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in RECOGNISERS and any(isinstance(a, nn.Parameter) for a in (*args, *(kwargs or {}).values())):
            self.functions.add(func)
        return func(*args, **(kwargs or {}))


# The user's model


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_untouched(fails):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 2))
    model.train()
    model[0].weight.requires_grad_(False)
    model[3].register_forward_hook(lambda *_: None)
    state, modes, hooks, flags = snapshot(model)
    sdp, mha = torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()
    x = data(20, 3).float()
    if fails:
        x[-1, -1] = torch.nan
        with pytest.raises(ValueError, match="NaN"):
            measure(model, [x[:5], x[5:10], x[10:]])
    else:
        measure(model, x, ridge=0.1)
    after = snapshot(model)
    assert all(torch.equal(state[name], t) for name, t in after[0].items())
    assert after[1:] == (modes, hooks, flags)
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()) == (sdp, mha)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context):
    model, x = build(MODELS["tanh"][0]), data(20, 3)
    expected = slots(measure(model, x, ridge=0.1))
    with context():
        np.testing.assert_allclose(slots(measure(model, x.clone(), ridge=0.1)), expected, rtol=1e-12)


# What is said, and what is refused


@pytest.mark.proves("2", "rank G at most N m (n + 1)", oracle="a count of rows")
def test_few_examples_warn():
    model = build(MODELS["relu"][0])
    with pytest.warns(CapacityWarning, match="20 rows of constraints for 37 parameters.*at least 4 examples"):
        allocation = measure(model, data(2, 4))
    assert "limited by the data" in allocation.attrs["notes"][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(model, data(2, 4), ridge=0.1)


def test_unclear_rank_is_noted():
    """w A x has the constraints A; columns of other lengths alone leave the rank clear."""
    turn = torch.linalg.qr(data(12, 12)).Q
    near = torch.cat([torch.ones(1), torch.logspace(-13, -15, 11)])
    for values, unclear in ((torch.logspace(0, -11, 12), 0), (near, 1)):
        model = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, 1, bias=False)).double()
        model[0].weight.data = turn @ torch.diag(values.double()) @ turn.T
        notes = measure(model, data(3, 12), params=["1.weight"], intercept=False).attrs["notes"]
        assert len(notes) == unclear, notes
    metric = torch.logspace(0, -40, 12, dtype=torch.float64)
    assert not measure(nn.Linear(12, 1, bias=False).double(), data(3, 12), metric=metric, intercept=False).attrs[
        "notes"
    ]
    (note,) = notes
    assert "rank is unclear" in note


def test_attributes_tell_how_it_was_made():
    attrs = measure(build(MODELS["relu"][0]), data(30, 4), ridge=0.5).attrs
    expected = {
        "kind": "measured",
        "solver": "dense",
        "num_params": 37,
        "num_examples": 30,
        "num_outputs": 2,
        "ridge": 0.5,
        "coordinates": "log",
        "accuracy": 1e-8,
        "precision": "float64",
        "intercept": True,
        "half_examples": 15,
    }
    assert {key: attrs[key] for key in expected} == expected
    (note,) = attrs["notes"]
    assert note.startswith(f"not settled: the first 15 of 30 examples give {attrs['half_total']:.5g}, 1.2% less")
    assert attrs["seconds"] > 0


@pytest.mark.proves("2", "the total on half of the examples", oracle="the first half measured alone")
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
@pytest.mark.parametrize(
    ("examples", "batch_size", "half"), [(9, "auto", 5), (40, "auto", 20), (40, 8, 16), (40, 20, 20)]
)
def test_the_total_on_half_is_that_of_the_first_half_alone(examples, batch_size, half, ridge):
    model, x = build(MODELS["relu"][0]), data(examples, 4)
    attrs = measure(model, x, ridge=ridge, batch_size=batch_size).attrs
    assert attrs["half_examples"] == half
    assert attrs["half_total"] == pytest.approx(measure(model, x[:half], ridge=ridge).total, rel=1e-9)


def test_a_total_that_no_longer_moves_is_not_told_as_open():
    model = build(MODELS["relu"][0])
    x = data(40, 4)
    twice = measure(model, torch.cat([x, x])).attrs
    assert twice["half_total"] == pytest.approx(twice["rank"])
    assert twice["notes"] == []
    assert "half_total" not in measure(model, x, batch_size=40).attrs  # one batch has no half


def test_capacity_lives_on_the_input_axes():
    allocation = measure(build(MODELS["conv2d"][0]), data(12, 1, 4, 4), ridge=0.1)
    assert allocation.capacity.dims == ("channel", "row", "column")
    assert allocation.table.dims == ("parameter", "channel", "row", "column")
    assert allocation.table.shape == (5, 1, 4, 4)


def test_progress_bar_counts_passes(capsys):
    measure(build(MODELS["relu"][0]), data(10, 4), batch_size=5, run=Run(progress=True), ridge=0.1)
    assert "2/2" in capsys.readouterr().err
    measure(build(MODELS["relu"][0]), data(10, 4), ridge=0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("examples", [30, 3])
def test_accuracy_lets_products_run_in_single_precision(examples):
    """30 examples: more rows than parameters; 3: fewer. Without a ridge it changes nothing."""
    model, x = build(MODELS["relu"][0]), data(examples, 4)
    exact, coarse = (measure(model, x, ridge=1.0, solver=Dense(accuracy)) for accuracy in (1e-8, 1e-2))
    assert (exact.attrs["precision"], coarse.attrs["precision"]) == ("float64", "float32")
    assert (exact.attrs["accuracy"], coarse.attrs["accuracy"]) == (1e-8, 1e-2)
    np.testing.assert_allclose(coarse.capacity, exact.capacity, rtol=1e-2)
    assert not np.array_equal(coarse.capacity, exact.capacity)
    if examples > 3:
        assert measure(model, x, solver=Dense(1e-2)).attrs["precision"] == "float64"


@pytest.mark.parametrize("accuracy", [0.0, 1.0, -1e-3, float("nan"), "high"])
def test_bad_accuracy_is_refused(accuracy):
    match = "accuracy must be a number( between 0 and 1, got .*; 1e-3 lets rounding|, got 'high')"
    with pytest.raises((ValueError, TypeError), match=match):
        Dense(accuracy)


@pytest.mark.parametrize("ridge", [-1.0, float("nan"), float("inf"), "1", True])
def test_bad_ridge_is_refused(ridge):
    with pytest.raises((ValueError, TypeError), match=r"ridge must be a (finite number >= 0|number) or .*, got"):
        measure(nn.Linear(2, 1), torch.ones(2, 2), ridge=ridge)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "all", True])
def test_bad_batch_size_is_refused(batch_size):
    with pytest.raises((ValueError, TypeError), match=r"batch_size must be .*an integer.*, got"):
        measure(nn.Linear(2, 1), torch.ones(2, 2), batch_size=batch_size)


@pytest.mark.parametrize(
    ("metric", "match"),
    [
        (torch.ones(3), r"metric has shape \(3,\); pass variances of shape \(2,\) or .* \(2, 2\)"),
        (torch.tensor([1.0, -0.5]), "metric has a negative variance, -0.5"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "metric is not symmetric: entries differ by 0.5"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "metric is indefinite: smallest eigenvalue -1"),
        (torch.tensor([1.0, float("nan")]), "metric holds NaN or inf"),
    ],
)
def test_bad_metric_is_refused(metric, match):
    with pytest.raises(ValueError, match=match):
        measure(nn.Linear(2, 1), torch.ones(2, 2), metric=metric)


def test_singular_float32_covariance_is_accepted():
    """A sample covariance of fewer examples than inputs has eigenvalues below zero by rounding."""
    x = data(5, 8).float()
    covariance = torch.cov(x.T)
    assert torch.linalg.eigvalsh(covariance)[0] < 0
    allocation = measure(nn.Linear(8, 1), x, metric=covariance, ridge=1e-4, solver=PLAIN)
    assert allocation.total == pytest.approx(4 + 1, rel=1e-2)


def test_interacting_examples_are_refused():
    with pytest.raises(ValueError, match="examples interact"):
        measure(nn.Sequential(nn.Linear(3, 4), Centre()), data(8, 3).float())


def test_draws_that_do_not_repeat_are_refused():
    with pytest.raises(ValueError, match="two passes over the same examples with the same seed"):
        measure(Counter(), data(8, 3).float())


def test_derivatives_that_are_not_finite_are_refused():
    class Root(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).abs().sqrt()

    with pytest.raises(ValueError, match=r"mixed derivative .* NaN or inf"):
        measure(Root(3, 2, bias=False), torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("max_bytes", "batch_size", "match"),
    [
        (700, "auto", "the exact solver for 37 parameters and 300 rows .* params="),
        (1.44e5, "auto", "one example along one of 5 directions.*outputs="),
        (7e5, 10**6, "a batch of .* lower batch_size"),
    ],
)
def test_what_would_not_fit_is_refused(max_bytes, batch_size, match):
    with pytest.raises(MemoryError, match=match):
        measure(build(MODELS["relu"][0]), data(30, 4), batch_size=batch_size, run=Run(max_bytes=max_bytes))


def test_a_program_without_a_standard_error_is_told_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert measure(nn.Linear(3, 2), torch.randn(9, 3), run=Run(progress=None)).total > 0


@pytest.mark.parametrize("max_bytes", [0, -1.0, float("nan"), float("inf")])
def test_memory_is_a_positive_number_of_bytes(max_bytes):
    with pytest.raises(ValueError, match="max_bytes must be a positive, finite number or None, got"):
        measure(nn.Linear(3, 2), torch.randn(9, 3), run=Run(max_bytes=max_bytes))


@pytest.mark.parametrize(("solver", "runs"), [("dense", 0), ("stochastic", 1)])
def test_what_would_not_fit_is_refused_before_any_work(solver, runs):
    """Neither solver begins, nor looks for a way to the derivative; one looks at a run over one example."""
    calls = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    model, x = Counting(3, 2).double(), data(30, 3)
    make_task(model, x)
    checks = list(calls)
    calls.clear()
    with pytest.raises(MemoryError, match=r"solver for 8 parameters .*take fewer parameters with params="):
        measure(model, x, ridge=0.1, solver=solver, run=Run(max_bytes=700))
    assert calls == checks + runs * [1]


@pytest.mark.parametrize(
    ("settings", "of"),
    [({}, "in all"), ({"ridge": 0.1}, "in all"), ({"solver": Stochastic(num_probes=4)}, "for a solve")],
)
def test_the_forecast_is_said_before_the_solver_starts(monkeypatch, capsys, settings, of):
    settings = {"ridge": 0.1} | settings
    model, x = build(MODELS["relu"][0]), data(30, 4)
    found = measure(model, x, **settings)
    assert found.attrs["forecast_bytes"] > 0
    assert 0 < found.attrs["forecast_seconds"] < 600
    assert capsys.readouterr().err == ""
    for module in ("capalloc._measure.dense", "capalloc._measure.stochastic"):
        monkeypatch.setattr(f"{module}.solve", None)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        measure(model, x, run=Run(progress=True), **settings)
    said = capsys.readouterr().err
    assert re.search(rf"measure: forecast [\d.e-]+ GiB of memory, about [\d.e-]+ seconds {of}", said)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        measure(model, x, run=Run(progress=None), **settings)
    assert "forecast" not in capsys.readouterr().err  # no terminal


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "0.012 seconds"), (59, "59 seconds"), (119, "2 minutes"), (9000, "2.5 hours")]
)
def test_durations_are_said_in_their_unit(seconds, text):
    assert duration(seconds) == text


def test_available_memory_is_a_plausible_number():
    assert 2**24 < available_bytes(torch.device("cpu")) < 2**50
