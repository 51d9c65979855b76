"""Measured capacity by random probes and iterative solves, for constraints that no memory holds."""
