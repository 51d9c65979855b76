"""Designs in the query of an address, so that a page can be shared: ?depth=20&residual=none, b.depth=40 for the second.

Settings at their defaults are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from capalloc._runtime.arguments import SHOWN_LENGTH
from capalloc.app.design.stack import Design

#: Type of every setting, by its name.
SETTING_TYPES: dict[str, Any] = {field.name: type(field.default) for field in fields(Design)}
BOOLEANS = {"True": True, "False": False, "true": True, "false": False, "1": True, "0": False}
SECOND = "b."
DEFAULT = Design()
#: Longest query that is read: both designs in full take less.
LONGEST_QUERY = 2000


def to_query(first: Design, second: Design | None = None) -> str:
    """The settings of one or two designs as a query, without its question mark."""
    pairs = _changed(first, "")
    if second is not None:
        pairs += _changed(second, SECOND) or [(f"{SECOND}depth", str(second.depth))]
    return urlencode(pairs, safe="/(),")


def from_query(query: str) -> tuple[Design, Design | None]:
    """Read what `to_query` wrote, with or without a question mark; the second is there if any of its settings is.

    Raises:
        ValueError: an unknown or repeated setting, or a value that it cannot take.

    """
    if len(query) > LONGEST_QUERY:
        raise ValueError(f"the address holds {len(query)} characters of settings, at most {LONGEST_QUERY} are read")
    found: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for key, value in parse_qsl(query.removeprefix("?"), keep_blank_values=True):
        name = key.removeprefix(SECOND)
        settings = found[key.startswith(SECOND)]
        if name not in SETTING_TYPES:
            raise ValueError(f"the address sets {key!r}, which is no setting; there are {', '.join(SETTING_TYPES)}")
        if name in settings:
            raise ValueError(f"the address sets {key!r} twice; keep one")
        settings[name] = value
    first, second = found
    return _design(first), _design(second) if second else None


def from_settings(pairs: Iterable[str], start: Design | None) -> Design:
    """The design of settings written as `name=value`, the others as in `start`, or at their defaults.

    Raises:
        ValueError: a pair of another form, an unknown or repeated setting, or a value that it cannot take.

    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in SETTING_TYPES:
            raise ValueError(f"a setting must be name=value, got {pair!r}; there are {', '.join(SETTING_TYPES)}")
        if name in found:
            raise ValueError(f"{name} is set twice; keep one")
        found[name] = value
    return _design(found, start or DEFAULT)


def _changed(design: Design, prefix: str) -> list[tuple[str, str]]:
    return [
        (prefix + name, written(value))
        for name in SETTING_TYPES
        if (value := getattr(design, name)) != getattr(DEFAULT, name)
    ]


def written(value: Any) -> str:
    """A setting as an address has it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def widths_of(text: str) -> tuple[int, ...]:
    """Widths with commas between, such as `16, 32, 64`; none where nothing is written."""
    try:
        return tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise ValueError(f"stages must be whole numbers with commas between, got {text[:SHOWN_LENGTH]!r}") from None


def _design(settings: dict[str, str], start: Design = DEFAULT) -> Design:
    told: dict[str, Any] = {name: _value(name, text) for name, text in settings.items()}
    return replace(start, **told)


def _value(name: str, text: str) -> int | float | str | tuple[int, ...]:
    kind = SETTING_TYPES[name]
    if kind is tuple:
        return widths_of(text)
    if kind is bool:
        if text not in BOOLEANS:
            raise ValueError(f"{name} must be True or False, got {text!r}")
        return BOOLEANS[text]
    try:
        value: int | float | str = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {what}, got {text!r}") from None
    return value
