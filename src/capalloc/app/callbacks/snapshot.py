"""Results of a model in the middle of its training, which goes on as if nothing had been asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from capalloc._decoupling.gate_decoupling import decoupling
from capalloc._depth.balance_depth import scaling
from capalloc._depth.compare_gradients import shattering
from capalloc._measure.measure import CapacityWarning, measure
from capalloc._model.private_copy import unwrapped
from capalloc._propagate.propagate import propagate
from capalloc.app.callbacks.kept_model import KeptModel
from capalloc.app.callbacks.summary import Summary, summarise
from capalloc.results.base import Result

Inputs: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
LoggedMethod: TypeAlias = str | Callable[[nn.Module, Inputs], Result]
OnError: TypeAlias = Literal["raise", "warn"]

#: Methods by name, each with the group of tags it is logged under. A log in the middle of training costs a few passes:
#: "propagate" is the Markov rule here, without its table.
LOGGED_METHODS: Final[dict[str, tuple[str, Callable[..., Result]]]] = {
    "propagate": ("capacity", partial(propagate, solver="markov", table=False)),
    "measure": ("capacity", measure),
    "decoupling": ("decoupling", decoupling),
    "scaling": ("scaling", scaling),
    "shattering": ("shattering", shattering),
}
#: Those of them that ask a graph, which is captured once.
ON_GRAPH: Final = ("propagate", "decoupling", "scaling", "shattering")


class Taken(NamedTuple):
    """A result, and what a log holds of it."""

    result: Result
    summary: Summary


@dataclass(frozen=True)
class Snapshot:
    """The methods computed at a step, by group of tags, and how an error there is answered."""

    methods: Mapping[str, Callable[[nn.Module, Inputs], Result]]
    on_error: OnError = "raise"
    on_graph: frozenset[str] = frozenset()  # the groups whose methods take the kept model
    kept: KeptModel = field(default_factory=KeptModel)

    @classmethod
    def of(cls, method: LoggedMethod | Mapping[str, LoggedMethod], on_error: OnError) -> Snapshot:
        """Take methods by name or as functions.

        Raises:
            ValueError: an unknown name, or another `on_error`.
            TypeError: a method that is neither a name nor a function.

        """
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error must be 'raise' or 'warn', got {on_error!r}")
        given = method if isinstance(method, Mapping) else {None: method}
        found = {}
        on_graph = set()
        for group, one in given.items():
            usual, function = _resolve(one)
            found[group or usual] = function
            if isinstance(one, str) and one in ON_GRAPH:
                on_graph.add(group or usual)
        return cls(found, on_error, frozenset(on_graph))

    def __call__(self, model: nn.Module, inputs: Inputs, step: int) -> dict[str, Taken]:
        """The results by group, each with its summary; none where an error became a warning.

        Raises:
            RuntimeError: a method failed; the message names the step.

        """
        own = unwrapped(model)
        try:
            with apart(own):
                kept: Any = self.kept(own, inputs) if self.on_graph else own
                found = {
                    group: method(kept if group in self.on_graph else own, inputs)
                    for group, method in self.methods.items()
                }
            return {group: Taken(result, summarise(result, group)) for group, result in found.items()}
        except Exception as error:
            said = f"capacity cannot be logged at step {step}: {type(error).__name__}: {error}"
            if self.on_error == "raise":
                raise RuntimeError(f"{said}; mend it, or go on without by on_error='warn'") from error
            warnings.warn(said, CapacityWarning, stacklevel=3)
            return {}


def check_inputs(inputs: Any) -> Inputs:
    """Examples that stay the same over the training.

    Raises:
        TypeError: they are neither a tensor nor a list of batches, nor a dict of several inputs.

    """
    if isinstance(inputs, Tensor):
        with torch.inference_mode(False):
            return inputs.detach().clone()
    if isinstance(inputs, Mapping) and inputs:
        return {str(name): check_inputs(value) for name, value in inputs.items()}
    if isinstance(inputs, (list, tuple)) and inputs:
        return list(inputs)
    raise TypeError(
        "inputs must be a tensor of examples or a list of batches, which stay the same over the training, got "
        f"{type(inputs).__name__}; from a loader take some: next(iter(loader))[0]"
    )


def check_every(name: str, every: Any) -> int:
    """Return a number of steps or epochs, checked.

    Raises:
        ValueError: it is no positive integer.

    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"{name} must be a positive integer, got {every!r}")
    return every


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Gradients on, lower precision off and random states kept, whatever the training has set.

    The methods work on a copy of the model: its mode, gradients, buffers and hooks stay as they are.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices),
    ):
        yield


def _resolve(method: LoggedMethod) -> tuple[str, Callable[[nn.Module, Inputs], Result]]:
    if callable(method):
        return "capacity", method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name, a function or a mapping to these, got {type(method).__name__}")
    if method not in LOGGED_METHODS:
        known = tuple(LOGGED_METHODS)
        raise ValueError(f"method must be one of {known}, or a function of model and inputs, got {method!r}")
    return LOGGED_METHODS[method]
