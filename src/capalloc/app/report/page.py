"""The page: sections of every result, joined."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from capalloc._runtime.files import write_text
from capalloc.app.report.allocation_sections import allocation_sections
from capalloc.app.report.depth_sections import decoupling_sections, depth_sections
from capalloc.app.report.evolution_section import evolution_sections
from capalloc.app.report.explorer import palette
from capalloc.app.report.field_section import field_sections
from capalloc.app.report.section import Fact, Section, Settings, settings
from capalloc.results.allocation import Allocation
from capalloc.results.decoupling import Decoupling
from capalloc.results.diagnosis import Diagnosis
from capalloc.results.evolution import Evolution
from capalloc.results.kinds import KINDS, Result
from capalloc.results.receptive_field import ReceptiveField
from capalloc.results.scaling import Scaling
from capalloc.results.shattering import Shattering
from capalloc.results.templating import render


def write_report(
    path: str | os.PathLike[str],
    results: Mapping[str, Result],
    title: str = "Capacity allocation",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write `report_html` to a file, whole or not at all.

    Raises:
        FileNotFoundError, IsADirectoryError: `path` is no place for a file.
        ValueError, TypeError: as `report_html`.

    """
    write_text(path, report_html(results, title, facts))


def report_html(
    results: Mapping[str, Result],
    title: str = "Capacity allocation",
    facts: Mapping[str, str] | None = None,
) -> str:
    """A page in one HTML file about results of any kind, with no network and no model.

    Allocations over the same inputs are drawn on one scale and held against each other. A map reads out its values
    under the pointer or the arrow keys, for all parameters or one tensor; without a script, and on paper, all maps and
    tables are still there. Large maps are rounded or averaged so that the page stays small, which it then says.

    Args:
        results: by the name that the page gives each, such as "measured" and "predicted".
        title: of the page.
        facts: what else to state at its head, name to value.

    Raises:
        ValueError: there is no result.
        TypeError: something is no result.

    """
    kinds = _by_kind(results)
    sections = [
        *allocation_sections(kinds[Allocation]),
        *field_sections(kinds[ReceptiveField]),
        *decoupling_sections(kinds[Decoupling]),
        *depth_sections({n: r for kind in (Diagnosis, Scaling, Shattering) for n, r in kinds[kind].items()}),
        *evolution_sections(kinds[Evolution]),
    ]
    made = [_settings(name, result) for name, result in results.items()]
    page = render(
        "report/report.html",
        title=title,
        facts=[Fact(str(name), str(value)) for name, value in (facts or {}).items()],
        sections=sections,
        allocations=bool(kinds[Allocation]),
        notes=[(s.name, s.notes) for s in made if s.notes],
        made=made,
        data=_data(sections),
    )
    return str(page)


def _by_kind(results: Mapping[str, Result]) -> dict[type[Any], dict[str, Any]]:
    if not results:
        raise ValueError("a report needs at least one result; give a mapping of names to results")
    kinds: dict[type[Any], dict[str, Any]] = {kind: {} for kind in KINDS.values()}
    for name, result in results.items():
        kind = next((kind for kind in kinds if isinstance(result, kind)), None)
        if kind is None:
            names = ", ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{name!r} is a {type(result).__name__}; a report shows results: {names}")
        kinds[kind][name] = result
    return kinds


def _settings(name: str, result: Result) -> Settings:
    kind = type(result).__name__
    if isinstance(result, Allocation):
        return settings(name, kind, result.attrs)
    if isinstance(result, ReceptiveField):
        own = {"output_position": result.shown_position, "of": result.of, "gates": result.gates}
        return settings(name, kind, own | {"notes": list(result.notes)})
    if isinstance(result, Evolution):
        return settings(name, kind, result.settings)
    return settings(name, kind, result.data.attrs)


def _data(sections: list[Section]) -> dict[str, Any]:
    return {
        "explorers": {section.key: section.data for section in sections if section.data is not None},
        "sequential": palette(signed=False),
        "diverging": palette(signed=True),
    }
