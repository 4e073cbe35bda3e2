"""Other servers of the same stages: what R9 compares with."""
