"""The pieces of a page, and numbers as it writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; `data` is what the page's script reads to make its maps answer."""

    key: str  # of the section on the page, and of its data
    title: str
    body: Markup
    data: Mapping[str, Any] = field(default_factory=dict)  # by the key of each explorer


def sentence(text: str) -> str:
    """A line that begins with a capital letter, where it begins with a word, and ends with a stop."""
    begun = text[:1].upper() + text[1:] if re.match(r"[a-z]+[\s,:]", text) else text
    return begun if begun.endswith((".", "…")) else f"{begun}."


def number(value: float) -> str:
    """Capacity in a table: one decimal below a thousand, none above; a dash where it is unknown."""
    if np.isnan(value):
        return "–"
    rounded = f"{value:z,.1f}" if abs(value) < 1000 else f"{value:z,.0f}"
    return "0" if float(rounded.replace(",", "")) == 0 else rounded.replace("-", "−")


def exact(value: float) -> str:
    """Four digits, as the page's script writes them."""
    if value == 0:
        return "0"
    shown = f"{value:z,.0f}" if abs(value) >= 1000 else f"{value:z.4g}"
    return shown.replace("-", "−")


def plain(value: Any) -> str:
    """A setting as a person writes it; collections of many values are counted."""
    if isinstance(value, float):
        return f"{value:z.4g}"
    if isinstance(value, Mapping | list | tuple) and len(value) > 8:
        return f"{len(value)} values, in the file"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
