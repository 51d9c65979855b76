"""The page of a study in the documentation."""

from __future__ import annotations

import re

from studies.study import DOCS, Study


def assert_page_has_places(study: Study) -> None:
    """Every table and picture of a study has its place on the page."""
    page = (DOCS / study.page).read_text(encoding="utf-8")
    for mark in study.tables:
        assert re.search(rf"<!-- {mark} -->\n.*<!-- end {mark} -->", page, re.DOTALL), mark
    for name in study.pictures:
        assert f"pictures/{name}.png" in page
