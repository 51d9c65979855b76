"""The page: sections of every result, joined."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from capalloc._runtime.arguments import checked
from capalloc._runtime.files import write_text
from capalloc.app.pages import PAGES
from capalloc.app.report.allocation_sections import allocation_sections
from capalloc.app.report.charts import draw
from capalloc.app.report.explorer import explorer_of, palette
from capalloc.app.report.found import SHOWN_AT_ONCE, Told, told
from capalloc.app.report.section import Section, plain, sentence
from capalloc.results.allocation import Allocation, worded
from capalloc.results.base import Result
from capalloc.results.kinds import RESULTS
from capalloc.results.view import Fact, View


@checked
def write_report(
    path: str | os.PathLike[str],
    results: Mapping[str, Result],
    title: str = "Capacity allocation",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write `report_html` to a file, whole or not at all.

    Raises:
        FileNotFoundError, IsADirectoryError: `path` is no place for a file.
        ValueError: a saved result is there, or there is none to report.
        TypeError: as `report_html`.

    """
    write_text(path, report_html(results, title, facts))


def report_html(
    results: Mapping[str, Result],
    title: str = "Capacity allocation",
    facts: Mapping[str, str] | None = None,
) -> str:
    """Make a page in one HTML file about results of any kind, with no network and no model.

    It opens with the findings of all results, the most serious first. Allocations over the same inputs are drawn on one
    scale and held against each other. A map reads out its values under the pointer or the arrow keys, for all
    parameters or one tensor; without a script, and on paper, all maps and tables are still there. Large maps are
    rounded or averaged so that the page stays small, which it then says.

    Args:
        results: by the name that the page gives each, such as "measured" and "predicted".
        title: of the page.
        facts: what else to state at its head, name to value.

    Raises:
        ValueError: there is no result.
        TypeError: something is no result.

    """
    _check(results)
    allocations = {name: worded(result) for name, result in results.items() if isinstance(result, Allocation)}
    views = {name: result.view() for name, result in results.items()}
    found = told(results, views)
    opening = [*_findings(found, views), *_notes(found, views)]
    sections = [*opening, *allocation_sections(allocations), *_other_sections(results, views)]
    page = PAGES.render(
        "report/report.html",
        title=title,
        facts=[Fact(str(name), str(value)) for name, value in (facts or {}).items()],
        sections=sections,
        allocations=bool(allocations),
        made=[
            (name, type(results[name]).__name__, again(view.made), plain_settings(view.settings))
            for name, view in views.items()
        ],
        data=_data(sections),
    )
    return str(page)


def _check(results: Mapping[str, Any]) -> None:
    if not results:
        raise ValueError("a report needs at least one result; give a mapping of names to results")
    for name, result in results.items():
        if not isinstance(result, Result):
            names = ", ".join(kind.__name__ for kind in RESULTS)
            raise TypeError(f"{name!r} is a {type(result).__name__}; a report shows results: {names}")


def _findings(found: list[Told] | None, views: Mapping[str, View]) -> list[Section]:
    """The findings of all results; no section where none of them can have any."""
    if found is None:
        return []
    settled = list(dict.fromkeys(sentence(view.settled) for view in views.values() if view.settled))
    body = PAGES.render("report/found.html", found=found, first=SHOWN_AT_ONCE, several=len(views) > 1, settled=settled)
    return [Section("findings", "Findings", body)]


def _notes(found: list[Told] | None, views: Mapping[str, View]) -> list[Section]:
    """Notes of the results, without what is told among the findings."""
    known = {one.finding.what for one in found or ()}
    left = {name: [sentence(n) for n in v.notes if n.partition("; ")[0] not in known] for name, v in views.items()}
    notes = [(name, lines) for name, lines in left.items() if lines]
    if not notes:
        return []
    return [Section("notes", "Notes", PAGES.render("report/notes.html", notes=notes, several=len(views) > 1))]


def plain_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as a person writes them."""
    return {name: plain(value) for name, value in settings.items() if value is not None}


def again(made: Mapping[str, Any]) -> dict[str, str]:
    """Everything that it takes to make a result again, by name; empty for files that do not say it."""
    versions = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
    rows = {
        "made by": made.get("command") or made.get("call"),
        "call": made.get("call") if made.get("command") else None,
        "model": made.get("model"),
        "inputs": made.get("inputs"),
        "digest of the data": made.get("data_digest"),
        "seed": made.get("seed"),
        "versions": versions,
    }
    return {name: str(value) for name, value in rows.items() if value not in (None, "")}


def _other_sections(results: Mapping[str, Result], views: Mapping[str, View]) -> list[Section]:
    """A section for each result that is no allocation, kind by kind; those of other packages last."""
    kinds: dict[type[Result], None] = dict.fromkeys((*RESULTS, *map(type, results.values())))
    sections = []
    for kind in kinds:
        names = [name for name, result in results.items() if type(result) is kind and kind is not Allocation]
        key = kind.FORMAT.removeprefix("capalloc-")
        sections += [_section(f"{key}-{k}", name, views[name]) for k, name in enumerate(names, 1)]
    return sections


def _section(key: str, name: str, view: View) -> Section:
    """Show facts, advice, the map, charts and tables of the result that the page calls `name`, from its view alone."""
    keys = [key, *(f"{key}-{k}" for k in range(2, len(view.maps) + 1))]
    explorers = [explorer_of(one, name, shown) for one, shown in zip(keys, view.maps, strict=False)]
    body = PAGES.render(
        "report/result.html",
        view=view,
        settled=sentence(view.settled) if view.settled and not view.advice else "",
        maps=Markup("").join(explorer.render() for explorer in explorers),
        charts=[(chart.title, draw(chart)) for chart in view.charts],
    )
    return Section(key, f"{view.title}: {name}", body, {explorer.key: explorer.data() for explorer in explorers})


def _data(sections: list[Section]) -> dict[str, Any]:
    return {
        "explorers": {key: data for section in sections for key, data in section.data.items()},
        "sequential": palette(signed=False),
        "diverging": palette(signed=True),
    }
