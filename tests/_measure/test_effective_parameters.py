"""Parameters that outputs determine: hat matrices in closed form, refits without each example, and the two counts."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import capalloc
from capalloc._derivatives import gram_work
from capalloc._derivatives.autograd import exact_derivatives
from capalloc._derivatives.output_grams import prepare_gram
from capalloc._linalg.shrinkage import shrink
from capalloc._measure.count_outputs import count_from, rank_notes
from capalloc.app.demo import load_digits
from capalloc.results import EffectiveParameters
from capalloc.solvers import ridge_from_noise
from measured import MODELS, build, data
from zoo import gaussian, seeded_module


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """(examples outputs, params), by autograd."""
    own = {name: p.detach() for name, p in model.named_parameters()}
    J = jacrev(lambda values: functional_call(model, values, (x,)).flatten(1))(own)
    return torch.cat([part.flatten(2) for part in J.values()], 2).flatten(0, 1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.proves("2", "constraints of the outputs", oracle="the hat matrix of ridge regression")
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("examples", [3, 12])
def test_linear_regression_has_its_hat_matrix(examples, ridge):
    x = gaussian(examples, 4)
    found = capalloc.effective_parameters(nn.Linear(4, 1).double(), x, ridge=ridge)
    X = np.c_[x.numpy(), np.ones(examples)]
    inverse = np.linalg.pinv(X.T @ X + examples * ridge * np.eye(5), rcond=1e-12, hermitian=True)
    hat, used = X @ inverse @ X.T, np.diag(inverse @ X.T @ X)
    np.testing.assert_allclose(found.leverage[:, 0], np.diag(hat), atol=1e-12)
    np.testing.assert_allclose(found.by_parameter, [used[:4].sum(), used[4]], atol=1e-12)
    assert float(found.by_module(depth=1).sum()) == pytest.approx(found.total)
    assert found.total == pytest.approx(np.trace(hat))


@pytest.mark.proves("2", "constraints of the outputs", oracle="singular values of autograd's Jacobian")
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
@pytest.mark.parametrize("examples", [2, 40])
def test_leverages_and_tensors_sum_to_gamma(examples, ridge):
    model, x = seeded_module(mlp), gaussian(examples, 4)
    found = capalloc.effective_parameters(model, x, ridge=ridge)
    s = torch.linalg.svdvals(jacobian(model, x)).square() / examples
    s = s[s > 1e-13 * s[0]]
    gamma = float((s / (s + ridge)).sum())
    assert found.total == pytest.approx(gamma, rel=1e-9)
    assert float(found.by_parameter.sum()) == pytest.approx(gamma, rel=1e-9)
    assert found.rank == len(s)
    np.testing.assert_allclose(found.eigenvalue, s, rtol=1e-8)
    assert float(found.by_example.max()) <= 3 + 1e-12


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("ridge", "factored"), [(0.0, None), (1e-3, True), (1e-3, False)])
def test_both_sides_of_the_jacobian_agree(name, ridge, factored, monkeypatch):
    make, shape = MODELS[name]
    if factored is not None:
        monkeypatch.setattr(gram_work, "cheaper_for_outputs", lambda form, examples, outputs: factored)
    with exact_derivatives():
        work = prepare_gram(build(make), data(5, *shape), None, None, torch.float64, torch.float64, None)
        one, other = (count_from(work, side, ridge, "auto") for side in ("outputs", "params"))
    assert one.shrunk.rank == other.shrunk.rank
    torch.testing.assert_close(one.by_parameter, other.by_parameter, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.hat, other.hat, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("examples", [4, 30])
def test_the_order_and_the_batches_of_examples_do_not_matter(examples):
    model, x = seeded_module(mlp), gaussian(examples, 4)
    found = capalloc.effective_parameters(model, x, ridge=1e-2)
    turned = capalloc.effective_parameters(model, [x.flip(0)[:3], x.flip(0)[3:]], ridge=1e-2, batch_size=2)
    np.testing.assert_allclose(turned.hat[::-1], found.hat, atol=1e-12)
    np.testing.assert_allclose(turned.by_parameter, found.by_parameter, atol=1e-12)
    assert turned.data.attrs["data_digest"] == found.data.attrs["data_digest"]


def test_a_scaled_output_is_a_smaller_ridge():
    """G has the outputs' units: three times the outputs need nine times the ridge."""
    model, x = seeded_module(mlp), gaussian(20, 4)
    one = capalloc.effective_parameters(model, x, ridge=0.02)
    three = capalloc.effective_parameters(model, x, lambda y: 3 * y, ridge=0.18)
    np.testing.assert_allclose(three.leverage, one.leverage, atol=1e-12)


