"""Reading a model's calls while it runs: which parameter goes where, and a zero added to each output.

A `TorchFunctionMode` sees every torch call with its arguments. Parameters are told apart by identity, so the
model is neither rewritten nor hooked. A parameter is *tapped at its calls* if every call that uses it has a rule
in `calls`; otherwise it is *opaque*, tapped at itself, which is right for any use and costs more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from capalloc._derivatives.affine import Bilinear, Call, recognise
from capalloc._model.problem import Problem

Names = Mapping[int, str]  # id of a parameter -> its name


class Scan(TorchFunctionMode):
    """Sorts parameters: `seen` in some call, `opaque` in a call without a rule."""

    def __init__(self, names: Names) -> None:
        super().__init__()
        self.names = names
        self.seen: set[str] = set()
        self.opaque: set[str] = set()
        self.elements = 0  # in all tensors that the calls return

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = {self.names[id(t)] for t in tensors((args, kwargs)) if id(t) in self.names}
        call = recognise(func, args, kwargs) if found else None
        out = func(*args, **kwargs)
        sizes = [t.numel() for t in tensors(out)]
        self.elements += sum(sizes)
        if found and sizes:  # not a mere look at a shape or a flag
            self.seen |= found
            self.opaque |= found - (set() if call is None else own_names(call, self.names))
        return out


class Tap(TorchFunctionMode):
    """Adds `zeros[k]` to the output of the k-th call with a rule that uses a parameter of `names`."""

    def __init__(self, names: Names, zeros: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.names = names
        self.zeros = zeros
        self.entered: list[Tensor] = []
        self.sites: list[Site] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = recognise(func, args, kwargs)
        if call is None or not own_names(call, self.names):
            return func(*args, **kwargs)
        zeros = None if self.zeros is None else self.zeros[len(self.entered)]
        self.entered.append(call.input.clone())  # the model may overwrite it later
        out = func(*args, **kwargs)
        self.sites.append(site(call, self.names, out.shape))
        return out if zeros is None else out + zeros


@dataclass(frozen=True)
class Site:
    """What is kept of a tapped call: its parameters by name, their gradients, and its output's shape."""

    weight: str | None
    bias: str | None
    weight_gradient: Bilinear
    bias_gradient: Callable[[Tensor], Tensor]
    shape: torch.Size
    elements: int  # in what the weight's gradient reads: the input, once per offset of a kernel


@dataclass(frozen=True)
class TappedModel:
    """Constraint outputs of one example as a function of (input, opaque parameters, zeros at the sites)."""

    problem: Problem
    opaque: tuple[str, ...]
    sites: tuple[Site, ...]
    elements: int = 0  # that one forward pass of an example makes, each site's patches included

    @property
    def names(self) -> dict[int, str]:
        """Id -> name of the parameters tapped at their calls."""
        return {id(p): name for name, p in self.problem.params.items() if name not in self.opaque}

    def values(self) -> tuple[Tensor, ...]:
        """The opaque parameters' own values."""
        return tuple(self.problem.params[name].detach() for name in self.opaque)

    def zeros(self) -> tuple[Tensor, ...]:
        """Nothing added at any site."""
        return tuple(self.problem.probe.new_zeros(s.shape) for s in self.sites)

    def __call__(
        self, x: Tensor, values: tuple[Tensor, ...], zeros: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs, (outputs,), and what entered each site."""
        tap = Tap(self.names, zeros)
        with tap:
            out = self._run(x, values)
        return out, tuple(tap.entered)

    def _run(self, x: Tensor, values: tuple[Tensor, ...]) -> Tensor:
        given = dict(zip(self.opaque, values, strict=True))
        return self.problem.select(functional_call(self.problem.model, given, (x[None],))).reshape(-1)


def tap_model(problem: Problem, opaque: Collection[str] = ()) -> TappedModel:
    """Run one example and choose where to tap; parameters in `opaque` are tapped at themselves anyway."""
    scan = Scan({id(p): name for name, p in problem.params.items()})
    with scan:
        problem(problem.probe)
    beyond = set(opaque) | scan.opaque | (set(problem.params) - scan.seen)
    kept = {id(p): name for name, p in problem.params.items() if name not in beyond}
    tap = Tap(kept)
    with tap:
        problem(problem.probe)
    ordered = tuple(name for name in problem.params if name in beyond)
    patches = sum(s.elements for s in tap.sites)
    return TappedModel(problem, ordered, tuple(tap.sites), scan.elements + patches)


def site(call: Call, names: Names, shape: torch.Size) -> Site:
    """Forget a call's tensors."""
    weight, bias = names.get(id(call.weight)), names.get(id(call.bias))
    offsets = 1 if call.weight is None else math.prod(call.weight.shape[2:])
    elements = call.input.numel() * offsets
    return Site(weight, bias, call.weight_gradient, call.bias_gradient, shape, elements)


def own_names(call: Call, names: Names) -> set[str]:
    """Names of the parameters that a call uses as its weight or bias."""
    return {names[id(t)] for t in (call.weight, call.bias) if id(t) in names}


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested arguments."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from tensors(tuple(tree.values()))
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors(item)
