"""The work of the commands of `capalloc`, which `capalloc_cli` declares."""
