"""Odd values in the place of every argument of every public function."""

from __future__ import annotations

import inspect
import math
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

import capalloc
from capalloc import architectures, depth_limit, design, gates, linear, partitions, solvers
from fuzz.outcome import CLEAR, SILENT, Case, Verdict, judge

OWN_WORDS = "an error of the caller's own"


def _raising(*args: Any) -> Any:
    raise KeyError(OWN_WORDS)


#: Values that some argument may take, and that most may not.
ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2": lambda: 2,
    "10**30": lambda: 10**30,
    "0.5": lambda: 0.5,
    "-0.5": lambda: -0.5,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "'nonsense'": lambda: "nonsense",
    "''": lambda: "",
    "'3'": lambda: "3",
    "[]": lambda: [],
    "[[1, 2], [3]]": lambda: [[1, 2], [3]],
    "['a', 3]": lambda: ["a", 3],
    "{}": dict,
    "iter(())": lambda: iter(()),
    "a function of nothing": lambda: lambda: None,
    "a function to None": lambda: lambda *args: None,
    "a function that raises": lambda: _raising,
    "a module": lambda: nn.Linear(3, 3),
    "empty tensor": lambda: torch.empty(0),
    "tensor of no axes": lambda: torch.tensor(1.0),
    "tensor of NaN": lambda: torch.full((6, 4), torch.nan),
    "tensor of integers": lambda: torch.ones(6, 4, dtype=torch.int64),
    "tensor of another shape": lambda: torch.ones(6, 9),
    "tensor of three axes": lambda: torch.ones(6, 2, 2),
    "complex tensor": lambda: torch.ones(6, 4, dtype=torch.complex64),
    "float64 tensor": lambda: torch.ones(6, 4, dtype=torch.float64),
    "array of objects": lambda: np.array([None, "a"], dtype=object),
    "array of texts": lambda: np.array(["a", "b"]),
    "a path of nothing": lambda: Path("/nowhere/at/all.nc"),
    "a data type": lambda: torch.int32,
    "a device": lambda: torch.device("cpu"),
    "a DataArray": lambda: xr.DataArray([1.0, math.nan], dims="unknown"),
}
#: Values that no argument takes, if not any at all.
NEVER: dict[str, Callable[[], Any]] = {
    "object()": object,
    "the class int": lambda: int,
    "b'bytes'": lambda: b"bytes",
    "1j": lambda: 1j,
}
#: Other words for an argument.
ALSO = {
    "matrix": ("covariance",),
    "path": ("folder", "file"),
    "max_bytes": ("may be used",),
    "kinds": ("none of the results",),
    "data": ("inputs", "examples"),
    "input_shape": ("inputs",),
}
NUMBERS = torch.Generator().manual_seed(0)


@cache
def _examples() -> torch.Tensor:
    return torch.randn(6, 4, generator=NUMBERS)


@cache
def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))


@cache
def _residual() -> nn.Module:
    return architectures.make("preact-resnet")


@cache
def _allocation() -> capalloc.Allocation:
    return capalloc.measure(_network(), _examples())


@cache
def _saved() -> str:
    path = str(Path(tempfile.mkdtemp()) / "saved.nc")
    _allocation().save(path)
    return path


@cache
def _process() -> linear.Process:
    return linear.autoregression([0.5])


def _blocks() -> list[depth_limit.WalkBlock]:
    return [depth_limit.WalkBlock(depth_limit.StepLaw([0.25, 0.5, 0.25]), 0.5)] * 3


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _on_model(**more: Any) -> dict[str, Any]:
    return {"model": _network(), "inputs": _examples(), **more}


