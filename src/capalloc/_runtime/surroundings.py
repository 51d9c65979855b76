"""Surroundings of a call, which must not change its answer, nor be changed by it.

Autocast, gradient and inference modes, default devices and dtypes, kernels of attention, random numbers, threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from capalloc._runtime.memory_limits import ran_out

#: Torch's levels of forward mode, its flags of kernels, and what `torch.export` traces by, are one for all threads.
ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Defaults:
    """Device and dtype of tensors that are made without naming them."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def now(cls) -> Defaults:
        """Return those that hold."""
        return cls(torch.get_default_device(), torch.get_default_dtype())

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Let these hold for a while."""
        before = Defaults.now()
        torch.set_default_dtype(self.dtype)
        try:
            with ExitStack() as stack:
                if self.device != before.device:
                    stack.enter_context(self.device)
                yield
        finally:
            torch.set_default_dtype(before.dtype)


PLAIN_DEFAULTS = Defaults(torch.device("cpu"), torch.float32)
AT_THE_END: ContextVar[ExitStack | None] = ContextVar("at_the_end", default=None)
FORWARD_DEFAULTS: ContextVar[Defaults | None] = ContextVar("forward_defaults", default=None)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let one call at a time run in full precision, with tensors of our own where we say, as if nothing were set.

    Attention is computed as its formula says: fused kernels have no second derivative and no forward mode.

    Raises MemoryError where torch's allocator of the CPU has none left, whose own error is one of many kinds.
    """
    with ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        if AT_THE_END.get() is None:
            stack.callback(AT_THE_END.reset, AT_THE_END.set(stack))
        stack.enter_context(torch.random.fork_rng([]))
        functorch = torch._C._functorch  # type: ignore[attr-defined, unused-ignore]
        # A model's own transforms may end without leaving theirs, and all that comes later would be inside of them.
        stack.callback(functorch.pop_dynamic_layer_stack_and_undo_to_depth, functorch.get_dynamic_layer_stack_depth())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if (given := Defaults.now()) != PLAIN_DEFAULTS:
            token = FORWARD_DEFAULTS.set(given)
            stack.callback(FORWARD_DEFAULTS.reset, token)
            stack.enter_context(PLAIN_DEFAULTS())
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if ran_out(error) and not isinstance(error, torch.OutOfMemoryError):  # which has a kind of its own
                raise MemoryError(
                    "memory ran out: take fewer examples, a smaller batch_size= or fewer parameters with params= "
                    f"({error})"
                ) from error
            raise


def at_the_end(callback: Callable[[], object]) -> None:
    """Call it when the call that runs ends, however that is."""
    if (stack := AT_THE_END.get()) is not None:
        stack.callback(callback)


def forward_defaults() -> Defaults | None:
    """Give the user's defaults, for tensors that a model makes; None where they are not changed."""
    return FORWARD_DEFAULTS.get()
