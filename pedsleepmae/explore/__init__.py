"""Script 5: the embedding space."""
