"""Scores for pruning against path energies summed by hand, and what must not change them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn.utils import prune

import capalloc
from capalloc.results import PruneScores


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = [nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4)]
        return nn.Sequential(*layers).double()


def examples(number: int = 9) -> torch.Tensor:
    return torch.randn(number, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def energy(model: nn.Sequential, x: torch.Tensor, gates: nn.Sequential) -> float:
    """Path energy of `model` with the gates that `gates` has on the examples: energy 1 at inputs and constant."""
    e, h = torch.ones_like(x), x
    for own, other in zip(model, gates, strict=True):
        if isinstance(own, nn.Linear):
            e, h = e @ own.weight.square().T + own.bias.square(), other(h)
        else:
            e, h = e * (h > 0), h.relu()
    return float(e.detach().sum())


@pytest.mark.proves(
    "4", "scores for pruning are what path energy loses without a weight", oracle="path energy with the weight at 0"
)
def test_scores_are_what_energy_loses() -> None:
    model, x = net(), examples()
    found = capalloc.prune_scores(model, x, metric="identity")
    whole = energy(model, x, model)
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter)
        for k in range(parameter.numel()):
            without = copy.deepcopy(model)
            without.get_parameter(name).data.view(-1)[k] = 0
            expected.view(-1)[k] = 1 - energy(without, x, model) / whole
        np.testing.assert_allclose(found.weights[name], expected.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_every_path_ends_in_the_last_layer() -> None:
    """Scores of a layer's weights and of all biases from there on sum to 1."""
    share = capalloc.prune_scores(net(), examples()).to_pandas()["share"]
    above = share["4.weight"]
    for layer, biases in {"4": ["4.bias"], "2": ["2.bias", "4.bias"], "0": ["0.bias", "2.bias", "4.bias"]}.items():
        assert share[f"{layer}.weight"] + sum(share[b] for b in biases) == pytest.approx(1, abs=1e-9)
        assert share[f"{layer}.weight"] <= above + 1e-12


@pytest.mark.parametrize("metric", ["identity", "variance"])
def test_rescaling_units_changes_no_score(metric: str) -> None:
    model, x = net(), examples()
    before = capalloc.prune_scores(model, x, metric=metric)
    scale = torch.logspace(-3, 3, 7, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(scale[:, None])
        model[0].bias.mul_(scale)
        model[2].weight.div_(scale)
    after = capalloc.prune_scores(model, x, metric=metric)
    for name, scores in before.weights.items():
        np.testing.assert_allclose(after.weights[name], scores, rtol=1e-9, atol=1e-14)


def test_units_sum_what_enters_them() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.ConvTranspose1d(3, 4, 2)).eval()
        grouped = nn.Sequential(nn.ConvTranspose1d(2, 4, 2, groups=2)).eval()
    x = torch.randn(4, 2, 9)
    found = capalloc.prune_scores(model, x)
    units, weights = found.unit_scores, found.weights
    assert {layer: len(scores) for layer, scores in units.items()} == {"0": 3, "3": 4}
    np.testing.assert_allclose(units["0"], weights["0.weight"].sum((1, 2)) + weights["0.bias"], rtol=1e-6)
    np.testing.assert_allclose(units["3"], weights["3.weight"].sum((0, 2)) + weights["3.bias"], rtol=1e-6)
    assert found.to_pandas("units")["unit"].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert capalloc.prune_scores(grouped, x).to_pandas("units")["layer"].unique().tolist() == ["0"]  # its bias alone


def test_what_steers_gates_is_not_scored() -> None:
    found = capalloc.prune_scores(_Gated(), torch.randn(3, 4))
    assert found.names == ["value.weight", "value.bias"]
    assert "gate.weight, gate.bias" in found.data.attrs["notes"][-1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True).eval()
    packed = capalloc.prune_scores(layer, torch.randn(2, 5, 8)).weights["self_attn.in_proj_weight"]
    assert (packed[16:] > 0).all()
    assert np.isnan(packed[:16]).all()


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value(x) * self.gate(x).sigmoid()


def test_torch_prunes_by_them() -> None:
    model, x = net(), examples()
    found = capalloc.prune_scores(model, x)
    importance = found.importance(model)
    assert {leaf for _, leaf in importance} == {"weight"}
    prune.global_unstructured(
        list(importance), pruning_method=prune.L1Unstructured, importance_scores=importance, amount=0.75
    )
    scores = np.concatenate([found.weights[f"{k}.weight"].ravel() for k in (0, 2, 4)])
    kept = np.concatenate([model[k].weight_mask.numpy().ravel() for k in (0, 2, 4)]) > 0
    assert kept.sum() == round(0.25 * scores.size)
    assert scores[kept].min() >= scores[~kept].max()


def test_saved_and_loaded(tmp_path: object) -> None:
    found = capalloc.prune_scores(net(), examples())
    found.save(f"{tmp_path}/scores.nc")
    again = capalloc.load(f"{tmp_path}/scores.nc")
    assert isinstance(again, PruneScores)
    for name, scores in found.weights.items():
        np.testing.assert_array_equal(again.weights[name], scores)
    assert f"{sum(s.size for s in found.weights.values())} of" in str(again)


def test_float32_that_underflows_is_walked_again() -> None:
    model = net().float()
    with torch.no_grad():
        model[0].weight.mul_(torch.logspace(0, -18, 7)[:, None])
    found = capalloc.prune_scores(model, examples().float())
    double = capalloc.prune_scores(model.double(), examples())
    for name, scores in double.weights.items():
        np.testing.assert_allclose(found.weights[name], scores, rtol=1e-4, atol=1e-12)


def test_what_is_refused(tmp_path: object) -> None:
    model, x = net(), examples()
    with pytest.raises(ValueError, match="gates must be one of"):
        capalloc.prune_scores(model, x, gates="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='batch_size must be "auto" or an integer >= 1'):
        capalloc.prune_scores(model, x, batch_size=0)
    dead = copy.deepcopy(model)
    with torch.no_grad():
        dead[4].weight.zero_()
        dead[4].bias.zero_()
    with pytest.raises(ValueError, match="no path leads from the inputs to the outputs"):
        capalloc.prune_scores(dead, x)
    found = capalloc.prune_scores(model, x)
    with pytest.raises(ValueError, match=r"no parameter '0.weight' of shape \(7, 5\)"):
        found.importance(nn.Sequential(nn.Linear(4, 7)))
    with pytest.raises(ValueError, match="lacks score_0"):
        PruneScores(found.data.drop_vars("score_0"))
    with pytest.raises(ValueError, match="must not be negative"):
        PruneScores(found.data.assign(score_0=-found.data["score_0"]))
    with pytest.raises(ValueError, match="and its share is"):
        PruneScores(found.data.assign(share=found.data["share"] + xr.DataArray([0.5] * 6, dims="tensor")))
