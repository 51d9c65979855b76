"""`capalloc design`: a page on which to build an architecture."""

from __future__ import annotations

from importlib.util import find_spec


def run_design(port: int, browser: bool) -> None:
    """`capalloc design`, until it is interrupted.

    Raises:
        ModuleNotFoundError: Dash is not installed.

    """
    if find_spec("dash") is None:
        raise ModuleNotFoundError("capalloc design needs the package dash: pip install 'capalloc[design]'")
    # Dash is an extra: the page's module needs it.
    from capalloc.app.design import serve

    serve(port, browser)
