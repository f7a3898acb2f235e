"""Training: objective, metrics, calibration, baselines, experiments, and the estimator ``Recommender``."""
