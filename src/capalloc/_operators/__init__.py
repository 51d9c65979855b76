"""What the library knows of each operator, and how a call of one is bound and run."""
