"""Training: batches of augmented clips, the objective, and the experiments."""
