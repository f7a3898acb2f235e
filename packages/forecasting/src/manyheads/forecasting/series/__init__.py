"""Read a user's table into panels of series: cells, time stamps, frequencies, values."""
