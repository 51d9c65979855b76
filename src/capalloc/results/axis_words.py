"""Words for the axes of a map, where a result knows more of them than their places."""

from __future__ import annotations

from capalloc.results.allocation import Allocation
from capalloc.results.base import MADE


def worded(result: Allocation) -> Allocation:
    """The same over axes named "token" and "feature", or "channel" and "position", where it is known to be."""
    words = result.attrs.get(MADE, {}).get("axes")
    if not words or result.capacity.ndim != len(words):
        return result
    named = dict(zip(map(str, result.capacity.dims), words, strict=True))
    table = None if result.table is None else result.table.rename(named)
    return result.replace(capacity=result.capacity.rename(named), table=table)
