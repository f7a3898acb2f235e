"""Training by gradient descent on windows, scoring on windows, experiments and published figures."""
