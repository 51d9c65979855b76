"""Constraints that are nothing but rounding count for nothing, however large a small deviation makes them."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import capalloc
from capalloc._derivatives import choose_jacobian
from capalloc._derivatives.rounding import rounded
from capalloc._measure.task import make_task


class Normed(nn.Module):
    """Two channels of one input before an instance norm, the first of which hardly varies."""

    def __init__(self, weight):
        super().__init__()
        torch.manual_seed(0)
        self.c, self.b = nn.Conv1d(1, 2, 1), nn.Linear(12, 1)
        self.c.weight.data[0] = weight

    def forward(self, x):
        return self.b(F.instance_norm(self.c(x)).flatten(1))


def gaussian(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.proves("2", "rank", oracle="by hand: entries of a channel sum to 0, and its bias is taken away")
@pytest.mark.parametrize("weight", [1.0, 0.1, 0.03, 0.007, -0.004])
@pytest.mark.parametrize("method", [capalloc.measure, capalloc.propagate])
def test_a_bias_that_a_norm_takes_away_holds_nothing(weight, method):
    """Weights of two channels, five directions of six weights for each channel that read it, a bias."""
    found = method(Normed(weight).double(), gaussian(60, 1, 6))
    assert found.total == pytest.approx(2 + 2 * 5 + 1, abs=1e-6)
    assert float(found.by_parameter.sel(parameter="c.bias")) < 1e-15
    assert found.attrs["notes"] == []  # no way to derivatives is called wrong for it


def test_a_rank_within_rounding_is_said_to_be_unclear():
    found = capalloc.measure(Normed(1e-3).double(), gaussian(60, 1, 6))
    assert any("the numerical rank is unclear: singular values down to" in n for n in found.attrs["notes"])


class Correlated(nn.Module):
    """Correlations of two rows of `points` numbers, 1 or -1 of two points."""

    def __init__(self, points):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 2 * points), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(torch.stack([torch.corrcoef(e.reshape(2, -1)) for e in self.a(x)]).flatten(1))


@pytest.mark.proves("2", "rank", oracle="a sign and a constant, for two outputs")
def test_a_correlation_of_two_points_has_no_derivative():
    found = capalloc.measure(Correlated(2).double(), gaussian(30, 3))
    assert found.total == pytest.approx(4, abs=1e-6)
    assert "constraints of a.weight, a.bias are rounding in part" in found.attrs["notes"][-1]
    assert capalloc.measure(Correlated(3).double(), gaussian(30, 3)).attrs["notes"] == []


def test_a_unit_that_is_saturated_on_the_first_examples_is_alive_on_others():
    """There its slope is rounding, which must not stand for all."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), gaussian(30, 3)
    x[:6] *= 60
    for given in (x, x.flip(0)):
        found = capalloc.measure(net, given)
        assert found.total == pytest.approx(4 * 4 + 5 * 2, abs=1e-6)
        assert found.attrs["unused_params"] == 0


def test_a_parameter_without_entries_holds_nothing():
    net = nn.Linear(3, 2).double()
    net.register_parameter("none", nn.Parameter(torch.zeros(1, 0, 4, dtype=torch.float64)))
    assert capalloc.measure(net, gaussian(20, 3)).total == pytest.approx(8)


class Shifted(nn.Module):
    """A shift of all units before a norm, which takes it away, and of only one where the first input is large."""

    def __init__(self, size):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.size = nn.Linear(3, 4, bias=False), nn.Linear(4, 2), size
        self.shift, self.every = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, x):
        one = torch.eye(4, dtype=x.dtype, device=x.device)[0] * self.size
        where = torch.where(x[:, :1] > 9, one, 1.0)
        return self.b(F.layer_norm(self.a(x) + self.shift * where + self.every, (4,)))


@pytest.mark.parametrize("size", [1e-12, 1e-8, 1.0])
@pytest.mark.parametrize("alive", [0, 1, 2, 20])
def test_columns_filled_on_few_examples_are_those_filled_on_all(alive, size):
    net, x = Shifted(size).double(), gaussian(40, 3)
    x[len(x) - alive :, 0] += 12
    task = make_task(net, x)
    choice = choose_jacobian(task.problem, task.x[:3], partial(task.replay, 0))
    every, sampled = (rounded(task.problem, choice.jacobian, task.x, few, 7, task.replay) for few in (len(x), 3))
    assert torch.equal(every.filled, sampled.filled)
    assert every.names == sampled.names
    assert sampled.filled.nonzero().flatten().tolist() == [0, 1][alive > 0 :]  # the shift, where it is always of all


@pytest.mark.parametrize("gap", [0.0, -0.4242])
def test_equal_pixels_are_no_rounding(gap):
    """One of several equal entries wins a maximum; parametrisations read whole numbers of parameters."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).double()
    x = gaussian(40, 1, 5, 5)
    x = torch.where(x > 0.3, x.round(), gap)
    found = capalloc.measure(net, x)
    near = capalloc.measure(net, x, ridge=1e-12)
    assert found.total == pytest.approx(near.total, abs=0.01)
    assert not any("rounding" in note for note in found.attrs["notes"])


def test_an_orthogonal_weight_is_no_rounding():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    nn.utils.parametrizations.orthogonal(net[2])
    found = capalloc.measure(net, gaussian(30, 4))
    assert found.total == pytest.approx(32, abs=1e-6)
    assert found.attrs["notes"] == []
