"""`python -m capalloc_cli` is `capalloc`."""

from capalloc_cli import main

main()
