"""Blocks around a layer: gates, feed-forward networks, residual blocks. A block receives its layer as an argument."""
