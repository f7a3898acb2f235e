"""From a user's table to panels of series: cells, time stamps, frequencies, values."""
