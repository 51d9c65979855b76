"""A model that a command line names, and the form of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

TorchModel = nn.Module | ExportedProgram
InputShape = tuple[int, ...] | None


@dataclass(frozen=True)
class Tokens:
    """The embedding by which a model of tokens takes them."""

    embed: Callable[[Tensor], Tensor]  # (examples, tokens) of integers -> (examples, tokens, width)
    vocabulary: int


@dataclass(frozen=True)
class NamedModel:
    """A model, with the shape of one input where it is known."""

    model: TorchModel
    shape: InputShape = None
    tokens: Tokens | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next((p.dtype for p in self.model.parameters()), torch.float32)

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())
