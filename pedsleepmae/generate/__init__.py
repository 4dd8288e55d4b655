"""Script 6: signals from the model."""
