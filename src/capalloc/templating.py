"""The one jinja2 environment: templates that ship with the package, every value escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_ENVIRONMENT = Environment(
    loader=PackageLoader("capalloc"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> Markup:
    """A template of this package filled in; the result may stand in another without being escaped again."""
    return Markup(_ENVIRONMENT.get_template(template).render(**values))
