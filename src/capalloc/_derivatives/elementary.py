"""Normalisations and activations written out in elementary operations.

Their fused kernels have wrong second derivatives under batched transforms (the weight of a layer norm in torch
2.13), or none (SiLU, hardsigmoid); what they are made of has right ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Elementary(TorchFunctionMode):
    """Runs the model with its normalisations and such activations written out."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return WRITTEN_OUT.get(func, func)(*args, **(kwargs or {}))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Frozen statistics only; with those of the batch the examples interact, and the kernel runs as it is."""
    if training or running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt()
    return _affine((input - _channels(running_mean, input)) * _channels(scale, input), weight, bias)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Each example normalised over its last axes."""
    out = _normalised(input, tuple(range(-len(normalized_shape), 0)), eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Each example normalised over groups of channels."""
    grouped = _normalised(input.reshape(len(input), num_groups, -1), (-1,), eps)
    return _affine(grouped.reshape(input.shape), weight, bias)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Each channel of each example normalised; with running statistics the kernel runs as it is."""
    if running_mean is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return _affine(_normalised(input, tuple(range(2, input.ndim)), eps), weight, bias)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x sigmoid(x)."""
    return input * input.sigmoid()


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """A clipped line through 1/2."""
    return (input + 3).clamp(0, 6) / 6


WRITTEN_OUT: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
    F.silu: silu,
    F.hardsigmoid: hardsigmoid,
}


def _normalised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * _channels(weight, x)
    return x if bias is None else x + _channels(bias, x)


def _channels(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 2))
