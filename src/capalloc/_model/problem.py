"""Model + data: what every method starts from, checked once, with the user's model left alone.

Index convention: a batch is (examples, *inputs); constraint outputs are (examples, *outputs).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Union, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from capalloc._model.agree import agree
from capalloc._model.archive import load_program
from capalloc._model.exported import SavedModel, check_batch_of
from capalloc._model.given_arguments import Signature, read_arguments
from capalloc._model.given_examples import check_batch, iterate_batches, kept_inputs
from capalloc._model.gradient_hooks import leave_hooks_out
from capalloc._model.places import Places
from capalloc._model.private_copy import (
    Rounding,
    TakenBranches,
    check_places,
    keeps_tensors,
    private_copy,
    spare_inputs,
    surround,
    unwrapped,
    widen,
)
from capalloc._model.selected_params import ParamSelection, select_params
from capalloc._model.several_inputs import Layout, packed
from capalloc._runtime.arguments import blamed

ModelLike = Union[nn.Module, ExportedProgram, str, os.PathLike[str], "Problem"]  # a checked problem stays as it is
#: A change of the inputs, in units of their rounding, that moves outputs about as far as rounding in all layers does.
NUDGE = 16
#: Examples that are run together, in both orders, to see whether one changes with others; their entries, at most.
SEVERAL, SEVERAL_ENTRIES = 16, 2**19
#: What is said of a copy that keeps a lower precision somewhere.
KEPT_PRECISION = (
    "the model rounds to a lower precision within and does not run in float64 throughout: ranks may count its rounding,"
    " which a ridge leaves out"
)
OutputSelection = str | int | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class Problem:
    """A private evaluation-mode copy of the model, the examples, and what to constrain."""

    model: nn.Module
    inputs: Tensor | Iterable[Any]
    outputs: OutputSelection = None
    params: dict[str, nn.Parameter] = field(default_factory=dict)
    probe: Tensor = field(default_factory=lambda: torch.empty(0))  # one example, with its leading axis
    program: ExportedProgram | None = None  # what `model` runs, where an exported program was given
    notes: tuple[str, ...] = ()  # what an answer has to say of the choice of parameters
    layout: Layout | None = None  # of several inputs, or of token ids, in the vectors that examples then are
    source: nn.Module | None = None  # what the results of a problem that is kept were made from

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.probe.shape[1:])

    @property
    def places(self) -> Places:
        """The places that results have a capacity for."""
        return Places.of(self.input_shape) if self.layout is None else self.layout.places()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the private copy and of every batch it is given."""
        return self.probe.dtype

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.params.values())

    @property
    def parameter_sizes(self) -> dict[str, int]:
        """Number of parameters in each selected tensor."""
        return {name: p.numel() for name, p in self.params.items()}

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
    params: ParamSelection = "all",
    dtype: torch.dtype | None = None,
    *,
    traced: bool = False,
    by_input: bool = False,
) -> Problem:
    """Check model and data together and return them as a `Problem`; `dtype` casts the private copy.

    `params` None takes the parameters that require gradients, all where none does.

    A program whose own outputs are constrained and that will be `traced` is not run for the check: the trace finds
    out what there is to find. `by_input` methods take several inputs, and token ids.
    """
    if isinstance(model, Problem):
        return model
    model, program = _read(model)
    inputs = kept_inputs(inputs)
    plain = program is not None and cast(SavedModel, model).takes_one_signal() and not isinstance(inputs, Mapping)
    asked = None if plain else read_arguments(Signature.of(model), inputs)
    program = program if plain else None  # its graph does not take inputs, or complex numbers, apart
    selected, notes = select_params(model, params)
    if asked is None:
        first, layout = _first(inputs), None
        _check_tensors(model, selected, first)
        frozen = private_copy(model, dtype)
    else:
        frozen = private_copy(model, dtype)
        with seeded(0, torch.device("cpu")):
            inputs, layout = packed(frozen, next(model.parameters()).dtype, asked)
        layout.check(by_input)
        selected, said = layout.inside(selected, asked_for=params is not None)
        notes += said
        first = _first(inputs)
        _check_tensors(model, selected, first)
    own = dict(frozen.named_parameters())
    device = next(iter(own.values())).device
    given, first = first.dtype, first.detach().clone().to(device=device, dtype=dtype or first.dtype)
    pair = first[:2]
    chosen = {name: own[name] for name in selected}
    problem = Problem(frozen, inputs, outputs, chosen, pair[:1], program, notes, layout)
    if traced and program is not None and outputs is None:
        with _shape_errors(problem):
            cast(SavedModel, frozen).check_examples(pair[:1])
        return problem
    places = {name: p.data_ptr() for name, p in own.items()}
    y, depends, said = _adapted(problem, pair, given, cast=dtype is not None)
    check_places(own, places)
    problem = replace(problem, notes=notes + said)
    if keeps_tensors(model) and not bool(torch.isfinite(y).all()):
        raise ValueError(
            "model cannot be copied, and the methods work on a copy: a forward pass reads tensors computed from "
            "parameters earlier and kept on a module; compute them in forward, or register them with "
            "torch.nn.utils.parametrize"
        )
    _check_outputs(problem, first, y, depends)
    return problem


