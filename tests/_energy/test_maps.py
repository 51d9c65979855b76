"""Maps of energies beside autograd: values and exact adjoints, on the ways that save passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from capalloc._energy.maps import ConvolutionMap, DenseMap, EnergyMap, OpenWhere, Product, Reshaped
from zoo import gaussian

Z = gaussian(2, 3, 5, 4, seed=1)
HELD = gaussian(3, 1, 1, seed=2).square()


def conv(**settings: object) -> ConvolutionMap:
    return ConvolutionMap(**{"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), **settings})


CASES = {
    "gates of ReLU": (OpenWhere(Z), lambda x: x * (Z > 0), [Z.shape]),
    "a dense layer on one example": (DenseMap(), F.linear, [(4,), (2, 4)]),
    "reshaped": (Reshaped((-1, 1, 1)), lambda w: w.reshape(-1, 1, 1), [(3,)]),
    "product of channels": (Product(), lambda x, w: x * w, [Z.shape, (3, 1, 1)]),
    "product of channels, with examples": (Product(), lambda x, w: x * w, [Z.shape, (1, 3, 1, 1)]),
    "product of positions": (Product(), lambda x, w: x * w, [Z.shape, (5, 1)]),
    "product with what is held": (Product(HELD), lambda x, w: x * w * HELD, [Z.shape, (3, 1, 1)]),
    "product of one weight": (Product(), lambda x, w: x * w, [Z.shape, (1, 1, 1)]),
    "product with entries": (Product(), lambda x, w: x * w, [Z.shape, (4,)]),
    "small map": (conv(padding=(1, 1)), lambda x, w: F.conv2d(x, w, padding=1), [Z.shape, (2, 3, 3, 3)]),
    "small map, dilated": (
        conv(padding=(2, 1), dilation=(2, 1), stride=(2, 1)),
        lambda x, w: F.conv2d(x, w, padding=(2, 1), dilation=(2, 1), stride=(2, 1)),
        [Z.shape, (2, 3, 3, 3)],
    ),
    "samples": (conv(stride=(2, 3)), lambda x, w: F.conv2d(x, w, stride=(2, 3)), [Z.shape, (2, 3, 1, 1)]),
    "samples of groups": (
        conv(stride=(2, 2), groups=3),
        lambda x, w: F.conv2d(x, w, stride=2, groups=3),
        [Z.shape, (6, 1, 1, 1)],
    ),
    "groups, strided and padded": (
        conv(stride=(2, 1), padding=(1, 0), groups=3),
        lambda x, w: F.conv2d(x, w, stride=(2, 1), padding=(1, 0), groups=3),
        [Z.shape, (6, 1, 2, 3)],
    ),
    "transposed, in groups": (
        conv(stride=(2, 2), padding=(1, 1), groups=3, transposed=True, output_padding=(1, 0)),
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, groups=3, output_padding=(1, 0)),
        [Z.shape, (3, 2, 3, 3)],
    ),
    "dense": (DenseMap(), F.linear, [Z.shape, (6, 4)]),
    "samples of a line": (
        ConvolutionMap((3,), (0,), (1,)),
        lambda x, w: F.conv1d(x, w, stride=3),
        [(2, 3, 7), (4, 3, 1)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_map_and_its_adjoint_are_autograds(name: str) -> None:
    made, plain, shapes = CASES[name]
    args = [gaussian(*shape, seed=k + 3).requires_grad_() for k, shape in enumerate(shapes)]
    expected = plain(*args)
    cotangent = gaussian(*expected.shape, seed=9)
    gradients = torch.autograd.grad(expected, args, cotangent)
    values = [a.detach() for a in args]
    torch.testing.assert_close(made(*values), expected.detach())
    for wanted in ([0], [len(args) - 1], list(range(len(args)))):
        torch.testing.assert_close(made.pull(cotangent, values, wanted), [gradients[k] for k in wanted])
    torch.testing.assert_close(rows(made, cotangent, values), torch.stack([gradients[0], -2 * gradients[0]]))


@pytest.mark.parametrize("name", [name for name, (made, *_) in CASES.items() if hasattr(made, "spread")])
def test_marks_spread_as_through_weights_of_one(name: str) -> None:
    made, plain, shapes = CASES[name]
    x, weight = (gaussian(*shape, seed=k) for k, shape in enumerate(shapes))
    signal = torch.zeros_like(x, requires_grad=True)
    outputs = plain(signal, torch.ones_like(weight))
    for k in range(outputs.numel()):
        mask = torch.zeros(outputs.numel()).index_fill_(0, torch.tensor(k), 1).view_as(outputs).to(x)
        (through,) = torch.autograd.grad(outputs, signal, mask, retain_graph=True)
        assert torch.equal(made.spread(mask, x, weight) > 0, through > 0)


def rows(made: EnergyMap, cotangent: Tensor, values: list[Tensor]) -> Tensor:
    """Pull several cotangents at once, as the table by parameter does."""
    both = torch.stack([cotangent, -2 * cotangent])
    return torch.func.vmap(lambda g: made.pull(g, values, [0])[0])(both)
