"""Training: the objective, metrics, calibration, baselines, and the estimator."""
