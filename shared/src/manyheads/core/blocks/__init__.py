"""What goes round a layer: gates, feed-forward networks, residual blocks. A block is handed its layer."""
