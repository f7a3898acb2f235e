"""Ways to run, train and look into any layer."""
