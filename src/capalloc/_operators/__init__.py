"""Records of operators, and how a call of one is bound and run."""
