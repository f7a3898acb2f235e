"""Evaluation: clip accuracy, DET curve, confidence intervals, spike counts, plots and the page."""
