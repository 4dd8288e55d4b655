"""Script 3: linear probes on frozen embeddings, and how they are judged."""
