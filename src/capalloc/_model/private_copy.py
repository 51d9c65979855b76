"""A copy of the model that the methods may do with as they like, and what it needs to run as the user's does."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle

from capalloc._model.complex_params import cast, pair_up
from capalloc._model.containers import held_by
from capalloc._model.exported import SavedModel
from capalloc._operators.decompositions import distances, length, pairs, step
from capalloc._operators.records import take_branch
from capalloc._operators.written_once import WRITES
from capalloc._runtime.surroundings import at_the_end, forward_defaults

#: Methods that name a precision.
NARROWING = (Tensor.float, Tensor.half, Tensor.bfloat16)
#: Functions that make numbers of the default precision of others, or of none.
MAKING = frozenset(
    getattr(torch, name)
    for name in (
        *("tensor", "as_tensor", "scalar_tensor", "full", "arange", "linspace", "logspace"),
        *("bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window"),
    )
)
#: Layouts of sparse tensors that copies and derivatives do not know, which are dense in the copy.
COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
#: Calls that derivatives do not enter, or not twice, and what is run in their place.
WRITTEN_OUT: dict[Any, Callable[..., Any]] = {
    torch.cdist: distances(length),
    torch.pdist: pairs(length),
    **dict.fromkeys([torch.heaviside, Tensor.heaviside], step),
}
#: What modules may hold that copies share: it has no state that a call changes.
WITHOUT_COPIES = (ModuleType, type(threading.Lock()), type(threading.RLock()))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without what compiles it or shares its examples among processes."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "dynamo_ctx") and isinstance(inner := model._orig_mod, nn.Module):  # of torch.compile
            model = inner
        else:
            return model


def private_copy(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Copy a model in evaluation mode, without a tensor that `model` has too, cast to `dtype`.

    What stands for a saved program is one already; its tensors are the program's, which nothing writes to. Tensors
    that a module keeps from its last run are NaN in the copy: a run makes them anew, and one that reads them is seen.
    """
    if isinstance(model, SavedModel) and dtype is None:
        pair_up(model)
        return model.eval()
    kept: dict[int, Any] = {id(t): torch.full(t.shape, torch.nan, dtype=t.dtype, device=t.device) for t in _kept(model)}
    own = (value for m in model.modules() for value in (*m._buffers.values(), *vars(m).values()))
    kept |= {id(t): t.detach().to_dense() for t in own if isinstance(t, Tensor) and t.layout in COMPRESSED}
    kept |= {
        id(value): value for m in model.modules() for value in vars(m).values() if isinstance(value, WITHOUT_COPIES)
    }
    try:
        copied = copy.deepcopy(model, dict(kept))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"model cannot be copied, and the methods work on a copy: {error}") from error
    own_parts = {id(part) for part in model.modules()}
    for part in () if isinstance(model, SavedModel) else copied.modules():
        if id(part) in own_parts:
            raise ValueError(
                "model cannot be copied, and the methods work on a copy: __deepcopy__ of a "
                f"{type(part).__name__} in it gives that itself"
            )
    frozen = copied.eval().requires_grad_(False)
    pair_up(frozen)
    for part in frozen.modules():
        if (inner := unwrapped(part)) is not part:
            part.forward = inner.forward  # what is compiled has no second derivative
    if any(True for _ in frozen.buffers()):
        _keep_buffers(frozen)
    if (defaults := forward_defaults()) is not None and not isinstance(model, SavedModel):
        surround(frozen, lambda x: defaults())
    return frozen if dtype is None else cast(frozen, dtype)


def keeps_tensors(model: nn.Module) -> bool:
    """Tell whether modules keep tensors that they computed from others."""
    return any(True for _ in _kept(model))


def check_places(params: Mapping[str, Tensor], places: Mapping[str, int]) -> None:
    """Refuse a model whose forward gave parameters another tensor than they had: derivatives would read what is gone.

    Raises:
        ValueError: some have one.

    """
    for name, parameter in params.items():
        if parameter.data_ptr() != places[name]:
            raise ValueError(
                f"forward puts another tensor in the place of parameter {name!r} (.data = ...), which derivatives do "
                "not follow: write to it in place under torch.no_grad(), or compute the weight in forward"
            )


def _keep_buffers(model: nn.Module) -> None:
    """Let every forward pass of the copy leave the buffers that it met, where it puts others in their place."""
    met: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []

    def enter(module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_dynamo_compiling():
            met[:] = [(m._buffers, dict(m._buffers)) for m in module.modules() if m._buffers]

    def leave(module: nn.Module, args: Any, returned: Any) -> None:
        if not torch.compiler.is_dynamo_compiling():
            for held, own in met:
                held.update(own)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)


