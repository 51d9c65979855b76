"""Hooks on gradients: one that changes them is refused by every method, one that looks on changes no answer."""

import pytest
import torch
from torch import nn

import capalloc

METHODS = {
    "measure": lambda net, x: capalloc.measure(net, x).total,
    "default": lambda net, x: capalloc.propagate(net, x).total,
    "markov": lambda net, x: capalloc.propagate(net, x, solver="markov").total,
    "field": lambda net, x: int(capalloc.receptive_field(net, x).support.sum()),
    "gram": lambda net, x: float(capalloc.output_gram(net, x).abs().sum()),
}


class Hooked(nn.Module):
    """A network that hooks a tensor's gradient in forward, as Grad-CAM does."""

    def __init__(self, hook=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.hook, self.seen = nn.Linear(4, 5), nn.Linear(5, 2), hook, []

    def forward(self, x):
        h = torch.relu(self.a(x))
        if self.hook is not None and h.requires_grad:
            h.register_hook(self.hook)
        return self.b(h)


def of_modules(net, change):
    net.a.register_full_backward_hook(lambda module, given, back: change(given))
    net.b.register_full_backward_pre_hook(lambda module, back: None)
    return net


@pytest.mark.parametrize("method", METHODS)
def test_hooks_that_change_gradients_are_refused(method):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match=r"a backward hook of modules \(a, b\) changes gradients"):
        METHODS[method](of_modules(Hooked(), lambda given: tuple(2 * g for g in given)), x)
    with pytest.raises(ValueError, match="a backward hook of a tensor in forward changes gradients"):
        METHODS[method](Hooked(lambda g: g.clamp(max=0)), x)
    with pytest.raises(ValueError, match=r"a backward hook of modules \(a, b\) changes gradients"):
        METHODS[method](of_modules(Hooked(), lambda given: given[5]), x)  # an error in a hook


@pytest.mark.parametrize("method", METHODS)
def test_hooks_that_look_on_leave_the_answer(method):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    expected, seen = METHODS[method](Hooked(), x), []
    net = of_modules(Hooked(seen.append), lambda given: None)
    own = torch.Tensor.register_hook
    assert METHODS[method](net, x) == pytest.approx(expected, rel=1e-9)
    assert len(net.a._backward_hooks) == len(net.b._backward_pre_hooks) == 1  # the user's model keeps them
    assert torch.Tensor.register_hook is own
    net(x).sum().backward()
    assert seen


def test_a_hook_that_holds_entries_fixed_is_named():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    net = Hooked()
    net.a.weight.register_hook(lambda g: g * 0)
    for found in (capalloc.measure(net, x), capalloc.propagate(net, x, solver="markov")):
        assert round(found.total) == 32
        said = "hooks on the gradients of parameters are left out, and what they hold fixed counts: a.weight"
        assert said in found.attrs["notes"]
