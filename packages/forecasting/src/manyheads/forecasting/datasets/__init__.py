"""The benchmark sets of the papers: sources, licences, splits."""
