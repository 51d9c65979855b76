"""Formulas as docstrings write them, `$kappa_i = trace(G^+ M_i)$`, read as LaTeX."""

from __future__ import annotations

import re

LETTERS = "alpha|beta|gamma|delta|epsilon|kappa|lambda|mu|nu|phi|pi|rho|sigma|theta|xi"
FUNCTIONS = "cov|diag|div|trace"
COMMANDS = f"{LETTERS}|sum|prod|arccos|cos|exp|log|max|min"
#: What stands in brackets, which may hold brackets.
INSIDE = r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)"
#: An index or a power: in brackets, or letters, numbers and signs in a row; short ones are a letter each.
RAISED = re.compile(rf"([_^])(?:{INSIDE}|([+*]|\|[\w-]+\||-?\d+/\d+|-?(?:[^\W_]'*)+(?:\|[\w-]+\|)?))")
REPLACED = (
    (rf"\bsqrt{INSIDE}", r"\\sqrt{\1}"),
    (r"\|(\S|\S[^|]*\S)\|", r"\\lvert \1\\rvert "),
    (r"<-", r"\\leftarrow "),
    (r"<=", r"\\le "),
    (r">=", r"\\ge "),
    (r"<(?=[a-z\\])(.*)>", r"\\langle \1 \\rangle "),
    (r"\.\.\.", r"\\dots "),
    (r"~", r"\\sim "),
    (r" \(x\) ", r" \\otimes "),
    (r" x ", r" \\times "),
    (r" o ", r" \\circ "),
    (r"\binf\b", r"\\infty "),
    (r"\bgrad(?=[ _])", r"\\nabla "),
    (rf"(?<![A-Za-z\\])(d?)({COMMANDS})(?![A-Za-z])", r"\1\\\2 "),
    (rf"(?<![A-Za-z\\])({FUNCTIONS})(?=\()", r"\\mathrm{\1}"),
    (rf"(?<![A-Za-z\\{{])({FUNCTIONS})(?![A-Za-z}}])", r"\\mathrm{\1}\\,"),
    # Words, which stand upright, with the spaces between them and letters.
    (
        r"((?<=[\w|)}]) |)(?<!mathrm\{)(?<![A-Za-z\\])"
        r"((?:[a-z]+-)?[a-z]{3,}(?:[ -][a-z]{2,})*)(?![A-Za-z])( (?=[\w\\(])|)",
        r"\\text{\1\2\3}",
    ),
)


def latex(formula: str) -> str:
    """Return the formula as LaTeX; one with commands or braces is LaTeX already."""
    if "\\" in formula or "{" in formula:
        return formula
    formula = RAISED.sub(_raised, RAISED.sub(_raised, " ".join(formula.split())))  # an index may have an index
    for plain, command in REPLACED:
        formula = re.sub(plain, command, formula)
    return formula


def _raised(part: re.Match[str]) -> str:
    inside = part[2] or part[3]
    if part[2] and len(inside) == 1:
        inside = f"({inside})"
    if part[3] and not re.search(rf"[a-z]{{4}}|{COMMANDS}", inside):
        inside = re.sub(r"(\w)(?=[A-Za-z])", r"\1 ", inside)
    return f"{part[1]}{{{inside} }}"
