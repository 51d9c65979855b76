"""The effects of depth: receptive field, scaling, shattering, diagnosis."""
