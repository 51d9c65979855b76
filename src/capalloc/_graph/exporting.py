"""The surroundings in which `torch.export` captures a model."""

from __future__ import annotations

import io
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr

import torch
from torch.distributions import Distribution
from torch.nn.attention import SDPBackend, sdpa_kernel

from capalloc._model.problem import Problem, seeded


@contextmanager
def exporting(problem: Problem) -> Iterator[None]:
    """Prepare torch for an export, with gradients, or what a model does without them would leave no trace."""
    with (
        _uninterrupted(),
        _unprinted(),
        _untraced(),
        warnings.catch_warnings(),
        seeded(0, problem.probe.device),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        _unvalidated(),
        _inferring_without_gradient(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the end: what Python raises inside of some calls of torch's tracer ends the process."""
    handler, came = signal.getsignal(signal.SIGINT), []
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *told: came.append(told))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Leave out the branches on values by which `torch.distributions` checks its arguments."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextmanager
def _inferring_without_gradient() -> Iterator[None]:
    """Let `torch.inference_mode` in forward turn off gradients, which leaves a trace."""
    before = torch._C._InferenceMode
    torch._C._InferenceMode = _without_gradient  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch._C._InferenceMode = before  # type: ignore[misc]


def _without_gradient(mode: bool) -> AbstractContextManager[object]:
    return torch.no_grad() if mode else nullcontext()


@contextmanager
def _untraced() -> Iterator[None]:
    """Leave out where each node comes from in Python: no graph is asked for it, and it costs a quarter of an export."""
    before = torch.fx.config.do_not_emit_stack_traces
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before


@contextmanager
def _unprinted() -> Iterator[None]:
    """Keep back what torch prints and logs of a graph that it cannot export: the error says it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
