"""Entries that are overwritten carry nothing, whichever call writes: against the network that never had them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import capalloc

PLACES = torch.tensor([0, 1, 2, 0, 1, 2])


class Net(nn.Module):
    def __init__(self, write):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.write, self.b = nn.Linear(4, 6), write, nn.Linear(3, 2)

    def forward(self, x):
        return self.b(self.write(torch.tanh(self.a(x))))


def zeros(h):
    return h.new_zeros(len(h), 3)


def pairs(h):
    return torch.arange(len(h))[:, None], PLACES[None]


def assigned(h):
    out = zeros(h)
    out[:, PLACES] = h
    return out


def assigned_by_leading_one(h):
    """Of a value with one more axis, which torch leaves out."""
    out = zeros(h)
    out[:, PLACES] = h[None]
    return out


def assigned_by(key):
    def write(h):
        out = zeros(h)
        out[:, key] = h
        return out

    return write


def put_in_place(h):
    out = zeros(h)
    out.put_(places_of_all(h), h)
    return out


def places_of_all(h):
    return 3 * torch.arange(len(h))[:, None] + PLACES


def scattered(h):
    out = torch.zeros(len(h), 3).to(h.dtype)
    out.scatter_(1, PLACES.expand(len(h), -1), h)
    return out


WAYS = {
    "scatter": lambda h: zeros(h).scatter(1, PLACES.expand(len(h), -1), h),
    "torch.scatter": lambda h: torch.scatter(zeros(h), 1, PLACES.expand(len(h), -1), h),
    "scatter_": scattered,
    "index_put": lambda h: zeros(h).index_put(pairs(h), h),
    "index_put_": lambda h: zeros(h).index_put_(pairs(h), h),
    "index_copy": lambda h: zeros(h).index_copy(1, PLACES, h),
    "assignment": assigned,
    "assignment by a list": assigned_by(PLACES.tolist()),
    "assignment by an array": assigned_by(PLACES.numpy()),
    "put": lambda h: zeros(h).put(places_of_all(h), h),
    "torch.put": lambda h: torch.put(zeros(h), places_of_all(h), h.flatten()),
    "put_": put_in_place,
    "names": lambda h: torch.scatter(input=zeros(h), dim=1, index=PLACES.expand(len(h), -1), src=h),
    "assignment of more axes": assigned_by_leading_one,
}


@pytest.mark.proves("2", "rank", oracle="the network without the entries that are overwritten")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", [capalloc.measure, capalloc.propagate])
def test_what_is_overwritten_carries_nothing(way, method):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    found, expected = (method(Net(write), x) for write in (WAYS[way], lambda h: h[:, 3:]))
    np.testing.assert_allclose(found.capacity, expected.capacity, atol=1e-8)
    np.testing.assert_allclose(found.by_parameter, expected.by_parameter, atol=1e-8)
    assert float(found.capacity.sum()) + found.bias == pytest.approx(float(found.by_parameter.sum()))


class Unpool(nn.Module):
    """Max pooling over windows that overlap, undone; `by_hand` one entry is read for each place."""

    def __init__(self, by_hand):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv2d(k, n, 3, padding=1) for k, n in ((1, 2), (2, 2), (2, 1)))
        self.by_hand = by_hand

    def forward(self, x):
        top, index = F.max_pool2d(self.a(x), 3, 2, 1, return_indices=True)
        h = self.b(torch.relu(top))
        if not self.by_hand:
            return self.c(torch.relu(F.max_unpool2d(h, index, 2, output_size=x.shape[-2:])))
        numbers = torch.arange(1.0, h[0, 0].numel() + 1).reshape(1, 1, *h.shape[2:]).expand(h.shape).contiguous()
        winner = F.max_unpool2d(numbers, index, 2, output_size=x.shape[-2:]).long() - 1
        read = h.flatten(2).gather(2, winner.clamp(min=0).flatten(2)).reshape(winner.shape)
        return self.c(torch.relu(torch.where(winner >= 0, read, 0.0)))


@pytest.mark.parametrize("method", [capalloc.measure, capalloc.propagate])
def test_windows_that_unpool_to_one_place(method):
    x = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    found, expected = (method(Unpool(by_hand), x) for by_hand in (False, True))
    np.testing.assert_allclose(found.capacity, expected.capacity, atol=1e-8)


def test_other_writes_are_left_alone():
    """Sums, masks, numbers and slices keep their own calls, and torch its own."""

    def others(h):
        out = zeros(h).index_put(pairs(h), h, accumulate=True)
        out = out.scatter(1, PLACES[:1].expand(len(h), -1), 0.5)
        out[h[:, :3] > 1] = 0.0
        out[:, 1:] = out[:, 1:] * 2
        out[:, PLACES] = 1.0
        return out + zeros(h).scatter(1, PLACES.expand(len(h), -1), h)

    own = torch.Tensor.scatter, torch.Tensor.__setitem__, F.max_unpool2d
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    expected = capalloc.measure(Net(lambda h: 1 + h[:, 3:]), x)
    np.testing.assert_allclose(capalloc.measure(Net(others), x).capacity, expected.capacity, atol=1e-8)
    assert own == (torch.Tensor.scatter, torch.Tensor.__setitem__, F.max_unpool2d)
