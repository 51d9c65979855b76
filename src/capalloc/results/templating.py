"""The one jinja2 environment: templates that ship with the package, every value escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

#: What would end a script element, or start a comment in it, as JSON writes it in other words.
UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def render(template: str, **values: Any) -> Markup:
    """A template of this package filled in; the result may stand in another without being escaped again."""
    return Markup(_ENVIRONMENT.get_template(template).render(**values))


def asset(*names: str) -> Markup:
    """Style sheets or scripts of this package, one after another, as they are."""
    loader = PackageLoader("capalloc", "app/templates")
    return Markup("\n".join(loader.get_source(_ENVIRONMENT, name)[0].strip() for name in names))


def allow(source: str) -> Markup:
    """The source expression by which a Content-Security-Policy lets this one script or style through."""
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return Markup(f"'sha256-{base64.b64encode(digest).decode('ascii')}'")


def as_json(value: Any) -> Markup:
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


_ENVIRONMENT = Environment(
    loader=PackageLoader("capalloc", "app/templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals["asset"] = asset
_ENVIRONMENT.filters |= {"allow": allow, "as_json": as_json, "power": power}
