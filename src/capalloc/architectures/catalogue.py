"""The catalogue of reference architectures: a name, a factory, and what its inputs look like."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from capalloc._model.problem import seeded
from capalloc._runtime.arguments import checked

ModelFactory = Callable[..., nn.Module]

#: Gaussian examples that batch normalisation takes its statistics from.
NORM_EXAMPLES = 4

_REGISTRY: dict[str, Architecture] = {}


@dataclass(frozen=True)
class Architecture:
    """One reference architecture.

    Args:
        name: what `make` and the command line call it.
        factory: keyword arguments with defaults -> module; one of them is `shape`, that of one input.
        description: one line.
        reference: the paper.

    Raises:
        ValueError: an argument of the factory has no default, or there is no argument `shape`.

    """

    name: str
    factory: ModelFactory
    description: str
    reference: str

    def __post_init__(self) -> None:
        if "shape" not in self.arguments or inspect.Parameter.empty in self.arguments.values():
            raise ValueError(
                f"the factory of {self.name!r} must give every argument a default, and one must be shape: "
                f"it takes {inspect.signature(self.factory)}"
            )

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The factory's arguments and their defaults."""
        return {name: p.default for name, p in inspect.signature(self.factory).parameters.items()}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, without the examples axis, where nothing else is asked for."""
        return tuple(self.arguments["shape"])

    @property
    def reads_tokens(self) -> bool:
        """True of a text model, whose inputs are (tokens, width) or token ids."""
        return "vocabulary" in self.arguments

    @property
    def num_params(self) -> int:
        """Parameters at the default size."""
        with torch.device("meta"):  # shapes alone
            return sum(p.numel() for p in self.factory().parameters())

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError where the factory cannot take the arguments."""
        unknown = sorted(set(arguments) - set(self.arguments))
        if unknown:
            raise TypeError(f"{self.name} takes no argument {unknown[0]!r}; it takes {', '.join(self.arguments)}")
        shape = tuple(arguments.get("shape", self.shape))
        if len(shape) != len(self.shape) or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"shape must be {len(self.shape)} positive integers such as {self.shape}, got {shape}")
        for name, value in arguments.items():
            usual = self.arguments[name]
            if type(usual) is int and not (type(value) is int and value > 0):
                raise ValueError(f"{name} must be a positive integer such as {usual}, got {value!r}")


def register(name: str, description: str, reference: str) -> Callable[[ModelFactory], ModelFactory]:
    """Make a decorator that enters a factory under a name.

    Raises:
        ValueError: the name is taken, or the factory is none (see `Architecture`).

    """

    def enter(factory: ModelFactory) -> ModelFactory:
        if name in _REGISTRY:
            raise ValueError(f"there is an architecture {name!r} already; choose another name")
        _REGISTRY[name] = Architecture(name, factory, description, reference)
        return factory

    return enter


def names() -> list[str]:
    """Names of the reference architectures, in alphabetical order."""
    return sorted(_REGISTRY)


@checked
def info(name: str) -> Architecture:
    """Look up what is registered under a name.

    Raises:
        ValueError: there is no such architecture.

    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no architecture {name!r}; {hint}there are {', '.join(names())}")
    return _REGISTRY[name]


@checked
def make(name: str, seed: int = 0, **arguments: Any) -> nn.Module:
    """Build a reference architecture in evaluation mode, with its initial weights.

    Batch normalisation has the statistics of Gaussian inputs, as it would in a first step of training.

    Args:
        name: one of `names()`.
        seed: of the weights; the global random state is as before.
        arguments: of the factory, see `info(name).arguments`; `shape` is that of one input.

    Raises:
        ValueError: there is no such architecture, or it cannot have the shape asked for.
        TypeError: an argument that the factory does not take.

    """
    architecture = info(name)
    architecture.check(arguments)
    with seeded(seed, torch.device("cpu")):
        try:
            model = architecture.factory(**arguments)
            _settle(model, tuple(arguments.get("shape", architecture.shape)))
        except RuntimeError as error:  # torch's own word for sizes that do not fit
            raise ValueError(f"{name} cannot be built with {arguments}: {error}") from error
    return model.eval()


def _settle(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Give batch norms the statistics of Gaussian inputs: those of evaluation would be 0 and 1 at any depth."""
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if not norms:
        return
    usual = norms[0].momentum
    for norm in norms:
        norm.momentum = 1.0  # the batch's own statistics, not a mixture with 0 and 1
    with torch.no_grad():
        model.train()(torch.randn(NORM_EXAMPLES, *shape))
    for norm in norms:
        norm.momentum = usual
