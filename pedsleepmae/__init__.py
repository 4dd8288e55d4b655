"""PedSleepMAE: a masked autoencoder for pediatric polysomnography."""


def __getattr__(name: str):
    """``pedsleepmae.load_model``, imported on first use: torch takes seconds to load."""
    if name == "load_model":
        from pedsleepmae.checkpoints import load_model

        return load_model
    raise AttributeError(f"module 'pedsleepmae' has no attribute {name!r}")
