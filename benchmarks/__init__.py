"""Performance figures: `python -m benchmarks [module ...] [--output RESULTS.md]`."""
