"""Arguments are checked by their annotations, and named where they do not fit."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor, nn

import capalloc
from capalloc import design, gates, linear, solvers
from capalloc._runtime.arguments import blamed, checked, checked_fields


@checked
def called(
    count: int = 1,
    share: float = 0.5,
    flag: bool = False,
    word: str = "",
    choice: Literal["a", "b"] | None = None,
    numbers: ArrayLike = 0.0,
    places: Sequence[int] | int = 0,
    names: Mapping[str, float] | None = None,
    function: Callable[[Any], Any] = abs,
    tensor: Tensor | None = None,
    kind: type[nn.Module] = nn.Module,
    given: Iterable[Any] = (),
    model: nn.Module | None = None,
    anything: Any = None,
    *more: int,
) -> dict[str, Any]:
    return dict(locals())


TAKEN = [
    {"count": 3},
    {"count": np.int64(3)},
    {"count": torch.tensor(3)},
    {"share": 1},
    {"share": math.inf},
    {"share": 10**30},
    {"share": np.float32(0.5)},
    {"flag": np.bool_(True)},
    {"choice": "c"},  # which text, the function says
    {"numbers": [1, 2.5]},
    {"numbers": torch.ones(3)},
    {"numbers": xr.DataArray([1.0])},
    {"places": (1, 2)},
    {"places": np.array([1, 2])},
    {"places": torch.tensor([1, 2])},
    {"names": {"a": 1}},
    {"function": len},
    {"tensor": torch.ones(2)},
    {"kind": nn.Linear},
    {"given": iter(())},
    {"model": nn.ReLU()},
    {"anything": object()},
]
REFUSED = [
    ({"count": True}, "count must be an integer, got True"),
    ({"count": 1.5}, r"count must be an integer, got 1\.5"),
    ({"count": math.inf}, "count must be an integer, got inf"),
    ({"count": 2**70}, "count must be an integer"),
    ({"share": "x" * 99}, r"share must be a number, got 'x{59}\.\.\."),
    ({"share": True}, "share must be a number, got True"),
    ({"flag": 1}, "flag must be True or False, got 1"),
    ({"word": b"b"}, "word must be a text, got b'b'"),
    ({"choice": 3}, "choice must be 'a' or 'b' or None, got 3"),
    ({"numbers": "12"}, "numbers must be real numbers, got '12'"),
    ({"numbers": [[1], [2, 3]]}, "numbers must be real numbers"),
    ({"numbers": torch.ones(2, dtype=torch.complex64)}, "numbers must be real numbers, got Tensor"),
    ({"places": torch.ones(2)}, "places must be a sequence of integers or an integer, got Tensor"),
    ({"places": "12"}, "places must be a sequence of integers"),
    ({"names": {1: 2.0}}, "names must be a mapping or None"),
    ({"function": 3}, "function must be a function, got 3"),
    ({"tensor": [1.0]}, "tensor must be a Tensor or None"),
    ({"kind": nn.Linear(1, 1)}, "kind must be a type, got Linear"),
    ({"given": 3}, "given must be a sequence of Anys, got 3"),
    ({"model": nn.Module}, "model must be a Module or None, got the class Module"),
    ({"other": 3}, "called: got an unexpected keyword argument 'other'"),
]


@pytest.mark.parametrize("arguments", TAKEN)
def test_what_fits_is_taken(arguments):
    ((name, value),) = arguments.items()
    taken = called(**arguments)[name]
    if name in ("count", "share", "places"):
        assert type(taken) in (int, float, tuple, list)
        np.testing.assert_allclose(taken, np.asarray(value, dtype=float))
    else:
        assert taken is value


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        called(**arguments)


def test_a_class_checks_what_it_is_made_of():
    @checked_fields
    @dataclass(frozen=True)
    class Setting:
        size: int = 3

    assert Setting(np.int32(4)).size == 4
    assert str(inspect.signature(Setting)) == "(size: 'int' = 3) -> None"
    with pytest.raises(TypeError, match="size must be an integer, got 'four'"):
        Setting("four")
    with pytest.raises(TypeError, match="Setting: too many positional arguments"):
        Setting(1, 2)


def test_an_error_of_the_users_function_says_which():
    with pytest.raises(ZeroDivisionError) as caught, blamed("outputs"), blamed("outputs"):
        print(1 / 0)
    assert caught.value.__notes__ == ["raised by the function given as outputs"]
    with pytest.raises(KeyError) as caught:
        capalloc.measure(nn.Linear(3, 2), torch.randn(4, 3), outputs=lambda returned: {}["logits"])
    assert caught.value.__notes__ == ["raised by the function given as outputs"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: capalloc.measure(nn.Linear(3, 2), torch.ones(4, 3), intercept=1),
            "intercept must be True or",
        ),
        (lambda: capalloc.measure(nn.Linear(3, 2), torch.tensor(1.0)), "inputs need a leading examples axis"),
        (lambda: capalloc.measure(nn.Linear(3, 2), "inputs"), "inputs must be a tensor or an iterable of batches"),
        (lambda: linear.estimate_covariance(3), "inputs must be a tensor or an iterable of batches, got int"),
        (lambda: linear.prediction(linear.white_noise(), lags=math.inf), "lags must be an integer, got inf"),
        (lambda: capalloc.measure(nn.Linear(3, 2), torch.ones(4, 3), metric={}), "metric must be one of .*, got dict"),
        (
            lambda: capalloc.measure(nn.Linear(3, 2), torch.ones(4, 3), metric=torch.ones(3, dtype=torch.complex64)),
            "metric must hold real numbers",
        ),
        (lambda: capalloc.audit(nn.Linear(3, 2), torch.ones(4, 3), metric=3j), "metric must"),
        (lambda: solvers.Auto(dense=3), "dense must be a Dense, got 3"),
        (lambda: gates.gradient_correlation(["a"]), "rates must be real numbers"),
        (lambda: design.read("deep"), "design must be a Design, got 'deep'"),
        (
            lambda: capalloc.walk(nn.Linear(3, 2), torch.ones(2, 3), dtype=torch.int32),
            r"dtype must be a floating point type, got torch\.int32",
        ),
    ],
)
def test_public_functions_name_the_argument(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
