"""Odd calls, damaged and hostile files, kills, ranks and modes: what `make fuzz` tries, and what came of it."""
