"""Capacity during training: a logger for TensorBoard (`tensorboard`) and a callback for Lightning (`lightning`)."""
