"""Script 4: a recording scored by the probes."""
