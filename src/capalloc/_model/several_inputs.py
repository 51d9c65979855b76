"""Several inputs as one: an example's tensors end to end in a vector, which the private copy takes apart again.

Token ids stand in it as the vectors that the model's embeddings make of them. What has no derivative, such as a mask,
is held: a constant of the model where all examples have the same, else an entry of the vector that no path starts at.

Index convention: a batch of vectors is (examples, entries); places are what results have a capacity for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from capalloc._model.embedded_tokens import Answer, AnswerLookups, Lookup, WatchLookups, owners, storage
from capalloc._model.exported import SavedModel, in_chunks
from capalloc._model.given_arguments import Arguments, Signature
from capalloc._model.nested_arguments import put_together
from capalloc._model.places import HELD, NamedInput, Places
from capalloc._model.private_copy import Widened

#: Arguments of transformers that are looked up and say of each token where it stands, or in which part.
NO_TOKENS = ("token_type_ids", "position_ids")
Batches = Callable[[], Iterable[Arguments]]


@dataclass(frozen=True)
class Argument:
    """A tensor that the model takes, or vectors that stand for token ids: where they lie in an example's vector."""

    name: str
    shape: tuple[int, ...]  # of one example
    dtype: torch.dtype
    start: int = 0
    constant: Tensor | None = None  # one example's, where all have the same: nothing of it lies in the vector
    table: Lookup | None = None  # that made the vectors

    @property
    def stop(self) -> int:
        """The entry after its last."""
        return self.start + (0 if self.constant is not None else math.prod(self.shape))

    @property
    def varies(self) -> bool:
        """Tell whether it is a signal: an input that has derivatives."""
        return self.dtype.is_floating_point

    def of(self, x: Tensor) -> Tensor:
        """Take it out of a batch of vectors, (examples, *shape)."""
        if self.constant is not None:
            return self.constant.to(x.device).expand(len(x), *self.shape).clone()
        flat = x[:, self.start : self.stop]
        found = flat.unflatten(1, self.shape) if self.shape else flat[:, 0]
        return found if self.varies else found.to(self.dtype)


