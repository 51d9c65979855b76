"""Products with the constraints of piecewise-linear networks, layer by layer: about four convolutions for each layer.

Where gates do not move with the input, sensitivities delta_o of the outputs to what leaves a layer do not either, and
with h what enters the layer a row is delta_o (x) (D_v + alpha) h (docs/theory.md, section 2). So C' r is one sweep of
input directions forward and a product of two factors at every layer, C w its transpose: dW' delta_o at every layer,
and one sweep backward. The sensitivities are made once for a batch and serve any number of vectors.

Index convention: k vectors, o outputs, e examples. Rows are (k, o, e, s), parameter vectors (k, params); factors at a
layer are (k, o e, *own).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp, vjp, vmap
from torch.overrides import TorchFunctionMode

from capalloc._derivatives.layerwise import Replay
from capalloc._derivatives.metric import InputMetric
from capalloc._derivatives.tape import tensors
from capalloc._derivatives.vectors import directions_of, slots_of
from capalloc._model.problem import Problem

#: their stubs promise three results, which hold with has_aux only
_jvp: Callable[..., Any] = jvp
_vjp: Callable[..., Any] = vjp


@dataclass(frozen=True)
class Layer:
    """A call out = weight (.) input + bias: what enters it and leaves it, and its two products.

    `to_input` takes (k, *weight) and sensitivities (n, *out) to (k, n, *in), `to_weight` (k, n, *in) and (n, *out) to
    (k, *weight); `to_bias` sensitivities (n, *out) to (n, *bias).
    """

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    output: Callable[[], Tensor]
    to_input: Callable[[Tensor, Tensor], Tensor]
    to_weight: Callable[[Tensor, Tensor], Tensor]
    to_bias: Callable[[Tensor], Tensor]


Rule = Callable[..., Layer | None]
RULES: dict[Any, Rule] = {}


def register(*functions: Any) -> Callable[[Rule], Rule]:
    """Make the decorated function read the arguments of `functions`; None from it means that it cannot."""

    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(functions, rule))
        return rule

    return add


@register(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Layer:
    """out = input weight' + bias, over any leading axes."""
    return Layer(
        input,
        weight,
        bias,
        lambda: F.linear(input, weight, bias),
        lambda w, d: torch.einsum("n...o,koi->kn...i", d, w),
        lambda h, d: torch.einsum("n...o,kn...i->koi", d, h),
        lambda d: d.flatten(1, -2).sum(1) if d.ndim > 2 else d,
    )


@register(torch.conv1d, torch.conv2d, torch.conv3d)
def conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Layer | None:
    """Cross-correlation, with padding in numbers."""
    dims = weight.ndim - 2
    if input.ndim != weight.ndim or isinstance(padding, str):
        return None
    stride, padding, dilation = ([v] * dims if isinstance(v, int) else list(v) for v in (stride, padding, dilation))

    def transposed(d: Tensor, h: Tensor, w: Tensor, groups: int, wanted: list[bool]) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            d, h, w, None, stride, padding, dilation, False, [0] * dims, groups, wanted
        )
        return found

    def to_input(w: Tensor, d: Tensor) -> Tensor:
        h = input.new_empty(()).expand(len(d), *input.shape[1:])
        if groups > 1:
            return torch.stack([transposed(d, h, one, groups, [True, False, False])[0] for one in w])
        side = w.transpose(0, 1).flatten(1, 2)  # all vectors' input channels side by side
        wide = h.new_empty(()).expand(len(d), side.shape[1], *h.shape[2:])
        back = transposed(d, wide, side, 1, [True, False, False])[0]
        turned: Tensor = back.unflatten(1, (len(w), -1)).transpose(0, 1)
        return turned

    def to_weight(h: Tensor, d: Tensor) -> Tensor:
        return torch.stack([transposed(d, one, weight, groups, [False, True, False])[1] for one in h])

    return Layer(
        input,
        weight,
        bias,
        lambda: torch.convolution(input, weight, bias, stride, padding, dilation, False, [0] * dims, groups),
        to_input,
        to_weight,
        lambda d: d.flatten(2).sum(2),
    )


@register(F.batch_norm)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Layer | None:
    """Scale and shift of channels normalised by frozen statistics."""
    if training or running_mean is None or running_var is None:
        return None
    shape = (-1, *(1,) * (input.ndim - 2))
    scale = (running_var + eps).rsqrt().view(shape)
    normalised = (input - running_mean.view(shape)) * scale

    def output() -> Tensor:
        out = normalised if weight is None else normalised * weight.view(shape)
        return out if bias is None else out + bias.view(shape)

    return Layer(
        normalised,
        weight,
        bias,
        output,
        lambda w, d: d * w.view(len(w), 1, *shape),
        lambda h, d: (h * d).transpose(1, 2).flatten(2).sum(2),
        lambda d: d.flatten(2).sum(2) if d.ndim > 2 else d,
    )


@dataclass
class Record(TorchFunctionMode):
    """Notes the layers of the selected parameters while the model runs, with zeros added to what leaves them."""

    names: Mapping[int, str]
    zeros: tuple[Tensor, ...] | None = None
    layers: list[Layer] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        used = {id(t) for t in tensors((args, kwargs)) if id(t) in self.names}
        if not used:
            return func(*args, **kwargs)
        layer = RULES[func](*args, **kwargs) if func in RULES else None
        if layer is None or not used <= {id(layer.weight), id(layer.bias)}:
            out = func(*args, **kwargs)
            if any(True for _ in tensors(out)):  # not a mere look at a shape or a flag
                raise NotImplementedError(
                    f"{', '.join(sorted(self.names[k] for k in used))} enters {getattr(func, '__name__', func)}, for "
                    "which there is no rule"
                )
            return out
        out = layer.output()
        if self.zeros is not None:
            out = out + self.zeros[len(self.layers)]
        self.layers.append(layer)
        self.left.append(out)
        return out.clone()  # the model may overwrite it


