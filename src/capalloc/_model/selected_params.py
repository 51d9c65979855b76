"""The parameters whose capacity is asked for, found by any of their names, or patterns of them, and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from capalloc._model.complex_params import as_pairs, count_reals
from capalloc._model.containers import unregistered
from capalloc._runtime.arguments import blamed
from capalloc.results.view import named as listed

ParamSelection = Literal["all"] | Sequence[str] | Callable[[str], bool] | None


def select_params(model: nn.Module, params: ParamSelection) -> tuple[dict[str, nn.Parameter], tuple[str, ...]]:
    """The parameters named, or for which the predicate holds, and a note on those that are frozen and left out."""
    named = dict(model.named_parameters())
    if apart := list(unregistered(model)):
        said = (
            f"parameters kept in lists, tuples or dicts are not the model's and count for nothing: {listed(apart)}; "
            "torch's ModuleList, ModuleDict, ParameterList and ParameterDict make them its own"
        )
    notes: tuple[str, ...] = (said,) if apart else ()
    if not named:
        raise ValueError("; ".join(["model has no parameters, so there is no capacity to allocate", *notes]))
    if params is None:
        selected = {name: p for name, p in named.items() if p.requires_grad} or named
        frozen = count_reals(p for name, p in named.items() if name not in selected)
        if frozen:
            all_, which = count_reals(named.values()), listed([name for name in named if name not in selected])
            held = f"{frozen} of {all_} parameters are frozen (requires_grad=False) and fixed: {which}"
            notes += (f"{held}; params='all' counts them",)
    elif params == "all":
        selected = named
    elif callable(params):
        with blamed("params"):
            selected = {name: p for name, p in named.items() if params(name)}
    elif isinstance(params, str):
        raise TypeError(f"params must be 'all', a sequence of names or patterns, or a predicate; write [{params!r}]")
    else:
        selected = _named(model, named, list(params))
    if not selected:
        raise ValueError(f"params selects no parameter; the model has {listed(named)}")
    for name, p in named.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name!r} has no shape yet; run the lazy model on a batch once")
        if not p.is_meta and p.numel() and not all(math.isfinite(end) for end in as_pairs(p).aminmax()):
            raise ValueError(f"parameter {name!r} holds NaN or inf; capacity needs a finite model")
    if hooked := [name for name, p in selected.items() if p._backward_hooks]:  # such as those that hold a part fixed
        notes += (
            f"hooks on the gradients of parameters are left out, and what they hold fixed counts: {listed(hooked)}",
        )
    return selected, notes


def _named(model: nn.Module, named: Mapping[str, nn.Parameter], names: list[Any]) -> dict[str, nn.Parameter]:
    """Find parameters by any of their names, of which a tied one has several, or by patterns such as "head.*"."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"params must hold names of parameters, got {type(name).__name__}; write "
                "[name for name, p in model.named_parameters() if ...]"
            )
    by_any = dict(model.named_parameters(remove_duplicate=False))
    fitting = {name: [name] if name in by_any else [n for n in by_any if fnmatchcase(n, name)] for name in names}
    unknown = [name for name in names if not fitting[name]]
    if unknown:
        raise ValueError(f"params names {unknown}, which the model lacks; it has {listed(named)}")
    wanted = {id(by_any[name]) for found in fitting.values() for name in found}
    return {name: p for name, p in named.items() if id(p) in wanted}