#: Every public function with arguments that it takes.
BASES: dict[Callable[..., Any], Callable[[], dict[str, Any]]] = {
    capalloc.measure: _on_model,
    capalloc.propagate: lambda: _on_model(solver="markov"),
    capalloc.walk: _on_model,
    capalloc.receptive_field: _on_model,
    capalloc.decoupling: _on_model,
    capalloc.diagnose: _on_model,
    capalloc.scaling: _on_model,
    capalloc.shattering: _on_model,
    capalloc.effective_parameters: _on_model,
    capalloc.output_gram: _on_model,
    capalloc.audit: lambda: _on_model(seconds=1.0),
    capalloc.prune_scores: _on_model,
    capalloc.export: _on_model,
    capalloc.balance: _on_model,
    capalloc.rank: lambda: {"models": [_network()], "inputs": _examples()},
    capalloc.correlation: lambda: {"a": _allocation(), "b": _allocation()},
    capalloc.total_variation: lambda: {"a": _allocation(), "b": _allocation()},
    capalloc.load: lambda: {"path": _saved()},
    capalloc.write_report: lambda: {
        "path": Path(tempfile.gettempdir()) / "fuzz-report.html",
        "results": {"a": _allocation()},
    },
    capalloc.Run: dict,
    solvers.Auto: dict,
    solvers.Block: dict,
    solvers.Dense: dict,
    solvers.Hessian: dict,
    solvers.Markov: dict,
    solvers.Segments: dict,
    solvers.Stochastic: dict,
    solvers.mean_eigenvalue: _on_model,
    solvers.ridge_from_noise: lambda: {"noise_variance": 0.1, "num_examples": 10, "prior_variance": 1.0},
    gates.family_rates: lambda: {"family": "scaled", "depth": 4},
    gates.gate_moments: _on_model,
    gates.gaussian_decoupling: lambda: {"activation": "relu", "correlation": 0.5},
    gates.gaussian_gate_moment: lambda: {"activation": "relu", "correlation": 0.5},
    gates.gradient_correlation: lambda: {"rates": [0.5, 0.5]},
    gates.propagate_moments: lambda: {"weights": [torch.ones(3, 2)], "gate_moments": []},
    linear.autoregression: lambda: {"coefficients": [0.5]},
    linear.white_noise: dict,
    linear.fractional_noise: lambda: {"hurst": 0.7},
    linear.sinusoids: lambda: {"frequencies": [0.1]},
    linear.empirical: lambda: {"name": "a", "series": torch.randn(200, generator=_generator())},
    linear.estimate_covariance: lambda: {"data": _examples()},
    linear.fourier_basis: lambda: {"size": 4},
    linear.principal_basis: lambda: {"covariance": torch.eye(4)},
    linear.orthonormal_basis: lambda: {"vectors": torch.eye(4)},
    linear.linear_capacity: lambda: {"jacobian": torch.ones(2, 4)},
    linear.model_jacobian: lambda: {"model": nn.Linear(4, 1, bias=False), "input_shape": (4,)},
    linear.prediction: lambda: {"process": _process(), "lags": 4},
    linear.dense_filter: lambda: {"length": 4, "generator": _generator()},
    linear.dilated_stack: lambda: {"length": 4, "generator": _generator()},
    linear.pooling_hierarchy: lambda: {"length": 9, "generator": _generator()},
    linear.recurrent_filter: lambda: {"length": 4, "generator": _generator()},
    linear.stacked_convolutions: lambda: {"length": 20, "generator": _generator()},
    linear.strided_hierarchy: lambda: {"length": 4, "generator": _generator()},
    linear.train: lambda: {
        "model": linear.dense_filter(4, _generator()),
        "task": linear.prediction(_process(), 4),
        "max_iterations": 2,
    },
    linear.Covariance: lambda: {"matrix": torch.eye(3)},
    linear.Variances: lambda: {"variances": torch.ones(3)},
    linear.Stationary: lambda: {"autocovariance": torch.tensor([1.0, 0.5])},
    linear.LowRankPlusDiagonal: lambda: {"variances": torch.ones(3), "factors": torch.ones(3, 1)},
    depth_limit.StepLaw: lambda: {"probabilities": [0.5, 0.5]},
    depth_limit.WalkBlock: lambda: {"law": depth_limit.StepLaw([0.5, 0.5])},
    depth_limit.point: lambda: {"shape": 9},
    depth_limit.chain: lambda: {"blocks": _blocks(), "start": depth_limit.point(9)},
    depth_limit.jump: lambda: {"blocks": _blocks(), "start": depth_limit.point(9)},
    depth_limit.diffusion: lambda: {"blocks": _blocks(), "start": depth_limit.point(9)},
    depth_limit.gaussian: lambda: {"blocks": _blocks(), "shape": 9},
    depth_limit.read: lambda: {"model": _residual(), "inputs": torch.randn(2, 3, 8, 8, generator=NUMBERS)},
    architectures.info: lambda: {"name": "mlp"},
    architectures.make: lambda: {"name": "mlp"},
    partitions.bands: lambda: {"edges": [0.1]},
    partitions.regions: lambda: {"capacity": _allocation().capacity},
    design.Design: dict,
    design.build: lambda: {"design": design.Design(depth=2, width=2, size=9)},
    design.code: lambda: {"design": design.Design(depth=2)},
    design.read: lambda: {"design": design.Design(depth=2, size=9)},
    design.nearest: lambda: {
        "model": design.build(design.Design(depth=2, width=2, size=9)),
        "x": torch.randn(2, 1, 9, 9, generator=NUMBERS),
    },
    design.search: lambda: {"field": 5, "like": design.Design(depth=2, size=9), "most": 1},
}


def cases(rng: random.Random) -> Iterator[Case]:
    """Every function, argument and value once, in an order of the seed's."""
    tries = [
        (function, argument, value)
        for function in BASES
        for argument in _arguments(function)
        for value in (*ODD, *NEVER)
    ]
    rng.shuffle(tries)
    for function, argument, value in tries:
        yield Case(f"{function.__name__}({argument}={value})", lambda f=function, a=argument, v=value: _try(f, a, v))


def _arguments(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _try(function: Callable[..., Any], argument: str, value: str) -> Verdict:
    annotation = str(inspect.signature(function).parameters[argument].annotation)
    never = value in NEVER and not any(taking in annotation for taking in ("Any", "Partition"))
    try:
        returned = function(**{**BASES[function](), argument: {**ODD, **NEVER}[value]()})
    except Exception as error:
        if OWN_WORDS in str(error):  # the caller's own words reach the caller
            return CLEAR, ""
        return judge(error, *ALSO.get(argument, ()), re.sub("s$", "", argument), value)
    if never:
        return SILENT, "it is taken"
    return (CLEAR, "") if _finite(returned) else (SILENT, "the answer is not finite")


def _finite(returned: Any) -> bool:
    if isinstance(returned, capalloc.Allocation):
        return bool(np.isfinite(returned.capacity).all()) and math.isfinite(returned.total)
    if isinstance(returned, torch.Tensor):
        return bool(torch.isfinite(returned).all())
    return not (isinstance(returned, float) and math.isnan(returned))
