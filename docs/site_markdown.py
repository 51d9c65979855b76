"""The site's Markdown: mathematics that looks like HTML stays text; included files and docstrings link to pages."""

from __future__ import annotations

import re
from pathlib import Path

from markdown import Extension, Markdown
from markdown.extensions.toc import slugify
from markdown.inlinepatterns import SimpleTextInlineProcessor
from markdown.postprocessors import Postprocessor
from markdown.preprocessors import Preprocessor

DOCS = Path(__file__).parent
#: A page that a docstring speaks of, and a section of it.
MENTION = re.compile(r"docs/([\w-]+)\.md(, sections? (\d))?")


#: A link as a file in the root of the repository writes it, and the pages that such files are on the site.
FROM_ROOT = re.compile(r"\]\((?:docs/([\w./-]+)|([A-Z_]+\.md))")
PAGES = {"CODE_OF_CONDUCT.md": "conduct.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}


class FromRoot(Preprocessor):
    """Links of files that stand in the root become links of the pages that include them."""

    def run(self, lines: list[str]) -> list[str]:
        """Return the lines of a page with its links; no page of docs/ itself writes such links."""
        return [FROM_ROOT.sub(lambda link: f"]({link[1] or PAGES.get(link[2], link[2])}", line) for line in lines]


class Mentions(Postprocessor):
    """Pages that docstrings name become links; docstrings stand on the pages of reference/ alone."""

    def run(self, text: str) -> str:
        """Return the page's HTML with its links."""
        return MENTION.sub(_link, text) if 'class="doc ' in text else text


class SiteMarkdown(Extension):
    """Formulas are text: `<g, g'>` is a scalar product and no HTML, `(P)_(t, t)` has an index and no emphasis."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Drop inline HTML, take underscores before emphasis (60), read what is included (32), and link last of all."""
        md.inlinePatterns.deregister("html")
        md.inlinePatterns.register(SimpleTextInlineProcessor(r"(_)"), "underscore", 61)
        md.preprocessors.register(FromRoot(md), "from_root", 31)
        md.postprocessors.register(Mentions(md), "mentions", 0)


def makeExtension() -> SiteMarkdown:  # noqa: N802
    """Return the extension, for Markdown to find it by the name of this module."""
    return SiteMarkdown()


def _link(match: re.Match[str]) -> str:
    source = DOCS / f"{match[1]}.md"
    if not source.is_file():
        return match[0]
    headings = re.findall(r"^## (.+)$", source.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = [f"#{slugify(heading, '-')}" for heading in headings if match[3] and heading.startswith(f"{match[3]}.")]
    return f'<a href="../{match[1]}.html{"".join(anchors)}">{match[1]}{match[2] or ""}</a>'
