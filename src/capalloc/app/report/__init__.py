"""A page about saved results: one HTML file that needs no network and no model.

Results in: `allocations`, `compare`, `tables`, `field`, `depth` and `evolution` make sections of them, which `page`
joins; `maps` and `charts` draw, `encode` keeps large maps small.
"""

from capalloc.app.report.page import report_html, write_report

__all__ = ["report_html", "write_report"]
