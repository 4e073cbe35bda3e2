"""The figures R1 to R9, run by `make bench`; docs/performance.md says what they are."""
