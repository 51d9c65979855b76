"""Capacity during training: loggers for TensorBoard and Lightning."""

from capalloc.app.callbacks.tensorboard_logger import CapacityLogger

__all__ = ["CapacityLogger"]
