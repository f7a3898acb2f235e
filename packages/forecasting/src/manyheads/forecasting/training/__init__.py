"""Training by gradient descent on windows, its scoring, and the experiments."""
