"""The check of arguments that every public function shares: their annotations, at its call.

A range, or what two arguments have to do with each other, each function checks itself; so are a model and its inputs,
which `prepare` looks at.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, wraps
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np
from numpy.typing import ArrayLike

P = ParamSpec("P")
R = TypeVar("R")
Kind = TypeVar("Kind")

#: Annotations of what has a check of its own, which knows more of it, and of what takes texts among its numbers.
ELSEWHERE = frozenset(
    {
        *("ModelLike", "Tensor | Iterable[Any]", "str | Elementwise", "Partition | None"),
        *(
            "MeasureSolver",
            "PropagateSolver",
            "InputMetricLike",
            "str | float | CovarianceEstimator",
            "Labels | None",
            "Distributed",
        ),
    }
)
ARRAY_LIKES = frozenset(get_args(ArrayLike))
LARGEST_INTEGER = 2**63
MISFIT = object()
#: Characters of a value that a message shows.
SHOWN_LENGTH = 60
TYPE_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a text",
    type(None): "None",
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments of another type than a function's annotations say, with their name, before it begins.

    Numbers of numpy count as Python's, arrays and tensors as the lists in them where those are asked for.

    The function then raises TypeError.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        signature, hints = _signature(function)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__qualname__.removesuffix('.__init__')}: {error}") from None
        for name, value in bound.arguments.items():
            if name not in hints:
                continue
            fitting = next((v for v in _readings(value) if _fits(v, hints[name])), MISFIT)
            if fitting is MISFIT:
                raise TypeError(f"{name} must be {_words(hints[name])}, got {_shown(value)}")
            bound.arguments[name] = fitting
        return function(*bound.args, **bound.kwargs)

    return call


def checked_fields(kind: type[Kind]) -> type[Kind]:
    """Let a class check what it is made of, as `checked` does."""
    kind.__init__ = checked(kind.__init__)  # type: ignore[method-assign]
    return kind


@contextmanager
def blamed(argument: str) -> Iterator[None]:
    """Say of an error of the user's own function which argument that was."""
    try:
        yield
    except Exception as error:
        if (note := f"raised by the function given as {argument}") not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


@cache
def _signature(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    """Give the signature of a function and the types of its arguments, as far as they can be told."""
    inner = inspect.unwrap(function)
    signature, known = inspect.signature(function), {**vars(_module(inner)), **getattr(inner, "__globals__", {})}
    hints = {}
    for parameter in signature.parameters.values():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        annotation = parameter.annotation
        if annotation in ELSEWHERE or variadic or annotation is parameter.empty:
            continue
        with suppress(NameError):  # of what only a type checker imports
            hints[parameter.name] = eval(annotation, known) if isinstance(annotation, str) else annotation
    return signature, hints


def _module(function: Callable[..., Any]) -> types.ModuleType:
    return inspect.getmodule(function) or types.ModuleType("none")


def _readings(value: Any) -> Iterator[Any]:
    """A value, and what else it can be read as: an array as numbers, a whole number beyond 64 bits as a real one."""
    yield value
    if isinstance(value, (np.generic, np.ndarray)) or (_is_tensor(value) and not value.is_meta):
        yield value.tolist()
    elif isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
        yield float(value)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # results need none
    return torch is not None and isinstance(value, torch.Tensor)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is np.ndarray:
        return _numeric(value)
    if origin in (Union, types.UnionType):
        if set(inner) >= ARRAY_LIKES:
            return _numeric(value) or any(_fits(value, part) for part in set(inner) - ARRAY_LIKES)
        return any(_fits(value, part) for part in inner)
    if origin is Literal:  # which text, the function says
        return any(type(value) is type(part) for part in inner)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, (bool, np.bool_))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST_INTEGER
    if hint is float:
        small = not isinstance(value, int) or abs(value) < LARGEST_INTEGER
        return isinstance(value, (int, float)) and not isinstance(value, bool) and small
    if origin is None:
        protocol = getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)
        return not isinstance(hint, type) or protocol or isinstance(value, hint)
    return _holds(value, origin, inner)


def _holds(value: Any, origin: Any, inner: tuple[Any, ...]) -> bool:
    """Tell whether a container, a function or a class is one of its kind."""
    if origin is Callable:
        return callable(value)
    if origin is type:
        return isinstance(value, type) and issubclass(value, inner[0])
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if origin is Iterable:
        return isinstance(value, Iterable)
    if issubclass(origin, Sequence):
        listed = isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and not _is_tensor(value)
        return listed and all(_fits(item, inner[0]) for item in value)
    return not isinstance(origin, type) or isinstance(value, origin)


def _numeric(value: Any) -> bool:
    """Tell whether a value is an array of real numbers, or makes one."""
    if _is_tensor(value):
        return not value.is_complex()
    if isinstance(value, (str, bytes, type(None))):
        return False
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except (ValueError, TypeError):
        return False


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if hint in TYPE_WORDS:
        return TYPE_WORDS[hint]
    if origin in (Union, types.UnionType):
        arrays = set(inner) >= ARRAY_LIKES
        parts = [part for part in inner if not (arrays and part in ARRAY_LIKES)]
        return " or ".join(dict.fromkeys([*(["real numbers"] if arrays else []), *map(_words, parts)]))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is Callable:
        return "a function"
    if origin is np.ndarray:
        return "real numbers"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if origin is not None and inner and origin is not type:
        return f"a sequence of {_words(inner[0]).removeprefix('an ').removeprefix('a ')}s"
    name = getattr(hint if origin is None else origin, "__name__", str(hint))
    return f"a {name}" if name[0] not in "AEIOU" else f"an {name}"


def _shown(value: Any) -> str:
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None), list, tuple, dict)):
        text = repr(value)
        return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."
    return type(value).__name__ if not isinstance(value, type) else f"the class {value.__name__}"
