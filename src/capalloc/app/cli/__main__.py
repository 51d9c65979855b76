"""`python -m capalloc.app.cli` is `capalloc`."""

from capalloc.app.cli import main

main()
