"""The templates of every page that the package writes, and what they write in a way of their own."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

from markupsafe import Markup, escape

from capalloc.results.templating import Templates

#: What would end a script element, or start a comment in it, as JSON writes it in other words.
UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def allow(source: str) -> Markup:
    """The source expression by which a Content-Security-Policy lets this one script or style through."""
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return Markup(f"'sha256-{base64.b64encode(digest).decode('ascii')}'")


def script_json(value: Any) -> Markup:
    """JSON that stands in a script element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(UNSAFE))


def power(text: str) -> Markup:
    """The label "2·10^-3" as SVG, the exponent raised."""
    head, mark, exponent = text.partition("10^")
    if not mark or not re.fullmatch(r"-?\d+", exponent):
        return escape(text)
    raised = exponent.replace("-", "−")
    return Markup('{}10<tspan dy="-3.5" font-size="7">{}</tspan>').format(head, raised)


def with_code(text: str) -> Markup:
    """A line in which what stands between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


PAGES = Templates("app/templates", allow=allow, script_json=script_json, power=power, with_code=with_code)
