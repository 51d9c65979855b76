"""`capalloc compare`: the agreement of two saved capacity maps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from capalloc.app.cli.as_json import records
from capalloc.app.cli.deliver import show
from capalloc.app.cli.options import Verbosity
from capalloc.app.cli.tables import LARGEST, table_of
from capalloc.results import load
from capalloc.results.allocation import Allocation
from capalloc.results.comparison import correlation, total_variation


def run_compare(first: Path, second: Path, verbosity: Verbosity) -> None:
    """Run `capalloc compare`."""
    a, b = (_allocation(path) for path in (first, second))
    facts, tensors = agreement(a, b), differences(a, b)
    numbers = {"first": first, "second": second, **facts, "params": records(tensors)}
    rows = [
        [str(name), *(f"{tensors.loc[name, column]:,.2f}" for column in tensors.columns)]
        for name in tensors.index[:LARGEST]
    ]
    title = "parameter tensors that differ most"
    table = table_of(title, ["parameter tensor", first.stem, second.stem, "difference"], rows)
    lines = (f"{name.replace('_', ' ')}: {'–' if math.isnan(v) else f'{v:,.6g}'}" for name, v in facts.items())
    show(verbosity, numbers, table, *lines)


def agreement(a: Allocation, b: Allocation) -> dict[str, float]:
    """Correlation, total-variation distance and totals; NaN where a map that is constant or empty has none.

    Raises:
        ValueError: the maps differ in shape.

    """
    if a.capacity.shape != b.capacity.shape:
        raise ValueError(
            f"the maps differ in shape: {a.capacity.shape} and {b.capacity.shape}; compare results on the same inputs"
        )
    return {
        "correlation": _or_nan(correlation, a, b),
        "total_variation": _or_nan(total_variation, a, b),
        "first_total": a.total,
        "second_total": b.total,
        "first_bias": a.bias,
        "second_bias": b.bias,
    }


def differences(a: Allocation, b: Allocation) -> pd.DataFrame:
    """Capacity by parameter tensor, 0 where one has none of the name; the largest difference first."""
    both = pd.DataFrame({"first": a.by_parameter.to_series(), "second": b.by_parameter.to_series()}).fillna(0.0)
    both["difference"] = both["second"] - both["first"]
    order = both["difference"].abs().sort_values(ascending=False, kind="stable").index
    return both.loc[order].rename_axis("parameter")


def _or_nan(measure: Any, a: Allocation, b: Allocation) -> float:
    try:
        return float(measure(a, b))
    except ValueError:
        return math.nan


def _allocation(path: Path) -> Allocation:
    found = load(path)
    if not isinstance(found, Allocation):
        raise ValueError(f"{path} holds a {type(found).__name__}; compare takes allocations, of measure or propagate")
    return found
