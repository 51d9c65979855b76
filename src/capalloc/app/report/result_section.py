"""The section about one result, from its view alone."""

from __future__ import annotations

from capalloc.app.pages import PAGES
from capalloc.app.report.charts import draw
from capalloc.app.report.explorer import explorer_of
from capalloc.app.report.section import Section
from capalloc.results.view import View


def result_section(key: str, name: str, view: View) -> Section:
    """Show facts, advice, the map, charts and tables of the result that the page calls `name`."""
    explorer = explorer_of(key, name, view.maps[0]) if view.maps else None
    body = PAGES.render(
        "report/result.html",
        view=view,
        maps=explorer.render() if explorer else "",
        charts=[(chart.title, draw(chart)) for chart in view.charts],
    )
    return Section(key, f"{view.title}: {name}", body, explorer.data() if explorer else None)