def surround(
    model: nn.Module, context: Callable[[Tensor], AbstractContextManager[Any]]
) -> tuple[RemovableHandle, RemovableHandle]:
    """Run every forward pass of the copy inside a context that its examples decide, until the handles are removed."""
    stack = ExitStack()
    at_the_end(stack.close)  # hooks do not hear of an interrupt

    def enter(module: nn.Module, args: Any) -> None:
        stack.enter_context(context(args[0]))

    def leave(module: nn.Module, args: Any, returned: Any) -> None:
        stack.close()

    return model.register_forward_pre_hook(enter), model.register_forward_hook(leave, always_call=True)


def widen(model: nn.Module, wide: torch.dtype) -> tuple[RemovableHandle, RemovableHandle]:
    """Let what forward makes in a lower precision than `wide` be in `wide` where the examples are."""
    return surround(model, lambda x: Widened(wide) if x.dtype is wide else nullcontext())


def spare_inputs(model: nn.Module) -> None:
    """Give the copy inputs of its own to write to."""
    model.register_forward_pre_hook(lambda module, args: tuple(x.clone() for x in args))


class Rounding(TorchFunctionMode):
    """Notes whether calls return numbers of a lower precision than `wide`, and whether forward hooks gradients."""

    seen = hooks = False

    def __init__(self, wide: torch.dtype) -> None:
        super().__init__()
        self.wide = wide

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.hooks |= func is Tensor.register_hook
        returned = func(*args, **(kwargs or {}))
        self.seen |= any(isinstance(t, Tensor) and _wider(t.dtype, self.wide) for t in pytree.tree_leaves(returned))
        return returned


class TakenBranches(TorchFunctionMode):
    """Lets derivatives enter checkpoints, the branch of `torch.cond`, distances, steps and writes to one place.

    No mode is told of the first two: what stands in their place is for this thread, and others go on with torch's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.thread = False, threading.get_ident()
        self.cond, self.checkpointed = torch.cond, checkpoint.CheckpointFunction

    def __enter__(self) -> TakenBranches:
        torch.cond = self._cond
        checkpoint.CheckpointFunction = _Checkpoint(self)  # type: ignore[assignment, misc]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.cond = self.cond
        checkpoint.CheckpointFunction = self.checkpointed  # type: ignore[misc]
        super().__exit__(*error)

    def here(self) -> bool:
        """Tell whether this thread calls, and note it."""
        is_here = threading.get_ident() == self.thread
        self.seen |= is_here
        return is_here

    def _cond(self, *args: Any, **kwargs: Any) -> Any:
        return (take_branch if self.here() else self.cond)(*args, **kwargs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call of torch."""
        kwargs = {**(kwargs or {})}
        if torch.compiler.is_exporting():  # a graph has decompositions of its own
            return func(*args, **kwargs)
        if func in WRITTEN_OUT:
            self.seen = True
            return WRITTEN_OUT[func](*args, **kwargs)
        if func not in WRITES:
            return func(*args, **kwargs)
        write, in_place = WRITES[func]
        x, *others = args or (kwargs.pop("input"),)
        found, twice = write(func, x, *others, **kwargs)
        self.seen |= twice
        return x.copy_(found) if in_place and found is not x else found


@dataclass(frozen=True)
class _Checkpoint:
    """Runs what a checkpoint keeps nothing of."""

    noting: TakenBranches

    def apply(self, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if self.noting.here():
            return function(*args)
        return self.noting.checkpointed.apply(function, preserve, *args)


class Widened(TorchFunctionMode):
    """Runs in `wide` what names a lower precision, as softmax in float32 does and tensors that forward makes.

    What a model rounds within is a staircase: its rows and its products with constraints differ by the rounding, and
    autograd's derivatives are those of the model that does not round.
    """

    def __init__(self, wide: torch.dtype) -> None:
        super().__init__()
        self.wide = wide

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in NARROWING:
            return args[0].to(self.wide)
        args, kwargs = pytree.tree_map(self._cast, (tuple(args), kwargs or {}))
        returned = func(*args, **kwargs)
        if func in MAKING and kwargs.get("dtype") is None and _wider(returned.dtype, self.wide):
            returned = func(*args, **{**kwargs, "dtype": self.wide})  # 0.1 of float32 is another number
        return pytree.tree_map_only(Tensor, self._cast, returned)

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            wider = _wider(value.dtype, self.wide)
            return value if wider is None else value.to(wider)
        return (isinstance(value, torch.dtype) and _wider(value, self.wide)) or value


def _wider(dtype: torch.dtype, wide: torch.dtype) -> torch.dtype | None:
    """Give what numbers of a lower precision than `wide` become, None for others."""
    wider = wide.to_complex() if dtype.is_complex else wide
    floating = dtype.is_floating_point or dtype.is_complex
    return wider if floating and torch.finfo(dtype).eps > torch.finfo(wide).eps else None


def _kept(model: nn.Module) -> Iterator[Tensor]:
    """Give the tensors of a run that modules hold beside parameters and buffers: with a gradient, or of a transform."""
    for module in model.modules():
        for _, value in held_by(module):
            if isinstance(value, Tensor) and (value.grad_fn is not None or is_functorch_wrapped_tensor(value)):
                yield value
