"""The surroundings of a computation: files, memory, processes, checkpoints."""
