"""The opening of a page: the findings of all its results, the most serious first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capalloc.app.report.section import sentence
from capalloc.results.audit_findings import Audit, Finding, by_weight
from capalloc.results.base import Result
from capalloc.results.evidence import Evidence
from capalloc.results.findings import findings
from capalloc.results.view import View

#: Where the pages stand that findings name.
DOCS = "https://github.com/capalloc/capalloc/blob/main/docs/"
#: How the formats of results begin that the docs have a page on.
OWN = "capalloc-"
#: Findings that are shown at once; the rest can be unfolded.
SHOWN_AT_ONCE = 8


@dataclass(frozen=True)
class Told:
    """A finding, and the results that say so."""

    finding: Finding
    names: list[str]

    @property
    def what(self) -> str:
        """The finding as a sentence."""
        return sentence(self.finding.what)

    @property
    def do(self) -> str:
        """The advice as a sentence."""
        return sentence(self.finding.do) if self.finding.do else ""

    @property
    def link(self) -> str:
        """The address of the page that explains it; empty for none."""
        return f"{DOCS}{self.finding.docs}" if self.finding.docs else ""


def told(results: Mapping[str, Result], views: Mapping[str, View]) -> list[Told] | None:
    """Findings of all results in their order, what several say once; None where no result is of a kind that has any."""
    each = {name: _of(result, views[name]) for name, result in results.items()}
    if all(found is None for found in each.values()):
        return None
    names: dict[tuple[str, str], list[str]] = {}
    first: dict[tuple[str, str], Finding] = {}
    for name, found in each.items():
        for one in found or ():
            names.setdefault((one.what, one.do), []).append(name)
            first.setdefault((one.what, one.do), one)
    return [Told(one, names[one.what, one.do]) for one in by_weight(list(first.values()))]


def _of(result: Result, view: View) -> list[Finding] | None:
    """The findings of one result: its own, those that follow from it, or its advice; None where it can have none."""
    if isinstance(result, Audit):
        return result.findings
    if (known := Evidence.of_saved(result)) is not None:
        return findings(known)
    if view.advice is None:
        return None
    lines = [line.partition("; ") for line in view.advice]
    page = f"{result.FORMAT.removeprefix(OWN)}.md" if result.FORMAT.startswith(OWN) else ""
    return [Finding("worth a look", 1.0, what, do, page) for what, _, do in lines]
