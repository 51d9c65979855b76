"""Model + data: what every method starts from, checked once, with the user's model left alone.

Index convention: a batch is (examples, *inputs); constraint outputs are (examples, *outputs).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Union, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from capalloc._model.archive import load_program
from capalloc._model.exported import SavedModel

ModelLike = Union[nn.Module, ExportedProgram, str, os.PathLike[str], "Problem"]  # a checked problem stays as it is
ParamSelection = Sequence[str] | Callable[[str], bool] | None
OutputSelection = Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class Problem:
    """A private evaluation-mode copy of the model, the examples, and what to constrain."""

    model: nn.Module
    inputs: Tensor | Iterable[Any]
    outputs: OutputSelection = None
    params: dict[str, nn.Parameter] = field(default_factory=dict)
    probe: Tensor = field(default_factory=lambda: torch.empty(0))  # one example, with its leading axis
    program: ExportedProgram | None = None  # what `model` runs, where an exported program was given

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.probe.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the private copy and of every batch it is given."""
        return self.probe.dtype

    @property
    def num_params(self) -> int:
        """Number of selected scalar parameters."""
        return sum(p.numel() for p in self.params.values())

    def __call__(self, x: Tensor) -> Tensor:
        """Constraint outputs of a batch, flattened: (examples, outputs)."""
        return self.select(self.model(x)).reshape(x.shape[0], -1)

    def select(self, returned: Any) -> Tensor:
        """The constraint outputs in what the model returned."""
        return select_outputs(returned, self.outputs)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """The examples once over, in batches of `batch_size` (the last may be shorter)."""
        pending: list[Tensor] = []
        count = 0
        for batch in iterate_batches(self.inputs):
            check_batch(batch, like=self.probe)
            for piece in batch.split(batch_size):
                pending.append(piece)
                count += len(piece)
                if count >= batch_size:
                    joined = torch.cat(pending).detach()
                    yield joined[:batch_size].to(self.probe)
                    pending, count = [joined[batch_size:]], count - batch_size
        if count:
            yield torch.cat(pending).detach().to(self.probe)

    def padded_batches(self, size: int) -> Iterator[tuple[Tensor, int]]:
        """Batches of exactly `size`, the last one filled up with copies of its last example; and how many count."""
        for batch in self.batches(size):
            missing = size - len(batch)
            filled = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch
            yield filled, len(batch)

    def count(self) -> int:
        """Number of examples."""
        return sum(len(batch) for batch in iterate_batches(self.inputs))


@torch.inference_mode(False)
def prepare(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    params: ParamSelection = None,
    dtype: torch.dtype | None = None,
    *,
    traced: bool = False,
) -> Problem:
    """Check model and data together and return them as a `Problem`; `dtype` casts the private copy.

    A program whose own outputs are constrained and that will be `traced` is not run for the check: the trace finds
    out what there is to find.
    """
    if isinstance(model, Problem):
        return model
    program = load_program(model) if isinstance(model, (str, os.PathLike)) else model
    if isinstance(program, ExportedProgram):
        model = SavedModel(program)
    if not isinstance(model, nn.Module):
        raise TypeError(
            "model must be a torch.nn.Module, an exported program or the path of a .pt2 file, "
            f"got {type(model).__name__}"
        )
    if outputs is not None and not callable(outputs):
        raise TypeError(
            f"outputs must be a function from the model's return value to a tensor, got {type(outputs).__name__}"
        )
    if not isinstance(inputs, Tensor):
        if not isinstance(inputs, Iterable):
            raise TypeError(f"inputs must be a tensor or an iterable of batches, got {type(inputs).__name__}")
        if isinstance(inputs, Iterator):  # a one-shot stream: the methods need more than one pass
            inputs = list(iterate_batches(inputs))
    probe = next(iter(iterate_batches(inputs)), None)
    if probe is None or len(probe) == 0:
        raise ValueError("inputs hold no example; pass a tensor with a leading examples axis of length >= 1")
    check_batch(probe, like=probe)
    selected = select_params(model, params)
    _check_dtypes(selected, probe)
    frozen = private_copy(model, dtype)
    own = dict(frozen.named_parameters())
    device = next(iter(own.values())).device
    probe = probe[:1].detach().clone().to(device=device, dtype=dtype or probe.dtype)
    chosen = {name: own[name] for name in selected}
    exported = program if isinstance(program, ExportedProgram) else None
    problem = Problem(frozen, inputs, outputs, chosen, probe, exported)
    if traced and exported is not None and outputs is None:
        with _shape_errors(problem):
            cast(SavedModel, frozen).check(probe)
    else:
        _check_outputs(problem)
    return problem


