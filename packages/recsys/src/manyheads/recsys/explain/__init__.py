"""Explanations: permutation importance, feature interactions and attention maps."""
