"""Studies: experiments whose figures and tables stand in docs, made again by `make studies`."""
