"""Capacity during training: loggers for TensorBoard and Lightning."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub("capalloc", __file__)
