"""The site's Markdown: formulas are MathML, text like HTML stays text, included files and docstrings link to pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docs.plain_formulas import latex
from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.extensions.toc import slugify
from markdown.inlinepatterns import InlineProcessor, SimpleTextInlineProcessor
from markdown.postprocessors import Postprocessor
from markdown.preprocessors import Preprocessor

DOCS = Path(__file__).parent
#: A page that a docstring speaks of, and a section of it.
MENTION = re.compile(r"docs/((?:[\w-]+/)?([\w-]+))\.md(, sections? (\d))?")

#: A formula in a line of text, as GitHub reads it too, with the brackets and points that touch it; one that
#: stands alone is a block of the language `math`.
FORMULA = r"(?<![\w\\$])(\(?)\$(?![\s$])([^$\n]+?)(?<![\s\\])\$(?![\w$])([.,;:)]*)"
#: What latex2mathml takes for letters or for relations, and what stands in its place.
TAGS = {
    "<mi>&#x0007E;</mi>": "<mo>&#x0223C;</mo>",
    "<mi>&#x000B1;</mi>": "<mo>&#x000B1;</mo>",
    "<mo>&#x02202;</mo>": "<mi>&#x02202;</mi>",
    "<mo>&#x0221E;</mo>": "<mi>&#x0221E;</mi>",
    "<mo>&#x0002F;</mo>": '<mo lspace="0" rspace="0">&#x0002F;</mo>',
    "<mo>&#x0007C;</mo>": '<mo lspace="0" rspace="0" stretchy="false">&#x0007C;</mo>',
    "<mo>&#x02016;</mo>": '<mo lspace="0" rspace="0" stretchy="false">&#x02016;</mo>',
}
#: A function behind a factor, which wants a space between them.
FUNCTION = re.compile(r"(?<=</mi>|</mn>)(?=<mi>(?:arccos|arcsin|cos|exp|log|sin)</mi>)")
#: A prime as an exponent, where fonts draw it raised already.
PRIMED = re.compile(r"<msup>(<mi>[^<]*</mi>)<mi>&#x02032;</mi></msup>")

#: A link as a file in the root of the repository writes it, and the pages that such files are on the site.
FROM_ROOT = re.compile(r"\]\((?:docs/([\w./-]+)|([A-Z_]+\.md))")
#: A cell of a table, and what shows in it where it holds numbers alone: `0.51 ± 0.02`, `0.33 to 0.43` or `7.2 s`.
CELL, TAG = re.compile(r"<td([^<>]*>)(.*?)</td>", re.DOTALL), re.compile(r"<math.*?</math>|<[^<>]+>", re.DOTALL)
NUMBERS = re.compile(r"[-+−~]?[.\d]([\d\s.,%±/×x+()!−-]|e-?|to|of)*(ms|s|[GMk]iB|[Mk]|passes)?")
#: Letters in a cell from which it holds words, or prose, and keeps some width where there is little.
WORDS, PROSE = 12, 45
#: Options in a line of code, which break at their hyphens otherwise.
CODE, OPTION = re.compile(r"(?<=<code>)[^<]*--[^<]*(?=</code>)"), re.compile(r"--[a-z][\w-]*")
#: A line that is a link to a script, which the site shows in its place.
SCRIPT = re.compile(r"\[`(examples/\w+\.py)`\]\(\.\./\1\)")
PAGES = {"CODE_OF_CONDUCT.md": "conduct.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}


class FromRoot(Preprocessor):
    """Links of files that stand in the root become links of the pages that include them."""

    def run(self, lines: list[str]) -> list[str]:
        """Return the lines of a page with its links; no page of docs/ itself writes such links."""
        return [FROM_ROOT.sub(lambda link: f"]({link[1] or PAGES.get(link[2], link[2])}", line) for line in lines]


class Scripts(Preprocessor):
    """Scripts that pages link to are shown, folded; the site holds no other file of the repository."""

    def run(self, lines: list[str]) -> list[str]:
        """Return the lines of a page with its scripts."""
        return [part for line in lines for part in self.shown(line)]

    def shown(self, line: str) -> list[str]:
        """Return the line, or the script that it links to."""
        if not (script := SCRIPT.fullmatch(line)):
            return [line]
        code = (DOCS.parent / script[1]).read_text(encoding="utf-8").splitlines()
        head = f'<details markdown="1"><summary>{script[1]}</summary>'
        return [head, "", "```python", *code, "```", "", "</details>"]


class Whole(Postprocessor):
    """Numbers of one cell, and names of options, stay on one line; a table that is then too wide scrolls."""

    def run(self, text: str) -> str:
        """Return the page's HTML with its cells and options."""
        text = CELL.sub(_cell, text)
        return CODE.sub(lambda code: OPTION.sub(r'<span class="whole">\g<0></span>', code[0]), text)


