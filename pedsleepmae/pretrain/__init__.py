"""Script 2: pretraining of the masked autoencoder."""
