"""Script 0: a simulated cohort with known truth."""
