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

from capalloc.results.base import Result


def as_dict(result: Result) -> dict[str, Any]:
    """The numbers of a result, but for its maps, which are for files."""
    view = result.view()
    tables = {rows: records(result.to_pandas(rows)) for rows in view.rows}
    return {"result": type(result).__name__, **view.values, "settings": result.data.attrs, **tables}


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
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else None  # no -0.0
    return value
