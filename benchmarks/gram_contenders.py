"""Ways to J J' and J' J of the output Jacobian: hooks by hand, torch.func, and the packages that are installed.

Every way is a function of (network, examples, side) that returns the matrix, rows of J being (examples, outputs).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from capalloc._derivatives.output_grams import output_gram

Contender = Callable[[nn.Module, Tensor, str], Tensor]


def capalloc(net: nn.Module, x: Tensor, side: str) -> Tensor:
    gram = output_gram(net, x, side=side)
    return gram.flatten(2).flatten(0, 1) if side == "outputs" else gram


def product(rows: Tensor, side: str) -> Tensor:
    """From J itself, (rows, params)."""
    return rows @ rows.T if side == "outputs" else rows.T @ rows


def hooks(net: nn.Module, x: Tensor, side: str) -> Tensor:
    """By hand, for linear and convolution layers used once: what entered them and what came back, then einsum."""
    layers = [module for module in net.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    entered: dict[nn.Module, Tensor] = {}
    returned: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def forward(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        entered[layer] = inputs[0].detach()
        out.register_hook(lambda grad: returned[layer].append(grad))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(forward).remove)
        out = net(x)
    for o in range(out.shape[1]):
        torch.autograd.grad(out[:, o].sum(), list(net.parameters())[:1], retain_graph=o + 1 < out.shape[1])
    deltas = {layer: torch.stack(grads, 1) for layer, grads in returned.items()}  # (e, o, *out)
    if side == "outputs":
        return sum(_hooked_gram(layer, entered[layer], deltas[layer]) for layer in layers)
    return product(torch.cat([_hooked_rows(layer, entered[layer], deltas[layer]) for layer in layers], 1), side)


def _hooked_gram(layer: nn.Module, h: Tensor, delta: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        gram = torch.einsum("eoi,fqi->eofq", delta, delta) * (h @ h.T + 1)[:, None, :, None]
        return gram.flatten(2).flatten(0, 1)
    return product(_hooked_rows(layer, h, delta), "outputs")


def _hooked_rows(layer: nn.Module, h: Tensor, delta: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        weight, bias = torch.einsum("eoi,ej->eoij", delta, h), delta
    else:
        patches = F.unfold(h, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        weight, bias = torch.einsum("eoip,ejp->eoij", delta.flatten(3), patches), delta.sum((3, 4))
    return torch.cat([weight.flatten(2), bias], 2).flatten(0, 1)


def torch_func(net: nn.Module, x: Tensor, side: str) -> Tensor:
    rows = [part.flatten(2) for part in jacobian(net, x).values()]
    return product(torch.cat(rows, 2).flatten(0, 1), side)


def jacobian(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """J by parameter, (examples, outputs, *parameter): jacrev under vmap."""
    params = {name: p.detach() for name, p in net.named_parameters()}

    def f(values: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(net, values, (point[None],))[0]

    found: dict[str, Tensor] = vmap(jacrev(f), (None, 0))(params, x)
    return found


def nngeometry(net: nn.Module, x: Tensor, side: str) -> Tensor:
    from nngeometry.gram import GramMatrix
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDense

    batch = (x, torch.zeros(len(x), dtype=torch.long))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), len(x))
    if side == "outputs":
        gram = GramMatrix(net, loader, lambda *d: net(d[0])).to_torch()  # (o, e, o, e)
        return gram.permute(1, 0, 3, 2).flatten(2).flatten(0, 1)
    return FIM(net, loader, PMatDense, "regression").to_torch().mul_(len(x))  # a mean over examples


def curvlinops(net: nn.Module, x: Tensor, side: str) -> Tensor:
    from curvlinops import TransposedJacobianLinearOperator

    params = [p for p in net.parameters() if p.requires_grad]
    operator = TransposedJacobianLinearOperator(net, params, [(x, torch.zeros(len(x)))], check_deterministic=False)
    return product((operator @ torch.eye(operator.shape[1], dtype=x.dtype)).T, side)


def backpack(net: nn.Module, x: Tensor, side: str) -> Tensor:
    import backpack
    from backpack.extensions import BatchGrad

    if not hasattr(net, "_extended"):
        backpack.extend(net)
        net._extended = True
    rows = []
    with backpack.backpack(BatchGrad(), retain_graph=True):
        out = net(x)
        for o in range(out.shape[1]):
            out[:, o].sum().backward(retain_graph=o + 1 < out.shape[1])
            rows.append(torch.cat([p.grad_batch.flatten(1) for p in net.parameters()], 1))
            for p in net.parameters():
                p.grad = None
                del p.grad_batch
    return product(torch.stack(rows, 1).flatten(0, 1), side)


def torchjd(net: nn.Module, x: Tensor, side: str) -> Tensor:
    if side == "outputs":
        from torchjd.autogram import Engine

        return Engine(*net.children(), batch_dim=0).compute_gramian(net(x))
    from torchjd.autojac import jac

    out = net(x)
    return product(torch.cat([j.flatten(1) for j in jac(out.flatten(), list(net.parameters()))], 1), side)


OURS = "capalloc.output_gram"
#: what the table calls it -> (the way, the package it needs)
CONTENDERS: dict[str, tuple[Contender, str]] = {
    OURS: (capalloc, "capalloc"),
    "hooks by hand": (hooks, "torch"),
    "torch.func, vmap of jacrev": (torch_func, "torch"),
    "torchjd": (torchjd, "torchjd"),
    "BackPACK": (backpack, "backpack"),
    "nngeometry": (nngeometry, "nngeometry"),
    "curvlinops": (curvlinops, "curvlinops"),
}


def installed(name: str) -> bool:
    return importlib.util.find_spec(CONTENDERS[name][1]) is not None