def _read(model: Any) -> tuple[nn.Module, ExportedProgram | None]:
    """Give the module, and the program that it runs where one was given."""
    program = load_program(model) if isinstance(model, (str, os.PathLike)) else model
    if isinstance(program, ExportedProgram):
        return SavedModel(program), program
    if not isinstance(model, nn.Module):
        raise TypeError(
            "model must be a torch.nn.Module, an exported program or the path of a .pt2 file, "
            f"got {type(model).__name__}"
        )
    check_batch_of(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{name or 'model'} is TorchScript, whose calls cannot be read; pass the nn.Module that was scripted "
                "or traced, or a program of torch.export"
            )
    return unwrapped(model), None


def _first(inputs: Tensor | Iterable[Any]) -> Tensor:
    """Give the first examples, `SEVERAL` or fewer where they are large."""
    found: list[Tensor] = []
    wanted = 2
    for batch in iterate_batches(inputs):
        if found and batch.shape[1:] != found[0].shape[1:]:
            break  # refused when its turn comes
        if not batch.ndim or len(batch):
            check_batch(batch, like=batch)
            wanted = min(max(SEVERAL_ENTRIES // batch[0].numel(), 2), SEVERAL)
            found.append(batch[: wanted - sum(map(len, found))])
        if sum(map(len, found)) >= wanted:
            break
    if not found:
        raise ValueError("inputs hold no example; pass a tensor with a leading examples axis of length >= 1")
    return torch.cat(found)


def select_outputs(returned: Any, outputs: OutputSelection) -> Tensor:
    """Apply `outputs`, or the default: a tensor itself, `.logits`, else `.last_hidden_state`."""
    if isinstance(outputs, (str, int)):
        returned = _part(returned, outputs)
    elif outputs is not None:
        with blamed("outputs"):
            returned = outputs(returned)
    if outputs is not None:
        if not isinstance(returned, Tensor):
            raise TypeError(f"outputs must lead to a tensor, got {type(returned).__name__}")
        return returned
    if isinstance(returned, Tensor):
        return returned
    for name in ("logits", "last_hidden_state"):
        value = returned.get(name) if isinstance(returned, Mapping) else getattr(returned, name, None)
        if isinstance(value, Tensor):
            return value
    parts = returned.items() if isinstance(returned, Mapping) else enumerate(returned) if _is_plain(returned) else ()
    which = [key for key, part in parts if isinstance(part, Tensor)]
    advice = f"for example outputs={which[0]!r}" if which else "with a function of what it returns"
    raise TypeError(f"model returns a {type(returned).__name__}, not a tensor; say which tensor to constrain, {advice}")


def _is_plain(returned: Any) -> bool:
    return isinstance(returned, (tuple, list))


def _part(returned: Any, which: str | int) -> Any:
    """The output of a name, key or attribute, or of a position."""
    if isinstance(returned, Tensor):
        raise ValueError(
            f"the model returns one tensor, which has no output {which!r}: leave outputs out, or give a function that "
            "takes a part of it"
        )
    try:
        named = isinstance(which, str) and not isinstance(returned, Mapping)
        return getattr(returned, str(which)) if named else returned[which]
    except (LookupError, AttributeError, TypeError):
        known = f"; it has {', '.join(map(str, returned))}" if isinstance(returned, Mapping) else ""
        known = f"; it has {len(returned)}" if _is_plain(returned) else known
        kind = type(returned).__name__
        raise ValueError(f"the model returns a {kind} without the output {which!r}{known}") from None


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
    return (torch.randint(0, 2, tuple(shape), generator=generator, dtype=torch.int8) * 2 - 1).to(like)


def _check_tensors(model: nn.Module, params: Mapping[str, nn.Parameter], probe: Tensor) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise ValueError(f"{name!r} is on the meta device and has no values; load or initialise the model first")
    for name, p in params.items():
        if p.dtype.to_real() != probe.dtype:
            raise TypeError(
                f"parameter {name!r} is {p.dtype} but inputs are {probe.dtype}; "
                f"convert one: inputs.to({p.dtype}) or model.to({probe.dtype})"
            )


@contextmanager
def _shape_errors(problem: Problem) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(
            f"model does not accept inputs of shape (examples, {', '.join(map(str, problem.input_shape))}): {error}"
        ) from error


def _adapted(problem: Problem, x: Tensor, given: torch.dtype, *, cast: bool) -> tuple[Tensor, bool, tuple[str, ...]]:
    """Give outputs of the copy, made to run as the user's model does, in one precision; and if they depend on inputs.

    A copy that was `cast` to a precision has it throughout, whatever forward names, or a note says that it does not.
    """
    ran = None
    notes: tuple[str, ...] = ()
    with suppress(Exception), TakenBranches() as branches, Rounding(x.dtype) as rounding:  # a model may raise anything
        ran = _try(problem, x)
    if branches.seen:
        surround(problem.model, lambda x: TakenBranches())
    leave_hooks_out(problem.model, lambda x: problem.select(_try(problem, x)[0]), x, in_forward=rounding.hooks)
    if cast and (ran is None or rounding.seen):
        handles = widen(problem.model, x.dtype)
        try:
            ran = _try(problem, x)
        except Exception:
            if ran is None and given != x.dtype:
                with _shape_errors(problem):
                    raise
            for handle in handles:
                handle.remove()
            notes = (KEPT_PRECISION,)
    if ran is None:
        with _shape_errors(problem):
            ran = _try(problem, x)
    if ran[1]:
        spare_inputs(problem.model)
    y = problem.select(ran[0])
    return y.detach(), y.requires_grad, notes  # a graph would hold what every layer made


def _try(problem: Problem, x: Tensor, seed: int = 0) -> tuple[Any, bool]:
    """Give what the model returns, and whether it wrote to its input."""
    own = x.clone().requires_grad_().clone()
    with torch.enable_grad(), seeded(seed, x.device):
        returned = problem.model(own)
    return returned, own._version > 0


def _check_outputs(problem: Problem, first: Tensor, y: Tensor, depends: bool) -> None:
    """Refuse outputs `y` of the first two examples that no method can use, and examples that see each other.

    Two may be equal, and more be needed before one sees another: the others stand beside them, in both orders.
    """
    x = first[:2]
    try:
        singles = [y] if len(x) == 1 else [problem.select(_try(problem, one[None])[0]).detach() for one in x]
    except Exception as error:  # the model's own code may raise anything
        raise ValueError(f"examples interact: the model runs on two examples, but not on one alone: {error}") from error
    alone = singles[0]
    squeezed = len(x) > 1 and y.ndim > 0 and alone.shape == y.shape[1:]  # as squeeze() leaves one example
    if not (squeezed or (alone.ndim and len(alone) == 1)) or len(y) != len(x):
        raise ValueError(f"outputs must keep the leading examples axis: got shape {tuple(alone.shape)} for 1 example")
    if y.numel() == 0:
        raise ValueError(f"outputs are empty: shape {tuple(alone.shape)}")
    if y.layout is not torch.strided:
        raise TypeError(f"outputs are {y.layout}, and every entry is a constraint: pass outputs=torch.Tensor.to_dense")
    if y.is_complex():
        raise TypeError("outputs are complex, and constraints are real: pass outputs=torch.view_as_real")
    if not y.dtype.is_floating_point or not depends:
        raise ValueError("outputs do not depend on inputs; choose other outputs or check for .detach() in the model")
    if not torch.isfinite(y).all():
        raise ValueError("the model's outputs hold NaN or inf on the first example")
    together = y.reshape(len(x), -1)
    _check_alone(problem, x, together, torch.stack([one.reshape(-1) for one in singles]))
    if len(first) > 2:
        beside = _again(problem, first, seed=0)
        _check_alone(problem, x, together, beside[:2])
        _check_alone(problem, first, beside, _again(problem, first.flip(0), seed=0).flip(0))


def _check_alone(problem: Problem, x: Tensor, together: Tensor, otherwise: Tensor) -> None:
    """Refuse outputs of examples `x` that are others in other company, if the model draws no random numbers."""
    if agree(together, otherwise) or not agree(together, _again(problem, x)):
        return
    # A deep network of float32 may make much of rounding, which kernels of other batches do otherwise.
    nudged = _again(problem, x * (1 + NUDGE * torch.finfo(x.dtype).eps), seed=0)
    if float((together - otherwise).abs().max()) <= 2 * float((together - nudged).abs().max()):
        return
    raise ValueError(
        "examples interact: the outputs for one example change when another is in the batch; use a model that "
        "treats each example alone (batch statistics: track running ones; recurrence and attention: batch_first)"
    )


def _again(problem: Problem, x: Tensor, seed: int = 1) -> Tensor:
    """The outputs with other random draws."""
    return problem.select(_try(problem, x, seed)[0]).detach().reshape(len(x), -1)
