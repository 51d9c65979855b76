"""What a run needs around the mathematics: files, memory, processes, checkpoints."""
