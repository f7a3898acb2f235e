"""Files and data sets: atomic writes, stored files with digests, and the registry of data sets."""
