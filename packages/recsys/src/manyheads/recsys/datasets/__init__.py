"""The data sets of the experiments, and parquet files that are larger than memory."""
