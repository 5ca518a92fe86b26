"""The training loop and what keeps it honest: run folders, checkpoints, signals, tracking."""
