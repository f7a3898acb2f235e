"""Long-term forecasting: the linear family of 'Are Transformers Effective for Time Series Forecasting?', honestly."""
