"""`capalloc compare`: the agreement of two saved capacity maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from capalloc.app.cli.as_json import records
from capalloc.app.cli.deliver import show
from capalloc.app.cli.options import Verbosity
from capalloc.app.cli.tables import LARGEST, table_of
from capalloc.results import load
from capalloc.results.allocation import Allocation
from capalloc.results.comparison import NULL, agreement, doubt, same_data
from capalloc.results.view import counted, estimate


def run_compare(first: Path, second: Path, verbosity: Verbosity) -> None:
    """Run `capalloc compare`."""
    a, b = (_allocation(path) for path in (first, second))
    facts, tensors = agreement(a, b), differences(a, b)
    both = {"first": a, "second": b}
    numbers: dict[str, Any] = {"first": first, "second": second, **facts, "same_data": same_data(a, b)}
    for place, found in both.items():
        own = {"total": found.total, "bias": found.bias, "certainty": found.certainty}
        numbers |= {f"{place}_{name}": v for name, v in own.items()} | {
            f"{place}_examples": found.attrs.get("num_examples")
        }
    numbers["params"] = records(tensors)
    rows = [
        [str(name), *(f"{tensors.loc[name, column]:z,.2f}" for column in tensors.columns)]
        for name in tensors.index[:LARGEST]
    ]
    title = "parameter tensors that differ most"
    table = table_of(title, ["parameter tensor", first.stem, second.stem, "difference"], rows)
    shown = {name: estimate(value, digits=".3g") for name, value in facts.items()}
    backwards = shown["correlation_backwards"]
    lines = [
        *(f"{place}: {_stands(found)}" for place, found in both.items()),
        f"total variation: {shown['total_variation']}, the constant counted; {doubt(a, b)}",
        f"total variation of inputs: {shown['total_variation_of_inputs']}",
        f"correlation: {shown['correlation']}, and {backwards} with the second map backwards, {NULL}",
    ]
    if same_data(a, b) is False:
        lines.append(
            "the two stand on different examples: what differs may be the data; make both on the same ones, or compare "
            "totals and maps knowing so"
        )
    show(verbosity, numbers, table, *lines)


def _stands(found: Allocation) -> str:
    """Words for what a map is, and what it holds."""
    examples = found.attrs.get("num_examples")
    of = "" if examples is None else f", of {examples:,} examples"
    word = f"{found.certainty}, " if found.certainty else ""
    return f"{word}{counted(found.total)} in total, {counted(found.bias)} on the constant{of}"


def differences(a: Allocation, b: Allocation) -> pd.DataFrame:
    """Capacity by parameter tensor, 0 where one has none of the name; the largest difference first."""
    both = pd.DataFrame({"first": a.by_parameter.to_series(), "second": b.by_parameter.to_series()}).fillna(0.0)
    both["difference"] = both["second"] - both["first"]
    order = both["difference"].abs().sort_values(ascending=False, kind="stable").index
    return both.loc[order].rename_axis("parameter")


def _allocation(path: Path) -> Allocation:
    found = load(path)
    if not isinstance(found, Allocation):
        raise ValueError(f"{path} holds a {type(found).__name__}; compare takes allocations, of measure or propagate")
    return found
