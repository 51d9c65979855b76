"""The training study: predictions meet closed forms and wide networks, the batched trainer meets a plain loop."""

from __future__ import annotations

import dataclasses
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from studies import training
from studies.training_fit import OPTIMISERS, Budget, Outcome, cross_entropies, evaluate, fit, measured_times
from studies.training_networks import Network, batches, divided, families, forward, initial, plain, residual, streams
from studies.training_predict import Prediction, log_cosh, moments, predict
from studies.training_results import Result, Setting, results
from studies.training_tables import accuracies, confusion, phases, rank_correlation, sleeping_page, wide_page
from studies.training_tasks import Examples, digits, pairs
from torch import nn


@pytest.fixture(scope="module")
def task():
    return digits()


# predictions


@pytest.mark.parametrize("depth", [1, 4, 30])
@pytest.mark.parametrize("power", [0, -0.5, -2])
def test_residual_closed_forms(depth, power):
    rate = depth ** (2 * power)
    found = predict(residual("any", depth, power))
    assert found.time == pytest.approx(depth * math.log1p(rate), rel=1e-12)
    assert found.gain == pytest.approx((1 + rate) ** depth, rel=1e-12)
    assert found.skipping == pytest.approx((1 + rate) ** -depth, rel=1e-12)
    without_gain = predict(divided("any", depth, power))
    assert without_gain.gain == pytest.approx(1, rel=1e-12)
    assert without_gain.time == pytest.approx(found.time, rel=1e-9)
    # rho depends on ratios of energies alone; 1e-6: arccos amplifies rounding where rho is near 1
    assert without_gain.correlation == pytest.approx(found.correlation, rel=1e-6)


