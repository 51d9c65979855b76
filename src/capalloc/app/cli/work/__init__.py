"""The work of the commands of `capalloc`, which `capalloc.app.cli` declares."""
