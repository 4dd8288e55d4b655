"""Script 4: recordings scored by the probes."""

NIGHTS, UNITS = TABLES = ("nights.csv", "nights_units.csv")  # beside the recordings' folders
