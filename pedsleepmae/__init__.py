"""PedSleepMAE: a masked autoencoder for pediatric polysomnography."""

import importlib

_MODULE_OF = {  # name -> the module that defines it
    "load_model": "checkpoints",
    "PedSleepEncoder": "api",
    "examples_from_raw": "api",
    "annotate": "api",
}


def __getattr__(name: str):
    """The names above, imported on first use: torch takes seconds to load."""
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"pedsleepmae.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'pedsleepmae' has no attribute {name!r}")
