"""Surroundings of a call, which must not change its answer: autocast, inference mode, default devices, threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch

#: Torch's levels of forward mode, and what `torch.export` traces by, are one for all threads.
ONE_AT_A_TIME = threading.RLock()
FORWARD_DEVICE: ContextVar[torch.device | None] = ContextVar("forward_device", default=None)
CPU = torch.device("cpu")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let one call at a time run in full precision, with tensors of our own where we say, as if nothing were set."""
    default = torch.get_default_device()
    with ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        stack.enter_context(torch.inference_mode(False))
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if default != CPU:
            token = FORWARD_DEVICE.set(default)
            stack.callback(FORWARD_DEVICE.reset, token)
            stack.enter_context(CPU)
        yield


def forward_device() -> torch.device | None:
    """Give the default device of the user, where a model makes tensors; None where it is not changed."""
    return FORWARD_DEVICE.get()
