"""Data sets of the experiments, and training from parquet files larger than memory."""
