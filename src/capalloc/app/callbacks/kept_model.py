"""The model of a training, copied and captured once: what every log after the first takes in its place."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from capalloc._graph.capture import export_once
from capalloc._model.complex_params import as_held
from capalloc._model.problem import Problem, prepare

#: Settings of a module that a forward pass may read, by type.
PLAIN_VALUES = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)
#: What `torch.nn.Module` keeps for itself, but for its hooks on forward, and Lightning's note of where it is.
OF_MODULES = vars(nn.Module()).keys() - {"_forward_hooks", "_forward_pre_hooks"} | {"_current_fx_name"}


@dataclass
class KeptModel:
    """A copy of the model with its graph; its tensors take the model's values at every call.

    It is made anew where anything but these values is another: a setting of a module, what requires gradients, hooks.
    """

    problem: Problem | None = None
    made_of: tuple[Any, ...] = ()

    def __call__(self, model: nn.Module, inputs: Tensor | Iterable[Any]) -> Problem:
        """Give the checked problem of the model as it is now."""
        now = _described(model)
        if self.problem is None or now != self.made_of:
            problem = prepare(model, inputs, None, None, traced=True, by_input=True)
            self.problem, self.made_of = _sharing(export_once(problem)), now
        else:
            with torch.no_grad():
                for own, given in zip(_tensors(self.problem.model), _tensors(model), strict=True):
                    own[1].copy_(as_held(given[1], own[1]))
        return replace(self.problem, source=model)


def _sharing(problem: Problem) -> Problem:
    """Have the program read the tensors of the copy, which change."""
    if problem.program is not None:
        own = dict(_tensors(problem.model))
        for held in (problem.program.state_dict, problem.program.constants):
            held.update({name: own[name].detach() for name in held if name in own})
    return problem


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _described(model: nn.Module) -> tuple[Any, ...]:
    """All that a graph of the model may hold but the values of its parameters and buffers."""
    first: dict[int, int] = {}  # of the names of one tensor
    tensors = [
        (name, t.shape, t.dtype, t.device, t.requires_grad, first.setdefault(id(t), k))
        for k, (name, t) in enumerate(_tensors(model))
    ]
    return tensors, [(name, type(module), _settings(module)) for name, module in model.named_modules()]


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """Plain values by name, and which tensors and hooks there are, by what they are and how often they were written."""
    found: list[tuple[str, Any]] = []
    for name, value in vars(module).items():
        if name in OF_MODULES:
            continue
        leaves = pytree.tree_leaves(value)
        if isinstance(value, Tensor):
            found.append((name, (id(value), value._version)))
        elif callable(value) or name.startswith("_forward"):
            found.append((name, [id(leaf) for leaf in leaves]))
        elif all(isinstance(leaf, PLAIN_VALUES) for leaf in leaves):
            found.append((name, repr(value)))
    return found
