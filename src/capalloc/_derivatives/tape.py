"""One reading of a model's calls while it runs: which parameter goes where, and a zero added to each output.

A `TorchFunctionMode` sees every torch call with its arguments. Parameters are told apart by identity, so the
model is neither rewritten nor hooked. A parameter is *tapped at its calls* if every call that uses it has a rule
in `affine`; otherwise it is *opaque*, tapped at itself, which is right for any use and costs more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from capalloc._derivatives.affine import AffineRule
from capalloc._derivatives.recognise import recognise
from capalloc._derivatives.sweeps import AffineSweep
from capalloc._model.problem import Problem
from capalloc._model.replaced_params import call_with
from capalloc._operators.decompositions import RECURRENT


def _unrolled(name: str) -> Callable[..., Any]:
    """Make a recurrent layer of its steps; one of packed sequences, whose batches shrink, stays as it is."""
    fused, unrolled = getattr(torch, name), RECURRENT[name]
    return lambda *args: (unrolled if isinstance(args[3], bool) else fused)(*args)


#: Calls whose second derivative autograd lacks, in operations that have one.
TWICE: dict[Any, Callable[..., Tensor]] = {
    F.hardsigmoid: lambda input, inplace=False: (input + 3).clamp(0, 6) / 6,
}
#: Calls whose derivatives fail in forward mode or in batches, in elementary operations.
ELEMENTARY: dict[Any, Callable[..., Tensor]] = {
    F.silu: lambda input, inplace=False: input * input.sigmoid(),
    F.prelu: lambda input, weight: (
        input.clamp(min=0) + weight.reshape(-1, *(1,) * (input.ndim - 2)) * input.clamp(max=0)
    ),
    torch.view_as_complex: lambda input: torch.complex(*input.unbind(-1)),  # of any strides
    **TWICE,
    **{getattr(torch, name): _unrolled(name) for name in RECURRENT},
}


#: Products that take sparse matrices and then lack derivatives, and what they are of dense ones where not themselves.
OF_SPARSE: dict[Any, Callable[..., Tensor] | None] = {
    torch.sparse.mm: torch.mm,
    torch.sparse.addmm: torch.addmm,
    torch.spmm: torch.mm,
    **dict.fromkeys((torch.mm, Tensor.mm, torch.addmm, Tensor.addmm, torch.matmul, Tensor.matmul, Tensor.__matmul__)),
}


def _dense(matrix: Tensor) -> Tensor:
    return matrix if matrix.layout is torch.strided else matrix.to_dense()


class Twice(TorchFunctionMode):
    """Runs a model in operations that can be differentiated twice."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call of torch."""
        return TWICE.get(func, func)(*args, **(kwargs or {}))


@dataclass(frozen=True)
class TappedCall:
    """A call with a rule: its parameters by name, what entered it, and its output's shape."""

    weight: str | None
    bias: str | None
    rule: AffineRule
    input: Tensor
    shape: tuple[int, ...]