def test_normalised_branches_grow_like_log_of_depth():
    for depth in (1, 7, 100):
        assert predict(Network("any", depth, normalised=True)).time == pytest.approx(math.log(depth + 1), rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_plain_closed_forms(scale):
    first, second = (predict(plain("any", depth, scale)) for depth in (1, 2))
    assert (first.gain, second.gain) == pytest.approx((scale / 2, (scale / 2) ** 2))
    assert first.correlation == pytest.approx(1 / 2)  # orthogonal inputs share half of the gates
    assert second.correlation == pytest.approx((1 - math.acos(1 / math.pi) / math.pi) / 2)  # k(0) = 1/pi
    assert first.time == math.inf
    assert first.skipping == 0


@pytest.mark.parametrize(
    ("make", "expected"),
    [  # docs/theory.md, section 6, at depths 1, 2, 4, 8, 16, 64
        (lambda depth: residual("any", depth, 0), [0.750, 0.582, 0.375, 0.187, 0.068, 0.004]),
        (lambda depth: residual("any", depth, -0.5), [0.750, 0.704, 0.673, 0.655, 0.644, 0.636]),
        (lambda depth: Network("any", depth, normalised=True), [0.750, 0.638, 0.524, 0.423, 0.340, 0.225]),
    ],
)
def test_gradient_correlation_is_theorys(make, expected):
    found = [predict(make(depth)).correlation for depth in (1, 2, 4, 8, 16, 64)]
    np.testing.assert_allclose(found, expected, atol=6e-4)  # three digits are given


def test_moments_meet_quadrature():
    """Against the trapezoid rule on a grid, exact to rounding for functions this smooth."""
    nodes = np.linspace(-9, 9, 401)
    density = np.exp(-(nodes**2) / 2)
    weights = np.outer(density, density) / density.sum() ** 2
    for rho, energy in [(0.0, 1.0), (0.4, 0.5), (0.9, 2.0)]:
        x = math.sqrt(energy) * nodes[:, None]
        y = rho * x + math.sqrt(energy * (1 - rho**2)) * nodes
        own, cross, decoupling = moments("tanh", rho, energy)
        slopes = [(weights * np.cosh(x) ** -2.0 * np.cosh(other) ** -2.0).sum() for other in (x, y)]
        assert own == pytest.approx((weights * np.tanh(x) ** 2).sum(), abs=1e-9)
        assert cross == pytest.approx((weights * np.tanh(x) * np.tanh(y)).sum(), abs=1e-9)
        assert decoupling == pytest.approx(1 - slopes[1] / slopes[0], abs=1e-9)
    z = torch.linspace(-800, 800, 41, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(log_cosh(z).sum(), z)[0], z.tanh())


@pytest.mark.proves("6", "correlation of gradients", oracle="gradients of random networks of width 512")
@pytest.mark.parametrize("network", [n for n in families(6) if n.family != "no blocks"], ids=lambda n: n.family)
def test_predictions_are_those_of_wide_networks(network):
    """Energy, T and gradient correlation at width 512 with two orthogonal inputs, mean of 4 draws."""
    network = dataclasses.replace(network, width=512)
    runs = [network] * 4
    layers = zip(*(initial(network, (2, 1), seed) for seed in range(4)), strict=True)
    weights = [torch.stack(layer) for layer in layers]
    x = torch.eye(2, dtype=torch.float64).mul(math.sqrt(2)).expand(4, -1, -1)
    expected = predict(network)
    first, *_, last = streams(runs, weights, x)
    # The energy of 4 draws of 2 x 512 units fluctuates by about sqrt(5 depth / (8 * 512)) = 9 %.
    assert float(last.square().mean() / first.square().mean()) == pytest.approx(expected.gain, rel=0.25)
    time = np.mean(measured_times(runs, weights, Examples(x[0], torch.zeros(2))))
    assert time == pytest.approx(expected.time, rel=0.1)
    gradient = _input_gradients(runs, weights, x)
    cosine = (gradient[:, 0] * gradient[:, 1]).sum() / gradient.square().sum((0, 2)).prod().sqrt()
    assert float(cosine) == pytest.approx(expected.correlation, abs=0.06)


def _input_gradients(networks, weights, x):
    """At the stem's output, where gradients have many components: (runs, examples, units)."""
    stem = (x @ weights[0]).requires_grad_()
    eye = torch.eye(stem.shape[-1], dtype=x.dtype).expand(len(networks), -1, -1)
    outputs = forward(networks, [eye, *weights[1:]], stem)
    return torch.autograd.grad(outputs.sum(), stem)[0]


@pytest.mark.parametrize(
    ("prediction", "phase", "trains", "uses_blocks"),
    [
        (Prediction(True, math.inf, 1.0, 0.5), "balanced", True, True),
        (Prediction(True, math.inf, 1e4, 0.5), "explodes", False, False),
        (Prediction(True, math.inf, 1e-4, 0.5), "vanishes", False, False),
        (Prediction(True, math.inf, 1.0, 0.001), "shatters", False, False),
        (Prediction(False, 5.0, 1.0, 0.5), "shatters", True, True),  # the phase is by T, the rule is not
        (Prediction(False, 1.0, 1.0, 0.5), "balanced", True, True),
        (Prediction(False, 0.05, 1.0, 0.5), "no propagation", True, False),
    ],
)
def test_the_rule(prediction, phase, trains, uses_blocks):
    assert (prediction.phase, prediction.trains, prediction.uses_blocks) == (phase, trains, uses_blocks)


# training


class Deep(nn.Module):
    """One network, written plainly."""

    def __init__(self, network, layers):
        super().__init__()
        self.network = network
        self.layers = nn.ParameterList(layer.clone() for layer in layers)

    def forward(self, x):
        n, (stem, *blocks, readout) = self.network, self.layers
        h = x @ stem
        for block in blocks:
            z = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
            z = z if n.normalised else h
            h = n.skip * h + n.branch * ((z.relu() if n.activation == "relu" else z.tanh()) @ block)
        return h @ readout


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_batched_runs_are_those_of_a_plain_loop(task, optimiser):
    budget = Budget(epochs=2, batch=100, dtype=torch.float64)
    rate = {"SGD": 0.01, "Adam": 0.001}[optimiser]
    for group in batches([n for n in families(3) if n.family != "no blocks"]):
        runs = [(network, seed) for network in group for seed in (0, 1)]
        batched = fit(runs, task, optimiser, rate, budget)
        for i in (0, len(runs) - 1):
            network, seed = runs[i]
            model = Deep(network, initial(network, task.ends, seed))
            descent = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}[optimiser](model.parameters(), lr=rate)
            descent.param_groups[0].update({"momentum": 0.9} if optimiser == "SGD" else {})
            order = torch.Generator().manual_seed(seed)
            for _ in range(budget.epochs):
                for chosen in torch.randperm(len(task.train.labels), generator=order).split(budget.batch):
                    inputs = task.train.inputs[chosen].double()
                    descent.zero_grad()
                    nn.functional.cross_entropy(model(inputs), task.train.labels[chosen]).backward()
                    descent.step()
            for layer, alone in zip(batched, model.layers, strict=True):
                torch.testing.assert_close(layer[i], alone.detach(), rtol=1e-6, atol=1e-6)  # sums in another order


