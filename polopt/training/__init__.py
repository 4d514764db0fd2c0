"""The loop and what surrounds it: run folders, checkpoints, logs, resume, warm starts, the claims runner."""
