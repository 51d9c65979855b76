"""Known scores of untrained networks, each as its paper has it or as its line below says.

Index convention: x is (examples, *inputs), y is (examples, outputs).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from capalloc._derivatives.output_grams import output_gram
from capalloc._derivatives.tape import Tape
from capalloc._model.complex_params import cast
from capalloc._model.problem import Problem
from capalloc._operators.records import record

#: Modules that SynFlow leaves out: on inputs that are alike they would pass nothing.
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
#: Eigenvalues below this share of the largest are rounding: the condition is then infinite.
SINGULAR = 1e-14


def flops(problem: Problem) -> int:
    """Operations of one forward pass of one example: two a multiplication in matrix products and convolutions."""
    with FlopCounterMode(display=False) as counted, torch.no_grad(), Tape():  # which makes recurrent layers of steps
        problem(problem.probe)
    return int(counted.get_total_flops())


def synflow(problem: Problem) -> float:
    """Sum of theta dR/d theta, R the summed outputs of ones under |theta|, without norms (Tanaka et al., 2020)."""
    model = cast(copy.deepcopy(problem.model), torch.float64)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.abs_()
    for module in model.modules():
        if isinstance(module, NORMS):
            module.forward = lambda x: x  # type: ignore[method-assign]
    own = dict(model.named_parameters())
    params = [own[name].requires_grad_() for name in problem.params]
    ones = problem.probe.double().masked_fill(problem.places.signals.to(problem.probe.device), 1.0)
    returned = problem.select(model(ones)).sum()
    slopes = torch.autograd.grad(returned, params, materialize_grads=True, allow_unused=True)
    return float(sum((p.detach() * slope).sum() for p, slope in zip(params, slopes, strict=True)))


class _Codes(TorchDispatchMode):
    """Signs of the entries that enter activations, by example."""

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples = examples
        self.codes: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = record(func)
        if known.kind == "activation" and args and isinstance(args[0], Tensor):
            entered = args[0].detach()
            if entered.ndim and len(entered) % self.examples == 0:
                self.codes.append((entered > 0).reshape(self.examples, -1))
        return func(*args, **(kwargs or {}))


def naswot(problem: Problem, x: Tensor) -> float:
    """log det (K + I), K the number of activations at which two examples have the same sign (Mellor et al., 2021).

    The identity keeps it finite where two examples have the same signs throughout; NaN without any activation.
    """
    with torch.no_grad(), _Codes(len(x)) as seen, Tape():
        problem(x)
    if not seen.codes:
        return float("nan")
    signs = torch.cat(seen.codes, 1).double() * 2 - 1
    alike = (signs @ signs.T + signs.shape[1]) / 2 + torch.eye(len(x), dtype=signs.dtype)
    return float(torch.linalg.slogdet(alike).logabsdet)


def grad_norm(problem: Problem, x: Tensor, labels: Tensor | None, generator: torch.Generator) -> float:
    """Sum over tensors of |dL/d theta|, L the mean cross entropy of the labels (Abdelfattah et al., 2021).

    Without labels random signs stand for the derivatives of L with respect to the outputs.
    """
    params = [p.requires_grad_() for p in problem.params.values()]  # of a private copy
    y = problem(x)
    if labels is None:
        signs = torch.randint(0, 2, y.shape, generator=generator) * 2 - 1
        loss = (y * signs.to(y)).sum() / len(y)
    else:
        loss = nn.functional.cross_entropy(y, labels.to(y.device))
    found = torch.autograd.grad(loss, params, materialize_grads=True, allow_unused=True)
    return float(sum(slope.norm() for slope in found))


def ntk_condition(problem: Problem, x: Tensor) -> float:
    """Largest over smallest eigenvalue of the neural tangent kernel of the summed outputs (Chen et al., 2021)."""

    def summed(returned: Any) -> Tensor:
        chosen = problem.select(returned)
        return chosen.reshape(len(chosen), -1).sum(1, keepdim=True)

    kernel = output_gram(problem.model, x.double(), summed, params=list(problem.params)).reshape(len(x), len(x))
    found = torch.linalg.eigvalsh(kernel)
    return float(found[-1] / found[0]) if found[0] > SINGULAR * found[-1] else float("inf")