def test_the_recommended_scaling_trains_at_depth_30_and_others_do_not(task):
    depth = 30
    good, bad = residual("good", depth, -0.5), [plain("bad", depth, 4.0), residual("bad", depth, 0)]
    assert predict(good).trains
    assert not any(predict(network).trains for network in bad)
    setting = Setting("test", task, "SGD", (1e-3, 1e-2), threshold=0.9, seeds=(0, 1))
    first, *others = results(setting, [good, *bad])
    assert first.trained
    assert first.rate == 1e-2
    assert all(other.accuracy < first.accuracy - 0.2 for other in others)


def test_shattering_without_gain_does_not_train(task):
    """h <- (h + F(h)) / sqrt 2 keeps its energy at any depth, and its gradients shatter."""
    setting = Setting("test", task, "SGD", (1e-2,), threshold=0.9, seeds=(0,), budget=Budget(epochs=8))
    shattered, kept = results(setting, [divided("any", 80, 0), divided("any", 80, -0.5)])
    assert not shattered.expected
    assert kept.expected
    assert kept.accuracy > shattered.accuracy + 0.3


def test_outputs_that_are_no_numbers_are_wrong():
    part = Examples(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
    weights = [torch.ones(2, 2, 4), torch.ones(2, 4, 4), torch.tensor([[[1.0, 0]] * 4, [[math.nan, 0]] * 4])]
    losses, right = evaluate([plain("any", 1, 2.0)] * 2, weights, part)
    assert right == [1, 0]
    assert math.isnan(losses[1])


def test_cross_entropies_are_of_each_run():
    outputs, labels = (
        torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[0, 1, 2, 0, 1]] * 2),
    )
    expected = [nn.functional.cross_entropy(*run) for run in zip(outputs, labels, strict=True)]
    torch.testing.assert_close(cross_entropies(outputs, labels), torch.stack(expected))


def test_the_rate_is_chosen_by_validation(monkeypatch, task):
    def outcomes(networks, weights, task):
        high = float(weights[0].mean()) > 0
        return [Outcome(loss=0, validation=0.2 + 0.1 * high, test=0.9 - 0.5 * high, time=0) for _ in networks]

    monkeypatch.setattr(
        "studies.training_results.fit", lambda runs, task, optimiser, rate, budget: [torch.tensor(rate)]
    )
    monkeypatch.setattr("studies.training_results.outcomes", outcomes)
    (found,) = results(Setting("test", task, "SGD", (-1.0, 1.0), threshold=0.5), [plain("any", 1, 2.0)])
    assert found.rate == 1.0
    assert not found.trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth and width must be at least 1, got 0 and 32"),
        ({"depth": 1, "activation": "gelu"}, "activation must be one of .*, got 'gelu'"),
    ],
)
def test_networks_say_what_they_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Network("any", **arguments)


# tasks


