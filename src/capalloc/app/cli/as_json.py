"""Results as JSON: numbers by name, and null for what is no number."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import typer

from capalloc.results.allocation import Allocation
from capalloc.results.decoupling import Decoupling
from capalloc.results.diagnosis import Diagnosis
from capalloc.results.kinds import Result
from capalloc.results.receptive_field import ReceptiveField
from capalloc.results.scaling import Scaling
from capalloc.results.shattering import Shattering

#: What each kind of result says first, and the rows of its tables; maps of inputs are for files.
SAID: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Allocation: (("total", "bias"), ("params",)),
    Decoupling: ((), tuple(Decoupling.ROWS)),
    Diagnosis: (("summary", "advice"), tuple(Diagnosis.ROWS)),
    ReceptiveField: (("shown_position", "of", "gates", "area_68", "area_95", "moving", "notes"), ("axes",)),
    Scaling: (("phase", "T", "skip_share", "total_gain", "advice"), tuple(Scaling.ROWS)),
    Shattering: (("index", "correlation", "advice"), tuple(Shattering.ROWS)),
}


def as_dict(result: Result) -> dict[str, Any]:
    """The numbers of a result, but for its maps."""
    heads, tables = SAID[type(result)]
    said: dict[str, Any] = {"result": type(result).__name__}
    said |= {name: getattr(result, name) for name in heads}
    if not isinstance(result, ReceptiveField):
        said["settings"] = result.to_xarray().attrs
    return said | {rows: records(result.to_pandas(rows)) for rows in tables}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A mapping for each row, the index among its entries."""
    found: list[dict[str, Any]] = frame.reset_index().to_dict("records")
    return found


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON value on stdout."""
    typer.echo(json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False))


def plain(value: Any) -> Any:
    """The same of JSON's own types; numbers that are not finite are null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, PathLike):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
