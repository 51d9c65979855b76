"""What depth does: receptive field, scaling, shattering, diagnosis."""
