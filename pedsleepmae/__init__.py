"""PedSleepMAE: a masked autoencoder for pediatric polysomnography."""

import importlib

__version__ = "0.1.0"  # the one place; pyproject.toml reads it
__all__ = ["PedSleepEncoder", "annotate", "examples_from_raw", "load_model"]


def __getattr__(name: str):
    """The names above, imported from `api` on first use: torch takes seconds to load."""
    if name in __all__:
        return getattr(importlib.import_module("pedsleepmae.api"), name)
    raise AttributeError(f"module 'pedsleepmae' has no attribute {name!r}")
