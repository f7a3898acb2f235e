"""Evaluation: the benchmark, its page, plots, and the errors of a backtest."""
