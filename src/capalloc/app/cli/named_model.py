"""A model that a command line names, and the form of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.export import ExportedProgram

TorchModel = nn.Module | ExportedProgram
InputShape = tuple[int, ...] | None


@dataclass(frozen=True)
class NamedModel:
    """A model, with the shape of one input where it is known."""

    model: TorchModel
    shape: InputShape = None
    vocabulary: int | None = None  # of a model that takes token ids

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next((p.dtype for p in self.model.parameters()), torch.float32)

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())
