"""Layer decoupling (docs/theory.md, section 3): from theory, from data, and what it does to capacity."""
