"""Feature encoding: from the columns of a table to integer ids and scaled numbers."""
