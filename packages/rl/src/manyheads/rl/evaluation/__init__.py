"""Evaluation and pictures of a trained agent."""
