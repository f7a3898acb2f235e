"""From the columns of a table to the integer ids and numbers of encoded rows."""
