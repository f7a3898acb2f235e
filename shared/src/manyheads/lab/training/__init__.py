"""Experiments: their description, the training loop, checkpoints, and the run of all seeds."""
