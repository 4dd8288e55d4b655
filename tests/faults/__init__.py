"""Runs in which the k-th write, fsync, rename or mkdir fails: `python -m tests.faults --help`."""
