"""Studies that the command line runs."""
