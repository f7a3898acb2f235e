"""Explanations: attention maps of the fields beside permutation importance."""
