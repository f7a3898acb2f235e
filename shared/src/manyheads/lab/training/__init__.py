"""Training: the description of an experiment, the training loop, checkpoints, and the run over all seeds."""
