"""Figures of speed and accuracy: `python -m benchmarks [group or module ...] [--output FILE]`."""
