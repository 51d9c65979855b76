"""Path energy on the captured graph (docs/theory.md, section 4): capture -> program -> markov | hessian."""