@dataclass(frozen=True)
class Constraints:
    """Those of one batch, ready for products."""

    problem: Problem
    space: InputMetric
    x: Tensor
    replay: Replay
    layers: tuple[Layer, ...]  # with their inputs h
    deltas: tuple[Tensor, ...]  # sensitivities to every layer's output: (o, e, *out)
    pull: Callable[..., tuple[Tensor, ...]]  # cotangents of every h -> of x

    def apply(self, w: Tensor) -> Tensor:
        """C w: (k, params) to (k, o, e, s)."""
        parts, num_outputs = self._split(w), len(self.deltas[0])
        value: Tensor = w.new_zeros(len(w), num_outputs, len(self.x))
        back = []
        for layer, delta in zip(self.layers, self.deltas, strict=True):
            weight, bias = (parts.get(id(p)) for p in (layer.weight, layer.bias))
            if weight is None:
                back.append(layer.input.new_zeros(()).expand(len(w), num_outputs, *layer.input.shape))
            else:
                turned = layer.to_input(weight, delta.flatten(0, 1)).unflatten(1, delta.shape[:2])
                value = value + (turned * layer.input).flatten(3).sum(3)
                back.append(turned)
            if bias is not None:
                summed = layer.to_bias(delta.flatten(0, 1)).unflatten(0, delta.shape[:2])
                value = value + torch.einsum("oec,kc->koe", summed, bias)
        slope = vmap(vmap(lambda c: self.pull(c)[0]))(tuple(back))
        return torch.stack([slots_of(self.space, s, v, self.x) for s, v in zip(slope, value, strict=True)])

    def adjoint(self, r: Tensor) -> Tensor:
        """C' r: (k, o, e, s) to (k, params)."""
        v, constant = directions_of(self.space, r, self.x)
        with self.replay():
            moved = vmap(vmap(lambda v: _jvp(partial(enter, self.problem), (self.x,), (v,))[1]))(v)
        total: dict[int, Tensor] = {}
        for layer, delta, dh in zip(self.layers, self.deltas, moved, strict=True):
            weights = constant.reshape(*constant.shape, *(1,) * (dh.ndim - 3))
            if layer.weight is not None:
                along = torch.addcmul(dh, layer.input, weights).flatten(1, 2)
                add(total, id(layer.weight), layer.to_weight(along, delta.flatten(0, 1)))
            if layer.bias is not None:
                summed = layer.to_bias(delta.flatten(0, 1)).unflatten(0, delta.shape[:2])
                add(total, id(layer.bias), torch.einsum("oec,koe->kc", summed, constant))
        zeros = [r.new_zeros(len(r), p.numel()) for p in self.problem.params.values()]
        parts = [total.get(id(p), z).flatten(1) for p, z in zip(self.problem.params.values(), zeros, strict=True)]
        return torch.cat(parts, 1)

    def _split(self, w: Tensor) -> dict[int, Tensor]:
        """Parameter vectors (k, params) as tensors (k, *parameter) by the parameter's identity."""
        params = list(self.problem.params.values())
        parts = w.split([p.numel() for p in params], 1)
        return {id(p): part.unflatten(1, p.shape or (1,)) for p, part in zip(params, parts, strict=True)}


@dataclass(frozen=True)
class PiecewiseOperator:
    """For models whose gates do not move with the input, made of linear layers, convolutions and frozen batch norms."""

    problem: Problem
    space: InputMetric
    name: str = "piecewise"

    def at(self, x: Tensor, units: Tensor, replay: Replay) -> Constraints:
        """The constraints of a batch."""
        with replay():
            record = recorded(self.problem, x)[1]
        zeros = tuple(torch.zeros_like(out) for out in record.left)
        with replay():
            back = _vjp(lambda *z: recorded(self.problem, x, z)[0], *zeros)[1]
        with replay():
            pull = _vjp(partial(enter, self.problem), x)[1]
        return Constraints(self.problem, self.space, x, replay, tuple(record.layers), vmap(back)(units), pull)

    def apply(self, w: Tensor, x: Tensor, units: Tensor, replay: Replay) -> Tensor:
        """C w."""
        return self.at(x, units, replay).apply(w)

    def adjoint(self, r: Tensor, x: Tensor, units: Tensor, replay: Replay) -> Tensor:
        """C' r."""
        return self.at(x, units, replay).adjoint(r)


def recorded(problem: Problem, x: Tensor, zeros: tuple[Tensor, ...] | None = None) -> tuple[Tensor, Record]:
    """Outputs (e, outputs) and the layers of a run."""
    record = Record({id(p): name for name, p in problem.params.items()}, zeros)
    with record:
        returned = problem.model(x)
    return problem.select(returned).reshape(len(x), -1), record


def enter(problem: Problem, x: Tensor) -> tuple[Tensor, ...]:
    """What enters every layer."""
    return tuple(layer.input for layer in recorded(problem, x)[1].layers)


def add(total: dict[int, Tensor], key: int, term: Tensor) -> None:
    """Uses of one parameter sum."""
    total[key] = total[key] + term if key in total else term