@dataclass(frozen=True)
class Layout:
    """The arguments of a model, and where they lie in the vector of an example."""

    arguments: tuple[Argument, ...]
    vectors: tuple[Argument, ...]  # of token ids, under the name of their argument
    answers: tuple[Answer | None, ...]  # for each look-up of a forward pass
    frame: Mapping[str, Any] | None  # the arguments by name, with a slot for each tensor
    dtype: torch.dtype
    notes: tuple[str, ...] = ()
    outside: Mapping[str, str] = field(default_factory=dict)  # tables that serve nothing else, and their shapes

    @property
    def size(self) -> int:
        return max(a.stop for a in (*self.arguments, *self.vectors))

    @property
    def tokens(self) -> set[str]:
        """Names of the arguments that are token ids."""
        return {v.name for v in self.vectors}

    @property
    def unlike(self) -> list[str]:
        """Names of what has no derivative, lies in the vector, and differs between the examples."""
        return [a.name for a in self.arguments if not a.varies and a.constant is None]

    def check(self, by_input: bool) -> None:
        """Refuse what a method cannot tell apart."""
        if not by_input:
            raise ValueError(
                f"this method is of one tensor of inputs, not of {', '.join(a.name for a in self.arguments)}: pass a "
                "model that takes one (in the place of token ids their vectors, to a model that starts after the "
                "embedding)"
            )

    def check_alike(self, what: str) -> None:
        """Refuse what has no derivative and differs between the examples."""
        if self.unlike:
            raise ValueError(
                f"{what} is of one call, and {', '.join(self.unlike)} differ between the examples and have no "
                "derivative: pass examples that have them alike, such as a single one"
            )

    def inside(self, params: dict[str, Any], asked_for: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Leave out of the parameters the tables that stand before the inputs, unless asked for; and say so."""
        before = "stands before the inputs, which are the vectors that it gives:"
        end = "it has no capacity" if asked_for else "not counted among the parameters"
        notes = [f"{name} ({shape}) {before} {end}" for name, shape in self.outside.items() if name in params]
        kept = {name: p for name, p in params.items() if asked_for or name not in self.outside}
        if not kept:
            before = f"{', '.join(self.outside)}, before the vectors of tokens, which are its inputs"
            raise ValueError(f"model has no parameters but {before}, so there is no capacity to allocate")
        return kept, (*notes, *self.notes)

    def places(self) -> Places:
        """Tell what results have a capacity for: an entry of a signal, or a token."""
        groups, found, count = torch.full((self.size,), HELD), [], 0
        for argument in self.arguments:
            entries = [v for v in self.vectors if v.name == argument.name] or [argument] * argument.varies
            if not entries:
                continue
            shape = argument.shape if self.tokens & {argument.name} else entries[0].shape
            number = math.prod(shape)
            for part in entries:
                own = torch.arange(number).repeat_interleave((part.stop - part.start) // number)
                groups[part.start : part.stop] = count + own
            found.append(NamedInput(argument.name, shape or (1,), is_tokens=argument.name in self.tokens))
            count += number
        return Places.of_several(tuple(found), groups)

    def pack(self, given: Mapping[str, Tensor]) -> Tensor:
        """Put a batch of arguments end to end: (examples, entries)."""
        if set(given) != {a.name for a in self.arguments}:
            raise ValueError(f"a batch has the arguments {sorted(given)}, the first {[a.name for a in self.arguments]}")
        x = torch.zeros(_length(given), self.size, dtype=self.dtype)
        for a in (*self.arguments, *self.vectors):
            value = given[a.name].detach()
            if a.table is not None:
                value = _looked_up(a, value)
            if tuple(value.shape[1:]) != a.shape:
                raise ValueError(f"batches differ in the shape of {a.name!r}: {tuple(value.shape[1:])} after {a.shape}")
            if a.constant is None:
                flat = value.reshape(len(value), -1).to(x)
                if not a.varies and not torch.equal(flat.to(value), value.reshape(len(value), -1)):
                    raise ValueError(f"{a.name!r} holds integers that {self.dtype} cannot keep: use model.float()")
                x[:, a.start : a.stop] = flat
        return x

    def call(self, forward: Callable[..., Any], x: Tensor) -> Any:
        """Call a model on a batch of vectors."""
        own = {a.name: a.of(x) for a in self.arguments}
        vectors = [v.of(x) for v in self.vectors]
        with AnswerLookups(self.answers, vectors):
            return _run(forward, self.frame, own)


@dataclass(frozen=True)
class Packed:
    """Batches of vectors, made anew from the user's own each time they are gone through."""

    batches: Batches
    layout: Layout

    def __iter__(self) -> Iterator[Tensor]:
        return (self.layout.pack(given.tensors) for given in self.batches())


class PackedForward:
    """The forward of a private copy that takes vectors; copied with the copy."""

    def __init__(self, forward: Callable[..., Any], layout: Layout, size: int | None) -> None:
        self.inner = forward
        self.layout = layout
        self.size = size  # the only number of examples, if it is one: look-ups are answered chunk by chunk

    def __call__(self, x: Tensor) -> Any:
        """Run the model's own forward."""
        return in_chunks(lambda chunk: self.layout.call(self.inner, *chunk), [x], self.size)


def packed(
    private: nn.Module, own: torch.dtype, found: Arguments | Callable[[], Iterator[Arguments]]
) -> tuple[Tensor | Packed, Layout]:
    """Make a private copy take vectors, and make vectors of the arguments that were read.

    Args:
        private: the copy.
        own: the precision of the user's model.
        found: the arguments.

    Raises:
        ValueError, TypeError: arguments that the model does not take, that are no examples, or without a derivative.

    """
    batches: Batches = (lambda: [found]) if isinstance(found, Arguments) else found
    eager = getattr(private, "_orig_mod", None)  # what torch.compile compiles
    size = private.fixed_size if isinstance(private, SavedModel) else None
    layout = _layout(private, own, batches, size or 2)
    private.forward = PackedForward(private.forward if eager is None else eager, layout, size)
    return layout.pack(found.tensors) if isinstance(found, Arguments) else Packed(batches, layout), layout


def _layout(model: nn.Module, own: torch.dtype, batches: Batches, number: int) -> Layout:
    """Find out by a run on `number` examples, two of them, which integers are token ids; then lay the arguments out."""
    first = next((given for given in batches() if _length(given.tensors)), None)
    if first is None:
        raise ValueError("inputs hold no example; pass tensors with a leading examples axis of length >= 1")
    for name, value in first.tensors.items():
        _check_argument(name, value)
    dtype = _precision(own, first)
    like = next(model.parameters())
    two = {
        name: v[[min(k, 1, len(v) - 1) for k in range(number)]].detach().clone().to(like.device)
        for name, v in first.tensors.items()
    }
    two = {name: v.to(like.dtype) if v.is_floating_point() else v for name, v in two.items()}
    wide = nullcontext() if own is like.dtype else Widened(like.dtype)  # of what the user's model names
    watch = _watched(model, two, first.frame, wide)
    alike = _alike(batches, two)
    owned = _owned(model, two, watch, alike)
    vectors, answers = _vectors(two, owned)
    held = alike | {v.name: torch.zeros_like(two[v.name][0]) for v in vectors if storage(two[v.name]) not in watch.read}
    arguments = [Argument(name, tuple(v.shape[1:]), v.dtype, constant=held.get(name)) for name, v in two.items()]
    if not vectors and not any(a.varies for a in arguments):
        raise _without_derivative(two)
    placed = _end_to_end([*arguments, *(replace(v, dtype=dtype) for v in vectors)])
    outside = _outside(model, [v.table for v in vectors if v.table], watch.read)
    notes = _beside(model, [one for one, owner in owned if owner is None and storage(one.ids) in watch.made])
    n = len(arguments)
    return Layout(placed[:n], placed[n:], answers, first.frame, dtype, notes, outside)


def _run(forward: Callable[..., Any], frame: Mapping[str, Any] | None, own: Mapping[str, Tensor]) -> Any:
    return forward(*own.values()) if frame is None else forward(**put_together(frame, own))


def _watched(
    model: nn.Module, two: Mapping[str, Tensor], frame: Mapping[str, Any] | None, wide: AbstractContextManager[Any]
) -> WatchLookups:
    """Run the model on two examples and note its look-ups."""
    watch = WatchLookups(two.values())
    with torch.no_grad(), watch, wide:
        try:
            _run(getattr(model, "_orig_mod", model), frame, two)
        except Exception as error:  # the model's own code may raise anything
            beyond = isinstance(error, IndexError)  # of token ids that a table has no row for
            if not (beyond or watch.lookups or any(v.is_floating_point() for v in two.values())):
                raise _without_derivative(two) from error
            shown = ", ".join(f"{name} (examples, {', '.join(map(str, v.shape[1:]))})" for name, v in two.items())
            names = ", ".join(Signature.of(model).names)
            alone = f", or one tensor alone, such as inputs[{next(iter(two))!r}]" if frame else ""
            raise ValueError(
                f"model does not accept {shown}: {error}; its arguments are {names}: give those by name{alone} (a dict "
                "that is itself an argument, by that argument's name)"
            ) from error
    return watch


def _without_derivative(given: Mapping[str, Tensor]) -> TypeError:
    kinds = ", ".join(f"{name} is {v.dtype}" for name, v in given.items())
    return TypeError(
        f"inputs are integers that no embedding of the model looks up ({kinds}), and gradients need floating point: "
        "convert them, or pass their vectors to a model that starts after the embedding"
    )


def _end_to_end(arguments: list[Argument]) -> tuple[Argument, ...]:
    starts = itertools.accumulate((a.stop for a in arguments), initial=0)
    return tuple(replace(a, start=start) for a, start in zip(arguments, starts, strict=False))


def _precision(own: torch.dtype, first: Arguments) -> torch.dtype:
    """The one precision of what has derivatives; that of the parameters where there are but token ids."""
    found = {v.dtype for v in first.tensors.values() if v.is_floating_point()}
    if len(found) > 1:
        raise TypeError(f"inputs are of {', '.join(sorted(map(str, found)))}: convert them to one")
    return found.pop() if found else own


def _is_no_token(name: str) -> bool:
    return name.rpartition(".")[2] in NO_TOKENS


def _owned(
    model: nn.Module, two: Mapping[str, Tensor], watch: WatchLookups, alike: Mapping[str, Tensor]
) -> list[tuple[Lookup, tuple[str, bool] | None]]:
    """Tell of each look-up whose token ids it asks for; None for positions, kinds of tokens and the like."""
    tables = {id(t) for t in (*model.parameters(), *model.buffers())}
    found = [
        (one, None if owner and (_is_no_token(owner[0]) or (one.is_index and id(one.table) not in tables)) else owner)
        for one, owner in zip(watch.lookups, owners(two, watch), strict=True)
    ]
    changing = any(owner and owner[0] not in alike for _, owner in found)
    return [(one, None if owner and changing and owner[0] in alike else owner) for one, owner in found]


def _vectors(
    given: Mapping[str, Tensor], owned: Iterable[tuple[Lookup, tuple[str, bool] | None]]
) -> tuple[list[Argument], tuple[Answer | None, ...]]:
    """Make the vectors of each argument by each table, and the answers to look-ups."""
    vectors: list[Argument] = []
    answers: list[Answer | None] = []
    for one, owner in owned:
        if owner is None:
            answers.append(None)
            continue
        name, tokens_first = owner
        if one.arguments.get("max_norm") is not None:
            raise ValueError(f"the embedding of {name!r} renormalises its table (max_norm), which a copy must not")
        known = [k for k, v in enumerate(vectors) if v.name == name and v.table and v.table.table is one.table]
        if not known:
            shape = (*given[name].shape[1:], one.table.shape[1])
            table = replace(one, ids=one.ids.new_zeros(0))  # those of two examples are no part of it
            vectors.append(Argument(name, shape, one.table.dtype, table=table))
        answers.append(Answer(known[0] if known else len(vectors) - 1, tokens_first))
    return vectors, tuple(answers)


def _alike(batches: Batches, two: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find what has no derivative and is the same in all examples: one example's."""
    found = {name: v[0].clone() for name, v in two.items() if not v.is_floating_point()}
    for given in (one.tensors for one in batches()):
        for name, value in (*found.items(),):
            own = given.get(name, value[None]).to(value.device)
            if own.shape[1:] != value.shape or not bool((own == value).all()):
                del found[name]
    return found


def _outside(model: nn.Module, tables: Iterable[Lookup], read: set[int]) -> dict[str, str]:
    """Find the parameters that are tables and serve nothing but to make the inputs, with their shapes."""
    alone = {id(t.table) for t in tables if storage(t.table) not in read}
    return {name: " x ".join(map(str, p.shape)) for name, p in model.named_parameters() if id(p) in alone}


def _beside(model: nn.Module, lookups: Iterable[Lookup]) -> tuple[str, ...]:
    """Say which tables the model also asks for what it makes of integers that it was given."""
    asked = {id(one.table) for one in lookups}
    names = [name for name, p in (*model.named_parameters(), *model.named_buffers()) if id(p) in asked]
    if not names:
        return ()
    return (
        f"what {', '.join(names)} gives for integers that the model makes of its inputs is a constant of each example",
    )


def _looked_up(vectors: Argument, ids: Tensor) -> Tensor:
    assert vectors.table is not None
    rows = len(vectors.table.table)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
        raise ValueError(
            f"token ids {vectors.name!r} must be in 0 .. {rows - 1}, got values {int(ids.min())} .. {int(ids.max())}"
        )
    with torch.no_grad():
        return vectors.table(ids.to(vectors.table.table.device))


def _check_argument(name: str, value: Tensor) -> None:
    if value.layout is not torch.strided or value.dtype.is_complex or value.is_meta:
        raise TypeError(
            f"inputs[{name!r}] is {value.dtype}, {value.layout} on {value.device}: pass a plain real tensor"
        )
    if 0 in value.shape[1:]:
        raise ValueError(f"inputs[{name!r}] has an axis of length 0: shape {tuple(value.shape)}")


def _length(given: Mapping[str, Tensor]) -> int:
    """Give the number of examples, which all arguments have."""
    sizes = {name: v.shape[0] if v.ndim else None for name, v in given.items()}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        shown = ", ".join(f"{name} {tuple(v.shape)}" for name, v in given.items())
        raise ValueError(f"inputs must have one leading examples axis of one length, got {shown}")
    return next(n for n in sizes.values() if n is not None)
