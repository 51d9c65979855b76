"""The design that comes near to a network: its stack of convolutions, as far as settings of a design say it."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from capalloc._decoupling.activations import NAMED_ACTIVATIONS
from capalloc._depth.balance_depth import scaling
from capalloc._energy.rules.registration import UnsupportedOperatorError
from capalloc._runtime.arguments import checked
from capalloc.app.design.stack import ACTIVATIONS, LIMITS, SIZES, Design

CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d)
NORMS_BY_WORD: Final = {
    "batch": (nn.BatchNorm1d, nn.BatchNorm2d),
    "layer": (nn.LayerNorm,),
    "group": (nn.GroupNorm,),
    "instance": (nn.InstanceNorm1d, nn.InstanceNorm2d),
}
POOLS_BY_WORD: Final = {"average": (nn.AvgPool1d, nn.AvgPool2d), "max": (nn.MaxPool1d, nn.MaxPool2d)}


@dataclass(frozen=True)
class Called:
    """A module that a network called, and what it wrote."""

    module: Any
    output: Tensor

    @property
    def size(self) -> int:
        """Positions on the last axis of what it wrote."""
        return self.output.shape[-1]


@checked
def nearest(model: nn.Module, x: Tensor) -> Design:
    """Find the design that comes near to a network, to start from: kernels, depth, widths and strides of its stack.

    What most of its convolutions have counts: a design has one kernel and one width by stage. Functions in `forward`
    that are no modules are not seen.

    Args:
        model: any module with convolutions of one or two axes; it is left as it is.
        x: examples (examples, channels, *positions) for it.

    Raises:
        ValueError: it calls no stack of convolutions, or does not take such examples.

    """
    if not x.is_floating_point() or not x.ndim or not len(x):
        raise ValueError(
            f"x must hold at least one example of floating-point numbers, got {x.dtype} of {tuple(x.shape)}"
        )
    probe = x[:1].clone().requires_grad_()
    called = _called(model, probe)
    convolutions = [c for c in called if isinstance(c.module, CONVOLUTIONS)]
    body = [c for c in convolutions[1:] if max(c.module.kernel_size) > 1]
    if x.ndim not in (3, 4) or not body:
        raise ValueError("model must call at least two convolutions of one or two axes, to be near to a design")
    ndim, stem = x.ndim - 2, convolutions[0].module
    depthwise = sum(c.module.groups == c.module.in_channels > 1 for c in body) > len(body) / 2
    dilations = [max(c.module.dilation) for c in body]
    reduced = round(math.log2(max(1.0, x.shape[-1] / min(c.size for c in convolutions))))
    regained = round(math.log2(convolutions[-1].size / min(c.size for c in convolutions)))
    depth = _within("depth", len(body))
    strided = _within("strided", min(reduced, depth // 2 if regained > 0 and reduced else depth))
    widths = [c.module.out_channels for c in convolutions]
    reduction = _reduction(called[:-1])
    levels = strided - (reduction != "max")  # the stem takes no maxima
    growth = (max(widths) / widths[0]) ** (1 / levels) if reduced and levels else 1.0
    return Design(
        depth=depth,
        kernel=_within("kernel", Counter(max(c.module.kernel_size) for c in body).most_common(1)[0][0] // 2 * 2 + 1),
        dilation=_within("dilation", min(dilations)),
        cycle=_within("cycle", len(set(dilations))),
        stride=2 if reduced else 1,
        strided=strided,
        reduction=reduction,
        upsampled=min(strided, max(0, regained)) if reduced and depth >= 2 else 0,
        width=_within("width", stem.out_channels),
        growth=_within("growth", round(growth * 20) / 20),
        residual="constant" if _has_blocks(model, x) else "none",
        activation=_activation(called),
        norm=next(
            (name for name, kinds in NORMS_BY_WORD.items() if any(isinstance(c.module, kinds) for c in called)), "none"
        ),
        bias=stem.bias is not None,
        depthwise=depthwise,
        causal=ndim == 1 and _is_causal(probe, body[-1].output),
        in_channels=_within("in_channels", x.shape[1]),
        ndim=ndim,
        size=min(max(x.shape[-1], SIZES[ndim][0]), SIZES[ndim][1]),
    )


def _within(setting: str, value: Any) -> Any:
    low, high = LIMITS[setting]
    return type(value)(min(max(value, low), high))


def _called(model: nn.Module, probe: Tensor) -> list[Called]:
    """Leaf modules in the order in which they are called."""
    run = copy.deepcopy(model).eval()
    found: list[Called] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.append(Called(module, output))

    for module in run.modules():
        if not [*module.children()]:
            module.register_forward_hook(note)
    try:
        run(probe)
    except RuntimeError as error:
        raise ValueError(
            f"model does not accept inputs of shape (examples, {', '.join(map(str, probe.shape[1:]))}): {error}"
        ) from error
    return found


def _reduction(called: Sequence[Called]) -> str:
    """The way in which positions become fewer most often; pooling rather than strides where both do as often."""
    times = {name: sum(isinstance(c.module, kinds) for c in called) for name, kinds in POOLS_BY_WORD.items()}
    strided = (isinstance(c.module, CONVOLUTIONS) and max(c.module.stride) > 1 for c in called)
    times["stride"] = sum(strided)
    return max(times, key=lambda name: times[name]) if any(times.values()) else "stride"


def _activation(called: Sequence[Called]) -> str:
    names = {type(NAMED_ACTIVATIONS[name]()): name for name in ACTIVATIONS if name != "linear"}
    kinds = Counter(names[type(c.module)] for c in called if type(c.module) in names)
    return kinds.most_common(1)[0][0] if kinds else "relu"


def _has_blocks(model: nn.Module, x: Tensor) -> bool:
    try:
        return bool(scaling(model, x[:1]).data.sizes["block"])
    except (ValueError, TypeError, UnsupportedOperatorError):
        return False


def _is_causal(probe: Tensor, written: Tensor) -> bool:
    """Tell whether the middle of what a convolution writes reads nothing after the middle of the input."""
    middle, stride = written.shape[-1] // 2, max(1, round(probe.shape[-1] / written.shape[-1]))
    (gradient,) = torch.autograd.grad(written[..., middle].sum(), probe, retain_graph=True)
    reads = gradient.abs().sum((0, 1)).nonzero()
    return bool(len(reads)) and int(reads.max()) <= middle * stride
