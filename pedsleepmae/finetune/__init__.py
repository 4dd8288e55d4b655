"""Script 3 beyond the frozen encoder: fine-tuning, and what a few labelled children are worth."""