@pytest.mark.proves("2", "MacKay's gamma", oracle="parameters less the trace of the posterior over the prior")
def test_the_ridge_of_noise_and_prior_gives_mackays_gamma():
    noise, prior = 0.05, 0.4
    model, x = seeded_module(mlp), gaussian(25, 4)
    J = jacobian(model, x)
    p = J.shape[1]
    posterior = torch.linalg.inv(J.T @ J / noise + torch.eye(p, dtype=J.dtype) / prior)
    found = capalloc.effective_parameters(model, x, ridge=ridge_from_noise(noise, len(x), prior))
    assert found.total == pytest.approx(p - float(posterior.trace()) / prior, rel=1e-10)
    sizes = [q.numel() for q in model.parameters()]
    parts = [n - float(part.sum()) / prior for n, part in zip(sizes, posterior.diagonal().split(sizes), strict=True)]
    np.testing.assert_allclose(found.by_parameter, parts, rtol=1e-9)


class Shared(nn.Module):
    """A linear model of three outputs that share their weights: leaving an example out takes all three rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, None])[:, 0]


def refits(J: Tensor, y: Tensor, ridge: float) -> np.ndarray:
    """Residual of every example at the fit to the others: J (examples, outputs, params), penalty N ridge kept."""
    examples, _, p = J.shape
    root = (examples * ridge) ** 0.5 * torch.eye(p, dtype=J.dtype)
    found = []
    for k in range(examples):
        rest = [i for i in range(examples) if i != k]
        rows = torch.cat([J[rest].flatten(0, 1), root])
        theta = torch.linalg.lstsq(rows, torch.cat([y[rest].flatten(), y.new_zeros(p)])).solution
        found.append(y[k] - J[k] @ theta)
    return torch.stack(found).numpy()


@pytest.mark.proves("2", "leave-one-out residuals", oracle="refits without each example")
@pytest.mark.parametrize("ridge", [0.0, 0.05])
@pytest.mark.parametrize("kind", ["one output", "own weights", "shared weights", "readout of a network"])
def test_residuals_without_each_example_are_those_of_refits(kind, ridge):
    models = {
        "one output": lambda: nn.Linear(5, 1),
        "own weights": lambda: nn.Linear(5, 3),
        "shared weights": Shared,
        "readout of a network": lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)),
    }
    model, x = seeded_module(models[kind]), gaussian(14, 5)
    chosen = ["2.weight", "2.bias"] if kind == "readout of a network" else None
    outputs = model(x).shape[1]
    p = sum(q.numel() for name, q in model.named_parameters() if chosen is None or name in chosen)
    J = jacobian(model, x)[:, -p:].unflatten(0, (14, outputs))
    y = gaussian(14, outputs, seed=3)
    root = (14 * ridge) ** 0.5 * torch.eye(p, dtype=J.dtype)
    theta = torch.linalg.lstsq(torch.cat([J.flatten(0, 1), root]), torch.cat([y.flatten(), y.new_zeros(p)])).solution
    residuals = (y - J @ theta).numpy()
    found = capalloc.effective_parameters(model, x, ridge=ridge, params=chosen)
    expected = refits(J, y, ridge)
    np.testing.assert_allclose(found.leave_one_out(residuals), expected, atol=1e-10)
    if outputs == 1:
        np.testing.assert_allclose(found.leave_one_out(residuals[:, 0]), expected[:, 0], atol=1e-10)
    if kind in ("one output", "own weights"):  # outputs do not meet: the scalar formula for each
        np.testing.assert_allclose(residuals / (1 - found.leverage.to_numpy()), expected, atol=1e-10)


def test_an_example_that_decides_alone_leaves_nothing_without_it():
    x = torch.tensor([[0.0], [0.0], [0.0], [5.0]], dtype=torch.float64)
    found = capalloc.effective_parameters(nn.Linear(1, 1).double(), x)
    np.testing.assert_allclose(found.by_example, [1 / 3, 1 / 3, 1 / 3, 1], atol=1e-12)
    left = found.leave_one_out([1.0, -1.0, 0.0, 0.0])
    np.testing.assert_allclose(left[:3], [1.5, -1.5, 0], atol=1e-12)
    assert np.isnan(left[3])


@pytest.mark.proves("2", "what N examples mean", oracle="the rank of the output Jacobian at jittered examples")
@pytest.mark.parametrize("examples", [1, 2, 5])
def test_the_measured_total_is_the_rank_at_jittered_examples(examples):
    """Piecewise linear: N examples stand for all inputs with their gates, so N (n + 1) nearby ones say the same."""
    model = seeded_module(nn.Sequential, nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    x = gaussian(examples, 4)
    steps = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double() * 1e-3
    near = (x[:, None] + steps).flatten(0, 1)
    gates = [model[:2](points)[:, None].sign().flatten(1) for points in (x.repeat_interleave(5, 0), near)]
    assert torch.equal(*gates)
    s = torch.linalg.svdvals(jacobian(model, near))
    with pytest.warns(capalloc.CapacityWarning) if 15 * examples < model_size(model) else nullcontext():
        measured = capalloc.measure(model, x)
    assert measured.attrs["rank"] == int((s > 1e-9 * s[0]).sum())
    assert capalloc.effective_parameters(model, x).rank <= min(3 * examples, measured.attrs["rank"])


def model_size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.proves("2", "the two counts", oracle="counts of rows and of a rank")
def test_two_digits_constrain_the_function_more_than_their_outputs():
    """The figures of docs/measure-at-scale.md."""
    x = load_digits(0).test_images.double()
    model = seeded_module(nn.Sequential, nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    assert model_size(model) == 610
    assert capalloc.measure(model, x[:2]).attrs["rank"] == 297
    assert capalloc.effective_parameters(model, x[:2]).rank == 20
    assert capalloc.measure(model, x[:60]).attrs["rank"] == 601
    assert capalloc.effective_parameters(model, x[:60]).rank == 296


def test_the_result_speaks(tmp_path):
    model, x = seeded_module(mlp), gaussian(9, 4)
    found = capalloc.effective_parameters(model, x, ridge=0.1)
    found.save(tmp_path / "e.nc")
    loaded = capalloc.load(tmp_path / "e.nc")
    assert isinstance(loaded, EffectiveParameters)
    assert loaded.total == found.total
    assert f"{found.total:.6g} of 51 parameters" in repr(found)
    assert "largest leverage" in found._repr_html_()
    assert found.to_pandas().shape == (4, 1)
    assert found.to_pandas("examples")["leverage"].sum() == pytest.approx(found.total)


def test_an_unclear_rank_is_told():
    gram = torch.diag(torch.tensor([1.0, 5e-15, 1e-15], dtype=torch.float64))
    found = shrink(gram, 0.0, 10)
    assert (found.rank, found.dropped) == (2, pytest.approx(1e-15))
    assert "the numerical rank is unclear: eigenvalues 5e-15 (counted) and 1e-15 (not)" in rank_notes(found)[0]
    assert capalloc.effective_parameters(nn.Linear(3, 1).double(), gaussian(6, 3)).data.attrs["notes"] == []


def test_no_output_depends_on_a_parameter():
    """A parameter in no use is determined by nothing."""
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].bias -= 100
    found = capalloc.effective_parameters(model, gaussian(4, 3), params=["0.weight"])
    assert (found.total, found.rank) == (0, 0)


@pytest.mark.parametrize("ridge", [-1.0, float("inf"), "0.1", True])
def test_refuses_a_ridge_that_is_none(ridge):
    with pytest.raises((ValueError, TypeError), match=r"ridge must be a (finite number >= 0|number), got"):
        capalloc.effective_parameters(nn.Linear(2, 1), torch.ones(2, 2), ridge=ridge)


def test_refuses_residuals_of_another_shape():
    found = capalloc.effective_parameters(nn.Linear(2, 3).double(), gaussian(5, 2))
    for shape in ((5,), (3, 5), (5, 3, 1)):
        with pytest.raises(
            ValueError, match=r"residuals have shape .*; pass those of all examples and outputs, \(5, 3\)"
        ):
            found.leave_one_out(np.zeros(shape))


def test_refuses_sums_that_differ():
    found = capalloc.effective_parameters(nn.Linear(2, 3).double(), gaussian(5, 2))
    with pytest.raises(ValueError, match=r"parameters sum to .* and examples to .*; both are the total"):
        EffectiveParameters(found.data.assign(by_parameter=found.by_parameter * 2))
