"""Capacity over a training by Lightning, to its loggers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from capalloc._measure.measure import CapacityWarning
from capalloc._model.given_examples import iterate_batches
from capalloc._runtime.extras import load_extra
from capalloc.app.callbacks.snapshot import Inputs, LoggedMethod, OnError, Snapshot, check_every, check_inputs
from capalloc.app.callbacks.tensorboard_logger import write_pictures

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
else:
    Callback = load_extra(__name__, "lightning.pytorch.callbacks", "pytorch_lightning.callbacks").Callback


class CapacityCallback(Callback):
    """Logs capacity during training: total, bias and layers to every logger, the map to TensorBoard.

    Tags, and what leaves the training untouched, are those of `capalloc.callbacks.CapacityLogger`. The
    first log is before the first step. For trainers of `lightning.pytorch` and of `pytorch_lightning`; of several
    processes the first one alone computes and writes.

    Args:
        inputs: examples (examples, *inputs), or a list of such batches, the same over the training; by default the
            start of the first validation batch, as the trainer passes it by (nothing is loaded for it).
        every_n_epochs: epochs between two logs, None for none at their ends.
        every_n_steps: steps of the optimizer between two logs, None for none within epochs.
        method: as in `CapacityLogger`.
        module: which part of the `LightningModule` takes the inputs, such as `lambda lit: lit.net`; itself by default.
        num_examples: how many examples are taken of the validation batch.
        on_error: as in `CapacityLogger`.

    Raises:
        ValueError, TypeError: bad settings.

    Warns:
        CapacityWarning: the training ended with no validation batch seen, so that nothing is logged.

    """

    def __init__(
        self,
        inputs: Inputs | None = None,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        method: LoggedMethod | Mapping[str, LoggedMethod] = "propagate",
        module: Callable[[Any], nn.Module] | None = None,
        num_examples: int = 8,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        self.inputs = None if inputs is None else check_inputs(inputs)
        self.every_n_epochs = None if every_n_epochs is None else check_every("every_n_epochs", every_n_epochs)
        self.every_n_steps = None if every_n_steps is None else check_every("every_n_steps", every_n_steps)
        self.num_examples = check_every("num_examples", num_examples)
        self._module = module
        self._snapshot = Snapshot.of(method, on_error)
        self._logged = -1  # the step of the last log

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first examples that pass by."""
        if self.inputs is not None or not trainer.is_global_zero:
            return
        try:
            first = next(iterate_batches([batch]))
        except TypeError as error:
            raise TypeError(
                f"CapacityCallback cannot tell the inputs of a validation batch; give inputs= ({error})"
            ) from error
        self.inputs = check_inputs(first[: self.num_examples])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Log what the training starts from."""
        self._logged = -1
        self._log(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log every `every_n_steps`."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log every `every_n_epochs`."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say so if nothing was logged."""
        if self.inputs is None and trainer.is_global_zero:
            warnings.warn(
                "no validation batch was seen, so no capacity is logged; give CapacityCallback inputs=",
                CapacityWarning,
                stacklevel=2,
            )

    def _log(self, trainer: Any, pl_module: Any) -> None:
        step = int(trainer.global_step)
        if self.inputs is None or step == self._logged or not trainer.is_global_zero:
            return
        self._logged = step
        model = pl_module if self._module is None else self._module(pl_module)
        for _, summary in self._snapshot(model, self.inputs, step).values():
            for logger in trainer.loggers:
                logger.log_metrics(dict(summary.scalars), step=step)
                if hasattr(experiment := getattr(logger, "experiment", None), "add_image"):
                    write_pictures(experiment, summary, step)
