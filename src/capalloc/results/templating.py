"""Templates of one folder of this package, every value escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


class Templates:
    """A jinja2 environment for the templates of a folder.

    Args:
        folder: below the package.
        filters: more filters, by name.

    """

    def __init__(self, folder: str, **filters: Any) -> None:
        self._environment = Environment(
            loader=PackageLoader("capalloc", folder),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals["asset"] = self.asset
        self._environment.filters |= filters

    def render(self, template: str, **values: Any) -> Markup:
        """Fill in a template; the result may stand in another without being escaped again."""
        return Markup(self._environment.get_template(template).render(**values))

    def asset(self, *names: str) -> Markup:
        """Style sheets or scripts of the folder, one after another, as they are."""
        loader = self._environment.loader
        assert loader is not None
        return Markup("\n".join(loader.get_source(self._environment, name)[0].strip() for name in names))
