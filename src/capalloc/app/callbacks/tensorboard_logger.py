"""Capacity over a training of one's own, to TensorBoard."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from capalloc._runtime.extras import load_extra
from capalloc.app.callbacks.snapshot import Inputs, LoggedMethod, OnError, Snapshot, check_every, check_inputs
from capalloc.app.callbacks.summary import Summary
from capalloc.results.base import Result

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class CapacityLogger:
    """Writes capacity during training: total, bias, layers, the map as a picture.

    Tags: `capacity/total`, `capacity/bias`, `capacity/largest` (the value of the map's brightest colour),
    `capacity_layers/<layer>`; with standard errors where the method gives them, `capacity/total_standard_error` and
    `capacity/bias_standard_error`; the picture `capacity/map` and the histogram `capacity/inputs`. A `scaling` writes
    `scaling/T`, `scaling/skip_share` and `scaling_rates/<block>`, or of a plain network `scaling_gains/<layer>`, and
    `scaling/total_gain`; a `decoupling`, `decoupling_layers/<gate>`; a `shattering`, `shattering/index` and
    `shattering/correlation`; any other result, the numbers, series and map of its `view()`.

    The training goes on to the bit as it would without: the methods work on a copy in evaluation mode and leave
    gradients, random states and hooks alone. Of several processes the first one alone computes and writes.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`, or the folder for one.
        inputs: examples (examples, *inputs), or a list of such batches, the same over the training; several inputs by
            name, in a dict, have a picture each, `capacity/map_<name>`.
        every: optimizer steps between two logs, for `attach`.
        method: "propagate" (by the Markov rule: a few passes), "measure", "scaling", "decoupling" or "shattering"; or
            a function of model and inputs that returns such a result, as `functools.partial(capalloc.measure,
            ridge=1e-3)` does; or several, by the group of their tags.
        on_error: "raise" ends the training with an error that names the step, "warn" goes on.

    Raises:
        ModuleNotFoundError: `writer` is a folder and tensorboard is not installed.
        ValueError, TypeError: bad settings.

    """

    def __init__(
        self,
        writer: SummaryWriter | str | os.PathLike[str],
        inputs: Inputs,
        every: int = 100,
        method: LoggedMethod | Mapping[str, LoggedMethod] = "propagate",
        on_error: OnError = "raise",
    ) -> None:
        self.every = check_every("every", every)
        self.inputs = check_inputs(inputs)
        self._snapshot = Snapshot.of(method, on_error)
        self._folder = Path(writer) if isinstance(writer, (str, os.PathLike)) else None
        self._writer: Any = None if self._folder else writer
        if self._folder:
            summary_writer()  # says now, not after hours, that it is missing

    def log(self, model: nn.Module, step: int) -> dict[str, Result]:
        """Compute and write now; the results by group of tags, none in other processes than the first.

        Args:
            model: the model in training, also wrapped by `torch.compile` or `DistributedDataParallel`.
            step: where the board puts it.

        Raises:
            RuntimeError: a method failed, with `on_error="raise"`.

        """
        if not is_first():
            return {}
        taken = self._snapshot(model, self.inputs, step)
        for _, summary in taken.values():
            write(self._open(), summary, step)
        return {group: result for group, (result, _) in taken.items()}

    def attach(self, model: nn.Module, optimizer: Optimizer, step: int = 0) -> RemovableHandle:
        """Log now, and from then on after every `every`-th step of the optimizer.

        Args:
            model: as in `log`.
            optimizer: its `step` is what is counted.
            step: steps made before.

        Returns:
            A handle whose `remove()` ends it; in a `with` statement, the end of the block does.

        """
        steps = itertools.count(step + 1)

        def after_step(*_: Any) -> None:
            now = next(steps)
            if now % self.every == 0:
                self.log(model, now)

        self.log(model, step)
        return optimizer.register_step_post_hook(after_step)

    def close(self) -> None:
        """Close the writer if it is this logger's own."""
        if self._folder and self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Any:
        if self._writer is None:
            self._writer = summary_writer()(str(self._folder))
        return self._writer


def summary_writer() -> Any:
    """PyTorch's writer of event files."""
    return load_extra("a writer of event files", "torch.utils.tensorboard").SummaryWriter


def write(writer: Any, summary: Summary, step: int) -> None:
    """Everything of a summary, at once on the disk."""
    for tag, value in summary.scalars.items():
        writer.add_scalar(tag, value, step)
    write_pictures(writer, summary, step)


def write_pictures(writer: Any, summary: Summary, step: int) -> None:
    """Write the pictures and histograms of a summary."""
    for tag, pixels in summary.images.items():
        writer.add_image(tag, pixels, step)
    for tag, values in summary.histograms.items():
        writer.add_histogram(tag, values, step)
    writer.flush()


def is_first() -> bool:
    """Tell whether this process is the only one, or the first of its group."""
    group = torch.distributed
    return not (group.is_available() and group.is_initialized()) or group.get_rank() == 0
