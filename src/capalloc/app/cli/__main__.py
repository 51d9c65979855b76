"""Run `python -m capalloc.app.cli` as `capalloc`."""

from capalloc.app.cli import main

main()
