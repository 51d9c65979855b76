"""Where a neural network spends its modelling capacity (Donier, 2019)."""