def test_digits_are_standardised_and_split(task):
    pixels = task.train.inputs[:, :-1]
    torch.testing.assert_close(pixels.mean(0), torch.zeros(64), atol=1e-5, rtol=0)
    assert float(pixels.square().mean()) == pytest.approx(1, rel=1e-5)
    assert [len(part.labels) for part in (task.train, task.validation, task.test)] == [1100, 247, 450]
    assert (task.train.inputs[:, -1] == 1).all()


def test_a_linear_readout_does_pairs_no_better_than_chance():
    found = pairs()
    sign = 2 * found.train.labels.double() - 1
    direction = torch.linalg.lstsq(found.train.inputs.double(), sign[:, None], driver="gelsd").solution
    right = ((found.test.inputs.double() @ direction)[:, 0] > 0) == found.test.labels.bool()
    assert float(right.double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(right)))


# tables and figure


def result(prediction, accuracy, expected=True):
    outcome = Outcome(loss=1 - accuracy, validation=accuracy, test=accuracy, time=0.0)
    return Result(residual("residual, 1", 5, 0), prediction, expected, 0.1, (outcome, outcome), threshold=0.9)


def test_tables_count():
    balanced, shattered = Prediction(False, 1.0, 1.0, 0.5), Prediction(False, 9.0, 1.0, 0.001)
    found = {"task": [result(balanced, 0.95), result(balanced, 0.5), result(shattered, 0.95, expected=False)]}
    assert "| task | residual | 1 | 1 | 1 | 0 | 1 of 3 |" in confusion(found)
    assert "| residual | balanced | 1 of 2 |" in phases(found)
    assert "| residual | shatters | 1 of 1 |" in phases(found)
    rows = accuracies(found["task"])
    assert "**95.0 ± 0.0** | **50.0 ± 0.0** ! | 95.0 ± 0.0 !" in rows
    correlation = rank_correlation(found["task"][:2], lambda r: r.accuracy, lambda r: -r.loss)
    assert correlation == pytest.approx(1)
    assert math.isnan(rank_correlation(found["task"], lambda r: 1.0, lambda r: r.accuracy))


def test_networks_that_diverge_say_so():
    diverged = dataclasses.replace(
        result(Prediction(False, 9.0, 1e9, 0.5), 0.0), outcomes=(Outcome(math.nan, 0, 0, 0),)
    )
    assert diverged.loss == math.inf
    assert "| **diverged** ! |" in accuracies([diverged])


def test_widths_stand_side_by_side():
    narrow = result(Prediction(False, 1.0, 1.0, 0.25), 0.5)
    wide = dataclasses.replace(result(narrow.prediction, 0.95), network=dataclasses.replace(narrow.network, width=64))
    text = wide_page([narrow, wide])
    assert "| width 32 | width 64 |" in text
    assert "| 5 | residual, 1 | 0.2500 | **50.0 ± 0.0** ! | **95.0 ± 0.0** |" in text


def test_branches_that_wake_up_are_told_by_their_time():
    assert "| 5 | residual, 1 | 0.001 | 0 | **95.0 ± 0.0** | 0.1 |" in sleeping_page(
        [result(Prediction(False, 0.001, 1.0, 0.99), 0.95)]
    )


def test_means_and_errors_are_those_of_the_seeds():
    tests = (0.9, 0.8, 0.4)
    one = dataclasses.replace(
        result(Prediction(False, 1.0, 1.0, 0.5), 0.0), outcomes=tuple(Outcome(math.nan, 0.0, t, 0.0) for t in tests)
    )
    assert one.accuracy == pytest.approx(np.mean(tests))
    assert one.error == pytest.approx(np.std(tests, ddof=1) / math.sqrt(3))
    assert one.loss == math.inf


def test_the_study_runs():
    study = training.run(quick=True)
    (text,) = study.tables.values()
    assert text.count("residual, $L^{-1/2}$ |") == 4  # three settings and the table of T
    assert len(study.pictures["training"].axes) == 6
    plt.close(study.pictures["training"])
