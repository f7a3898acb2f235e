"""The cores inside other libraries."""
