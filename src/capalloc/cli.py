"""The command line as part of the package; `capalloc_cli` declares it, apart, so that help needs no torch."""

from __future__ import annotations

from capalloc_cli import app, main

__all__ = ["app", "main"]
