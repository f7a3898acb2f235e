"""The benchmark, its page and its plots."""
