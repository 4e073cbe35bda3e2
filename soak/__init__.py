"""Load, faults and fuzz against CloudVid, run by `make soak`; docs/reliability.md has the results."""
