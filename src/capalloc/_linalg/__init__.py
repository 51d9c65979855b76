"""Linear algebra: leverage scores, iterative solves, spectra."""
