"""`capalloc compare`: the agreement of two saved capacity maps."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from capalloc.app.cli.as_json import records
from capalloc.app.cli.deliver import show
from capalloc.app.cli.options import Verbosity
from capalloc.app.cli.tables import LARGEST, table_of
from capalloc.results import load
from capalloc.results.allocation import Allocation
from capalloc.results.comparison import correlation, same_data, total_variation


def run_compare(first: Path, second: Path, verbosity: Verbosity) -> None:
    """Run `capalloc compare`."""
    a, b = (_allocation(path) for path in (first, second))
    facts, tensors = agreement(a, b), differences(a, b)
    stands = {f"{place}_examples": found.attrs.get("num_examples") for place, found in (("first", a), ("second", b))}
    numbers = {"first": first, "second": second, **facts, **stands, "same_data": same_data(a, b)}
    numbers["params"] = records(tensors)
    rows = [
        [str(name), *(f"{tensors.loc[name, column]:z,.2f}" for column in tensors.columns)]
        for name in tensors.index[:LARGEST]
    ]
    title = "parameter tensors that differ most"
    table = table_of(title, ["parameter tensor", first.stem, second.stem, "difference"], rows)
    lines = [f"{name.replace('_', ' ')}: {'–' if math.isnan(v) else f'{v:z,.6g}'}" for name, v in facts.items()]
    lines += [f"{name.replace('_', ' ')}: {count:,}" for name, count in stands.items() if count is not None]
    if same_data(a, b) is False:
        lines.append(
            "the two stand on different examples: what differs may be the data; make both on the same ones, or compare "
            "totals and maps knowing so"
        )
    show(verbosity, numbers, table, *lines)


def agreement(a: Allocation, b: Allocation) -> dict[str, float]:
    """Correlation and total-variation distance with and without the constant input, and totals.

    A map that is constant or empty has no correlation or distance: NaN.

    Raises:
        ValueError: the maps differ in shape.

    """
    if a.capacity.shape != b.capacity.shape:
        raise ValueError(
            f"the maps differ in shape: {a.capacity.shape} and {b.capacity.shape}; compare results on the same inputs"
        )
    return {
        "total_variation": _or_nan(total_variation, a, b),
        "total_variation_of_inputs": _or_nan(partial(total_variation, constant=False), a, b),
        "correlation": _or_nan(correlation, a, b),
        "correlation_with_constant": _or_nan(partial(correlation, constant=True), a, b),
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
