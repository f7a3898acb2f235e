"""Training: batches of augmented clips, the loss, and the experiments."""
