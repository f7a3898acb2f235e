"""Whole networks around any registered layer."""