def private_copy(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy in evaluation mode that shares no tensor with `model`, cast to `dtype`.

    What stands for a saved program is one already; its tensors are the program's, which nothing writes to.
    """
    if isinstance(model, SavedModel) and dtype is None:
        return model.eval()
    try:
        copied = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"model cannot be copied, and the methods work on a copy: {error}; replace tensors computed from "
            "parameters and kept on a module, for example torch.nn.utils.weight_norm by "
            "torch.nn.utils.parametrizations.weight_norm"
        ) from error
    frozen = copied.eval().requires_grad_(False)
    return frozen if dtype is None else frozen.to(dtype)


def select_params(model: nn.Module, params: ParamSelection) -> dict[str, nn.Parameter]:
    """The parameters named, or for which the predicate holds; all by default."""
    named = dict(model.named_parameters())
    if not named:
        raise ValueError("model has no parameters, so there is no capacity to allocate")
    if params is None:
        selected = named
    elif callable(params):
        selected = {name: p for name, p in named.items() if params(name)}
    elif isinstance(params, str):
        raise TypeError(f"params must be a sequence of names or a predicate on names; write [{params!r}]")
    else:
        unknown = sorted(set(params) - set(named))
        if unknown:
            raise ValueError(f"params names {unknown}, which the model lacks; it has {sorted(named)}")
        selected = {name: p for name, p in named.items() if name in set(params)}
    if not selected:
        raise ValueError(f"params selects no parameter; the model has {sorted(named)}")
    for name, p in named.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name!r} has no shape yet; run the lazy model on a batch once")
        if p.numel() and not torch.isfinite(torch.stack(p.detach().aminmax())).all():
            raise ValueError(f"parameter {name!r} holds NaN or inf; capacity needs a finite model")
    return selected


def select_outputs(returned: Any, outputs: OutputSelection) -> Tensor:
    """Apply `outputs`, or the default: a tensor itself, `.logits`, else `.last_hidden_state`."""
    if outputs is not None:
        returned = outputs(returned)
        if not isinstance(returned, Tensor):
            raise TypeError(f"outputs must return a tensor, got {type(returned).__name__}")
        return returned
    if isinstance(returned, Tensor):
        return returned
    for name in ("logits", "last_hidden_state"):
        value = getattr(returned, name, None)
        if isinstance(value, Tensor):
            return value
    raise TypeError(
        f"model returns a {type(returned).__name__}, not a tensor; "
        "say which tensor to constrain, for example outputs=lambda returned: returned[0]"
    )


def iterate_batches(inputs: Tensor | Iterable[Any]) -> Iterator[Tensor]:
    """The input tensors of `inputs`, labels dropped."""
    if isinstance(inputs, Tensor):
        yield inputs
        return
    for batch in inputs:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(x, Tensor):
            raise TypeError(f"each batch must be a tensor or an (x, y) pair, got {type(batch).__name__}")
        yield x


def check_batch(batch: Tensor, like: Tensor) -> None:
    """Refuse a batch that no method can use."""
    if batch.ndim < 2:
        raise ValueError(
            f"inputs need a leading examples axis and at least one more, got shape {tuple(batch.shape)}; "
            "for one example use inputs[None]"
        )
    if not batch.dtype.is_floating_point:
        raise TypeError(
            f"inputs are {batch.dtype}, but gradients need floating point; convert them, or for token ids "
            "pass the embedded inputs to a model that starts after the embedding"
        )
    if batch.shape[1:] != like.shape[1:]:
        raise ValueError(f"batches differ in shape: {tuple(batch.shape[1:])} after {tuple(like.shape[1:])}")
    if 0 in batch.shape[1:]:
        raise ValueError(f"inputs have an axis of length 0: shape {tuple(batch.shape)}")
    if not torch.isfinite(batch).all():
        raise ValueError("inputs hold NaN or inf; drop or repair those examples")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Make a model that draws random numbers repeat them, and leave the global random state as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed: every device, with a trace each
        for used in devices:
            with torch.cuda.device(used):
                torch.cuda.manual_seed(seed)
        yield


def random_signs(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs with the dtype and on the device of `like`."""
    return (torch.randint(0, 2, tuple(shape), generator=generator) * 2 - 1).to(like)


def axis_names(ndim: int) -> tuple[str, ...]:
    """Names of an input's own axes, by their number."""
    known = {
        1: ("input",),
        2: ("row", "column"),
        3: ("channel", "row", "column"),
        4: ("channel", "depth", "row", "column"),
    }
    return known.get(ndim, tuple(f"axis_{k}" for k in range(ndim)))


def _check_dtypes(params: dict[str, nn.Parameter], probe: Tensor) -> None:
    for name, p in params.items():
        if p.dtype != probe.dtype:
            raise TypeError(
                f"parameter {name!r} is {p.dtype} but inputs are {probe.dtype}; "
                f"convert one: inputs.to({p.dtype}) or model.to({probe.dtype})"
            )


@contextmanager
def _shape_errors(problem: Problem) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"model does not accept inputs of shape (examples, {', '.join(map(str, problem.input_shape))}): {error}"
        ) from error


def _check_outputs(problem: Problem) -> None:
    x = problem.probe.clone().requires_grad_()
    with torch.enable_grad(), seeded(0, x.device):
        with _shape_errors(problem):
            returned = problem.model(x)
        y = problem.select(returned)
    if y.ndim == 0 or len(y) != len(x):
        raise ValueError(f"outputs must keep the leading examples axis: got shape {tuple(y.shape)} for 1 example")
    if y.numel() == 0:
        raise ValueError(f"outputs are empty: shape {tuple(y.shape)}")
    if not y.dtype.is_floating_point or not y.requires_grad:
        raise ValueError("outputs do not depend on inputs; choose other outputs or check for .detach() in the model")
    if not torch.isfinite(y).all():
        raise ValueError("the model's outputs hold NaN or inf on the first example")
