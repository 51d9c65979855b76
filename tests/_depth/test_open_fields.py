"""Fields of paths do not depend on which example comes first: masks open that other inputs would open."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import capalloc


class Gated(nn.Module):
    """A convolution, a gate that the mean of an example opens, a convolution."""

    def __init__(self, gate):
        super().__init__()
        self.c, self.d, self.gate = nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 1, 3, padding=1), gate

    def forward(self, x):
        return self.d(self.gate(self.c(x), x.mean(2, keepdim=True) > 0))


GATES = {
    "where": lambda h, open_: torch.where(open_, h, torch.zeros_like(h)),
    "otherwise": lambda h, open_: torch.where(~open_, 0.0, h),
    "mask": lambda h, open_: h * open_.to(h.dtype),
    "boolean mask": lambda h, open_: h * open_,
    "masked_fill": lambda h, open_: h.masked_fill(~open_, 0.0),
    "two": lambda h, open_: torch.where(open_ & (h.sum(1, keepdim=True) < 0), h, 0 * h),
    "hard": lambda h, open_: h * F.relu(h.mean((1, 2), keepdim=True) - 50),
}


def of_means(*means):
    x = torch.randn(len(means), 1, 9, generator=torch.Generator().manual_seed(0))
    return x - x.mean(2, keepdim=True) + torch.tensor(means)[:, None, None]


@pytest.mark.proves("6", "field of paths", oracle="both convolutions by hand: 5 of 9, the branch that the gate opens")
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("means", [(-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)])
def test_a_closed_gate_has_the_field_of_an_open_one(gate, means):
    torch.manual_seed(0)
    field = capalloc.receptive_field(Gated(GATES[gate]), of_means(*means))
    assert field.support.values[0].tolist() == [2 <= k <= 6 for k in range(9)]
    assert field.influence.values.all()  # the mean sees all
    assert field.paths_status in ("exact", "upper bound")


@pytest.mark.parametrize("branches", [(1, 3), (3, 1)])
def test_both_branches_of_a_condition_count(branches):
    torch.manual_seed(0)
    wide, narrow = (nn.Conv1d(1, 1, k, padding=k // 2) for k in branches)
    net = Gated(lambda h, open_: torch.where(open_, wide(h[:, :1]), narrow(h[:, :1])))
    net.d = nn.Conv1d(1, 1, 1)
    field = capalloc.receptive_field(net, of_means(-1.0, -2.0))
    assert int(field.support.sum()) == 5


class Masked(nn.Module):
    """Attention to tokens that are not zero, whose mask is told in one of three ways."""

    def __init__(self, way):
        super().__init__()
        self.q, self.v, self.way = nn.Linear(2, 2), nn.Linear(2, 2), way

    def forward(self, x):
        seen, q = (x.abs().sum(-1) > 0)[:, None, :].expand(-1, x.shape[1], -1), self.q(x)
        if self.way == "causal too":
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = (q @ q.mT).masked_fill(~seen, -torch.inf).masked_fill(later, -torch.inf)
            return scores.softmax(-1) @ self.v(x)
        bias = torch.zeros(seen.shape, dtype=x.dtype).masked_fill(~seen, -1e9 if self.way == "large" else -torch.inf)
        return F.scaled_dot_product_attention(q, q, self.v(x), attn_mask=seen if self.way == "boolean" else bias)


@pytest.mark.parametrize(("way", "tokens"), [("boolean", 4), ("infinite", 4), ("large", 4), ("causal too", 3)])
def test_padding_of_the_first_example_hides_no_token(way, tokens):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 2)
    x[0, 1:] = 0
    for given in (x, x.flip(0)):
        field = capalloc.receptive_field(Masked(way), given, output_position=(2, None))
        assert field.support.values.all(1).tolist() == [k < tokens for k in range(4)]


class Sorted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Conv1d(1, 1, 1), nn.Conv1d(1, 1, 1)

    def forward(self, x):
        return self.c(self.a(x).sort(-1).values)


def test_an_order_reads_what_any_example_reads():
    """Entry k is the median of none but those that some example has in the middle."""
    torch.manual_seed(0)
    net, x = Sorted(), torch.randn(6, 1, 9)
    middle = net.a(x).argsort(-1)[:, 0, 4]
    for given in (x, x.flip(0)):
        field = capalloc.receptive_field(net, given)
        assert field.support.values[0].nonzero()[0].tolist() == sorted(set(middle.tolist()))
        assert field.paths_status == "depends on data"


class Drawing(nn.Module):
    """It sees two of its places, which it draws anew, as masked autoencoders do."""

    def __init__(self):
        super().__init__()
        self.c, self.b = nn.Conv1d(1, 2, 1), nn.Linear(4, 1)

    def forward(self, x):
        chosen = torch.rand(len(x), x.shape[-1]).argsort(1)[:, None, :2].expand(-1, 2, -1)
        return self.b(self.c(x).gather(2, chosen).flatten(1))


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_places_that_are_drawn_are_those_of_the_map(batch_size):
    torch.manual_seed(0)
    field = capalloc.receptive_field(Drawing(), torch.randn(20, 1, 64), batch_size=batch_size)
    assert (field.map.values > 0).tolist() == field.support.values.tolist() == field.influence.values.tolist()
    assert (field.paths_status, field.influence_status) == ("depends on data",) * 2
    assert "the model draws random numbers" in field.notes[-1]
