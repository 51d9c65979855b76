"""A page about saved results: one HTML file that needs no network and no model.

Results in: `page` shows any of them by its view, `allocation_sections`, `pairs` and `region_table` hold allocations
against each other; `explorer` and `charts` draw, `encode` keeps large maps small.
"""

from capalloc.app.report.page import report_html, write_report

__all__ = ["report_html", "write_report"]
