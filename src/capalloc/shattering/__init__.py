"""How far the gradients at different inputs are alike (docs/theory.md, section 6)."""
