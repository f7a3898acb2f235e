"""The estimator ``Forecaster``: fit, predict, prediction intervals, newer rows, cross-validation."""
