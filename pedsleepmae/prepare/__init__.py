"""Script 1: recordings and annotations to examples and batch files."""