class Tape(TorchFunctionMode):
    """Runs a model in elementary operations, and notes the calls that use parameters of `names`.

    `zeros[k]` is added to the output of the k-th call with a rule, so that its derivative is the call's sensitivity;
    or outputs are `marked`: their places in the graph are kept, for autograd to find them. What enters is `copied`, as
    the model may overwrite it later, or is seen to be overwritten.
    """

    def __init__(
        self,
        names: Mapping[int, str] | None = None,
        zeros: Sequence[Tensor] | None = None,
        *,
        marked: bool = False,
        copied: bool = True,
    ) -> None:
        super().__init__()
        self.names = names or {}  # id of a parameter -> its name
        self.zeros = zeros
        self.marked, self.copied = marked, copied
        self.outputs: list[GradientEdge] = []  # of the calls, where marked
        self.calls: list[TappedCall] = []
        self.versions: list[int] = []  # of what entered them
        self.seen: set[str] = set()
        self.opaque: dict[str, str] = {}  # parameter -> a function without a rule that it enters
        self.elements = 0  # in all tensors that calls return, counted where there are names

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in OF_SPARSE:
            func = OF_SPARSE[func] or func
            args, kwargs = pytree.tree_map_only(Tensor, _dense, (args, kwargs))
        call = recognise(func, args, kwargs)
        if call is None:
            out = ELEMENTARY.get(func, func)(*args, **kwargs)
        elif self.marked and call.weight is not None and not call.weight.requires_grad:
            out = AffineSweep.apply(call.rule, call.input, call.weight, call.bias)
        else:
            out = call.output()
        if not self.names:
            return out
        sizes = [t.numel() for t in tensors(out)]
        if not sizes:  # a mere look at a shape or a flag
            return out
        self.elements += sum(sizes)
        used = {self.names[id(t)] for t in tensors((args, kwargs)) if id(t) in self.names}
        weight, bias = (None, None) if call is None else (self.names.get(id(p)) for p in (call.weight, call.bias))
        self.seen |= used
        for name in used - {weight, bias}:
            self.opaque[name] = getattr(func, "__name__", str(func))
        if call is None or (weight is None and bias is None) or torch.is_inference_mode_enabled():
            return out
        zero = None if self.zeros is None else self.zeros[len(self.calls)]
        entered = call.input.clone() if self.copied else call.input
        self.calls.append(TappedCall(weight, bias, call.rule, entered, tuple(out.shape)))
        self.versions.append(entered._version)
        if self.marked:
            self.outputs.append(get_gradient_edge(out.requires_grad_()))
            return out.clone() if out.is_leaf else out  # no model may overwrite a leaf
        return out if zero is None else out + zero

    @property
    def overwritten(self) -> bool:
        """True where something that entered a call is no longer what it was."""
        return any(call.input._version != v for call, v in zip(self.calls, self.versions, strict=True))


@dataclass(frozen=True)
class TappedModel:
    """Constraint outputs of one example as a function of (input, opaque parameters, zeros at the calls)."""

    problem: Problem
    opaque: tuple[str, ...]
    calls: tuple[TappedCall, ...]
    elements: int = 0  # that one forward pass of an example makes, the factor of each call's input included

    def values(self) -> tuple[Tensor, ...]:
        """The opaque parameters' own values."""
        return tuple(self.problem.params[name].detach() for name in self.opaque)

    def zeros(self) -> tuple[Tensor, ...]:
        """Nothing added at any call."""
        return tuple(self.problem.probe.new_zeros(call.shape) for call in self.calls)

    def run(
        self, x: Tensor, values: tuple[Tensor, ...], zeros: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs, (outputs,), and what entered each call."""
        given = dict(zip(self.opaque, values, strict=True))
        with Tape(names_of(self.problem, self.opaque), zeros) as tape:
            out = outputs_with(self.problem, given, x[None])[0]
        return out, tuple(call.input for call in tape.calls)


def tap_model(problem: Problem, opaque: Collection[str] = ()) -> TappedModel:
    """Run one example and choose where to tap; parameters in `opaque` are tapped at themselves anyway."""
    with Tape(names_of(problem)) as scan:
        problem(problem.probe)
    beyond = {*opaque, *scan.opaque, *(set(problem.params) - scan.seen)}
    tape = scan
    if beyond:
        with Tape(names_of(problem, beyond)) as tape:
            problem(problem.probe)
    factors = sum(call.input.numel() * call.rule.overlap for call in tape.calls)
    ordered = tuple(name for name in problem.params if name in beyond)
    return TappedModel(problem, ordered, tuple(tape.calls), scan.elements + factors)


def names_of(problem: Problem, beyond: Collection[str] = ()) -> dict[int, str]:
    """Id -> name of the parameters that are not `beyond`."""
    return {id(p): name for name, p in problem.params.items() if name not in beyond}


def outputs_with(problem: Problem, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Constraint outputs, (examples, outputs), with some parameters replaced by `values`."""
    return problem.select(call_with(problem.model, values, (x,))).reshape(len(x), -1)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested arguments."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from tensors(tuple(tree.values()))
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors(item)
