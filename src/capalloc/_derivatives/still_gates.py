"""Gates that cannot move with the input where none is crossed: models of calls that are linear piece by piece."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from capalloc._derivatives.recognise import recognise
from capalloc._derivatives.rows import Replay
from capalloc._derivatives.tape import tensors
from capalloc._model.problem import Problem

#: Linear where no maximum changes hands and no kink is crossed, in all tensors that they take together.
PIECEWISE_LINEAR: frozenset[Any] = frozenset(
    {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.leaky_relu, F.dropout}
    | {F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d}
    | {F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d}
    | {F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.interpolate, F.pad, F.pixel_shuffle}
    | {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.adaptive_avg_pool1d}
    | {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.sub, Tensor.__sub__}
    | {torch.cat, torch.stack, torch.flatten, torch.reshape, torch.chunk, torch.split, torch.sum, torch.mean}
    | {Tensor.flatten, Tensor.reshape, Tensor.view, Tensor.permute, Tensor.transpose, Tensor.squeeze, Tensor.unsqueeze}
    | {Tensor.chunk, Tensor.split, Tensor.sum, Tensor.mean, Tensor.contiguous, Tensor.clone}
)
#: Affine in their parameters, and linear in what else enters.
AFFINE: frozenset[Any] = frozenset(
    {F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.batch_norm, torch.mul, Tensor.mul, Tensor.__mul__}
)
#: Questions about a tensor's shape, as those of its attributes are.
SHAPES: frozenset[Any] = frozenset({Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point})


def gates_stay(problem: Problem, x: Tensor, replay: Replay) -> bool:
    """Return True if a run over `x` makes calls alone whose gates stay, whatever the example; False is no answer."""
    seen = _Calls()
    with replay(), seen:
        problem.model(x)
    return seen.all_stay


class _Calls(TorchFunctionMode):
    """Notes whether there is a call beyond the known ones."""

    all_stay = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call of torch."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.all_stay = self.all_stay and _stays(func, args, kwargs, out)
        return out


def _stays(func: Any, args: Any, kwargs: Any, out: Any) -> bool:
    if not any(True for _ in tensors(out)):  # values of a tensor may decide what comes next, its shape does not
        return bool(func in SHAPES or getattr(func, "__name__", "") == "__get__")
    if func in PIECEWISE_LINEAR:
        return True
    call = recognise(func, args, kwargs) if func in AFFINE else None
    return call is not None and all(p is None or isinstance(p, nn.Parameter) for p in (call.weight, call.bias))
