"""The section about one result, from its view alone."""

from __future__ import annotations

from markupsafe import Markup

from capalloc.app.pages import PAGES
from capalloc.app.report.charts import draw
from capalloc.app.report.explorer import explorer_of
from capalloc.app.report.section import Section, sentence
from capalloc.results.view import View


def result_section(key: str, name: str, view: View) -> Section:
    """Show facts, advice, the map, charts and tables of the result that the page calls `name`."""
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
