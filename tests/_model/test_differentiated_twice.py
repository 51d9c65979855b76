"""Calls that autograd differentiates once or not at all, against the same functions written out."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import capalloc


class Net(nn.Module):
    def __init__(self, function, hidden, out):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.function, self.b = nn.Linear(4, hidden), function, nn.Linear(out, 2)

    def forward(self, x):
        return self.b(self.function(self.a(x)).flatten(1))


CENTRES = torch.randn(5, 2, generator=torch.Generator().manual_seed(2))


def apart(h, pairs):
    points = h.reshape(-1, 3, 2)
    return torch.stack([(points[:, i] - points[:, j]).square().sum(-1).sqrt() for i, j in pairs], 1)


def to_centres(h, p):
    gaps = h.reshape(-1, 3, 1, 2) - CENTRES.to(h)
    return gaps.abs().sum(-1) if p == 1 else gaps.square().sum(-1).sqrt()


PAIRS = ((0, 1), (0, 2), (1, 2))
CALLS = {
    "cdist": (lambda h: torch.cdist(h.reshape(-1, 3, 2), CENTRES.to(h)), lambda h: to_centres(h, 2), 6, 15),
    "cdist of 1": (lambda h: torch.cdist(h.reshape(-1, 3, 2), CENTRES.to(h), p=1), lambda h: to_centres(h, 1), 6, 15),
    "cdist to itself": (lambda h: torch.cdist(h.reshape(-1, 3, 2), h.reshape(-1, 3, 2)).triu(), None, 6, 9),
    "pdist": (lambda h: torch.stack([F.pdist(e) for e in h.reshape(-1, 3, 2)]), lambda h: apart(h, PAIRS), 6, 3),
    "heaviside": (lambda h: h * torch.heaviside(h, h.new_zeros(())), torch.relu, 5, 5),
    "method": (lambda h: h * h.heaviside(h.new_ones(())), torch.relu, 5, 5),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("method", [capalloc.measure, capalloc.propagate])
def test_they_measure_as_written_out(call, method):
    function, written, hidden, out = CALLS[call]
    if written is None:  # the diagonal is 0, and so are its derivatives
        written = lambda h: torch.stack([*apart(h, PAIRS).T], 1) @ torch.eye(9)[[1, 2, 5]].to(h)  # noqa: E731
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    found, expected = (method(Net(f, hidden, out), x) for f in (function, written))
    np.testing.assert_allclose(found.capacity, expected.capacity, atol=1e-8)
    np.testing.assert_allclose(found.by_parameter, expected.by_parameter, atol=1e-8)


@pytest.mark.parametrize("call", CALLS)
def test_they_have_paths(call):
    function, written, hidden, out = CALLS[call]
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    assert capalloc.receptive_field(Net(function, hidden, out), x).support.all()
    if written is torch.relu:
        found, expected = (capalloc.propagate(Net(f, hidden, out), x, solver="markov") for f in (function, written))
        np.testing.assert_allclose(found.capacity, expected.capacity, atol=1e-9)


def test_torch_is_as_it_was():
    own = torch.cdist, torch.pdist, F.pdist, torch.heaviside, torch.Tensor.heaviside, torch.cond
    capalloc.measure(Net(*CALLS["cdist"][::2], 15), torch.randn(9, 4))
    assert own == (torch.cdist, torch.pdist, F.pdist, torch.heaviside, torch.Tensor.heaviside, torch.cond)


@pytest.mark.parametrize("scale", [1e160, 1e-160])
def test_outputs_out_of_range_are_refused(scale):
    net, x = Net(lambda h: torch.relu(h) * scale, 5, 5).double(), torch.randn(9, 4).double()
    net.b.bias.data.zero_()
    for method in (capalloc.measure, capalloc.propagate, capalloc.output_gram):
        with pytest.raises(ValueError, match=r"squares of their derivatives leave the range of numbers: scale them"):
            method(net, x)
    paths = capalloc.receptive_field(net, x), capalloc.receptive_field(Net(torch.relu, 5, 5).double(), x)
    np.testing.assert_array_equal(*(found.support for found in paths))


@pytest.mark.parametrize("scale", [1e160, 1e-160])
def test_a_scale_that_is_taken_back_changes_nothing(scale):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1)).double()
    nets = [Net(f, 5, 5).double() for f in (lambda h: torch.relu(h * scale) * (1 / scale), torch.relu)]
    for keywords in ({}, {"solver": "markov"}):
        found, expected = (capalloc.propagate(net, x, **keywords) for net in nets)
        np.testing.assert_allclose(found.capacity, expected.capacity, atol=1e-8)


def test_a_convolution_of_one_image_is_that_of_all():
    class Images(nn.Module):
        def __init__(self, one_by_one):
            super().__init__()
            torch.manual_seed(0)
            self.c, self.t, self.one_by_one = nn.Conv2d(1, 3, 2), nn.ConvTranspose2d(3, 2, 2, stride=2), one_by_one

        def forward(self, x):
            run = lambda e: self.t(torch.relu(self.c(e)))  # noqa: E731
            return torch.stack([run(e) for e in x]) if self.one_by_one else run(x)

    x = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    for keywords in ({}, {"solver": "markov"}):
        alone, together = (capalloc.propagate(Images(k), x, **keywords) for k in (True, False))
        np.testing.assert_allclose(alone.capacity, together.capacity, atol=1e-8)
        assert alone.attrs["symmetries"] == together.attrs["symmetries"]
    assert capalloc.receptive_field(Images(True), x).sizes == capalloc.receptive_field(Images(False), x).sizes


def test_a_number_that_is_none_at_zero_is_no_linear_map():
    """Its matrix would be 0, and its field empty."""
    net = Net(lambda h: torch.special.zeta(h.exp() + 2, torch.ones_like(h)), 3, 3)
    for ask in (capalloc.receptive_field, lambda *given: capalloc.propagate(*given, solver="markov")):
        with pytest.raises(capalloc.UnsupportedOperatorError, match=r"special_zeta.* at 0: its result is NaN"):
            ask(net, torch.randn(9, 4))


def test_a_scan_of_torch_is_to_be_written_out():
    from torch._higher_order_ops.scan import scan

    class Scan(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.r = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, x):
            def step(state, moment):
                state = torch.tanh(self.r(state) + moment)
                return state, state.clone()

            moments = self.a(x).transpose(0, 1)
            return scan(step, moments.new_zeros(moments.shape[1:]), moments)[0]

    with pytest.raises(ValueError, match="write torch's scan as a loop of Python"):
        capalloc.measure(Scan(), torch.randn(9, 4, 3))