def _cell(found: re.Match[str]) -> str:
    """Return a cell with the class that says how it may be wrapped."""
    shown = TAG.sub("", found[2])
    if NUMBERS.fullmatch(shown):
        kind = "whole"
    elif len(shown) >= WORDS:
        kind = "prose" if len(shown) >= PROSE else "words"
    else:
        return found[0]
    return f'<td class="{kind}"{found[1]}{found[2]}</td>'


class Mentions(Postprocessor):
    """Pages that docstrings name become links; docstrings stand on the pages of reference/ alone."""

    def run(self, text: str) -> str:
        """Return the page's HTML with its links."""
        return MENTION.sub(_link, text) if 'class="doc ' in text else text


def mathml(formula: str, display: str) -> str:
    """Return the MathML of a formula, which browsers draw without a script; an error if a command is unknown."""
    drawn = convert(latex(formula), display=display)
    if left := re.search(r"\\\w*", drawn):
        raise ValueError(f"no MathML for {left[0]} in the formula {formula}")
    for found, better in TAGS.items():
        drawn = drawn.replace(found, better)
    drawn = FUNCTION.sub('<mspace width="0.17em" />', drawn)
    drawn = PRIMED.sub(r'<mrow>\1<mo lspace="0" rspace="0">&#x02032;</mo></mrow>', drawn)
    return drawn


def display(source: str, *_: Any, **__: Any) -> str:
    """Return the HTML of a block of the language `math`."""
    return f'<div class="formula" tabindex="0">{mathml(source, "block")}</div>'


class Formulas(InlineProcessor):
    """Formulas between dollars."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # noqa: N802
        """Return the formula's MathML, out of reach of other patterns; no line ends between it and what touches it."""
        drawn = f'<span class="formula">{m[1]}{mathml(m[2], "inline")}{m[3]}</span>'
        return self.md.htmlStash.store(drawn), m.start(0), m.end(0)


class SiteMarkdown(Extension):
    """Formulas in text: `<g, g'>` is a scalar product and no HTML, `(P)_(t, t)` has an index and no emphasis."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Drop inline HTML, take formulas before escapes (180), underscores before emphasis (60), and link last."""
        md.inlinePatterns.deregister("html")
        md.inlinePatterns.register(Formulas(FORMULA, md), "formulas", 185)
        md.inlinePatterns.register(SimpleTextInlineProcessor(r"(_)"), "underscore", 61)
        # Behind what is included (32).
        md.preprocessors.register(FromRoot(md), "from_root", 31)
        md.preprocessors.register(Scripts(md), "scripts", 30)
        md.postprocessors.register(Whole(md), "whole", 0)
        md.postprocessors.register(Mentions(md), "mentions", 0)


def makeExtension() -> SiteMarkdown:  # noqa: N802
    """Return the extension, for Markdown to find it by the name of this module."""
    return SiteMarkdown()


def _link(match: re.Match[str]) -> str:
    source = DOCS / f"{match[1]}.md"
    if not source.is_file():
        return match[0]
    headings = re.findall(r"^## (.+)$", source.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = [f"#{slugify(heading, '-')}" for heading in headings if match[4] and heading.startswith(f"{match[4]}.")]
    return f'<a href="../{match[1]}.html{"".join(anchors)}">{match[2]}{match[3] or ""}</a>'
