"""PedSleepMAE: a masked autoencoder for pediatric polysomnography."""

import importlib

__version__ = "0.1.0"  # the one place; pyproject.toml reads it
__all__ = ["PedSleepEncoder", "annotate", "events", "examples_from_raw", "hypnogram"]
__all__ += ["load_model", "score_night"]


def __getattr__(name: str):
    """The names above, imported from `api` on first use: torch takes seconds to load."""
    if name in __all__:
        return getattr(importlib.import_module("pedsleepmae.api"), name)
    raise AttributeError(f"module 'pedsleepmae' has no attribute {name!r}")
