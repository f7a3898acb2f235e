"""Files, documents and data sets: atomic writes, digests, and the registry that finds and checks a set."""
