"""What the site does beyond mkdocs: pages from files outside docs/, and mathematics that looks like HTML stays text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from markdown.extensions.toc import slugify
from markdown.inlinepatterns import SimpleTextInlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
#: Files of the repository that are pages too, and their names on the site.
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
}
#: A page that a docstring speaks of, and a section of it.
MENTION = re.compile(r"docs/([\w-]+)\.md(, sections? (\d))?")
LINK = re.compile(r"\]\(([\w./-]+)(#[\w-]+)?\)")


class Literal(Extension):
    """Formulas are text: `<g, g'>` is a scalar product and no HTML, `(P)_(t, t)` has an index and no emphasis."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Drop inline HTML, and take underscores as they are before emphasis (60) is looked for."""
        md.inlinePatterns.deregister("html")
        md.inlinePatterns.register(SimpleTextInlineProcessor(r"(_)"), "underscore", 61)


def on_config(config: MkDocsConfig) -> None:
    """Markdown of every page and docstring."""
    config.markdown_extensions.append(Literal())  # type: ignore[arg-type]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that lie outside docs/."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links between files of the repository become links between pages of the site."""
    source = Path(page.file.abs_src_path or "")

    def link(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        name = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else ""
        if source.is_relative_to(ROOT / "docs") and name not in OUTSIDE:
            return match[0]
        inside = OUTSIDE.get(name, name.removeprefix("docs/"))
        return f"]({'../' * page.file.src_uri.count('/')}{inside}{match[2] or ''})"

    return LINK.sub(link, markdown)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Pages that docstrings name become links."""
    return MENTION.sub(_mention, html) if page.file.src_uri.startswith("reference/") else html


def _mention(match: re.Match[str]) -> str:
    source = ROOT / "docs" / f"{match[1]}.md"
    if not source.is_file():
        return match[0]
    headings = re.findall(r"^## (.+)$", source.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = [f"#{slugify(heading, '-')}" for heading in headings if match[3] and heading.startswith(f"{match[3]}.")]
    return f'<a href="../{match[1]}.html{"".join(anchors)}">{match[1]}{match[2] or ""}</a>'
