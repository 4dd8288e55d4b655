"""Features of every second of a night, from an encoder's tokens or by hand, and what is around.

Axes: **N** epochs, **M** their 30 steps, **S** steps of a night, **C** channels, **F** features.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from scipy.ndimage import uniform_filter1d

from pedsleepmae.channels import CHANNEL_GROUPS, EPOCH_S, N_CHANNELS, RATE_HZ
from pedsleepmae.errors import ProbeError
from pedsleepmae.model import SECONDS
from pedsleepmae.probe import handmade
from pedsleepmae.probe.fitted import standardise_night
from pedsleepmae.probe.spans import STEP_S

N_STEPS = round(EPOCH_S / STEP_S)
# What a step sees, in steps from itself, first and last: itself, its neighbourhood, what came
# before and what comes after. An apnea lasts two breaths or 10 s, the desaturation follows it by
# 10 to 30 s, an arousal ends it.
WINDOWS = ((0, 0), (-2, 2), (-9, -3), (3, 9), (-24, -10), (10, 24))


# ------------------------------------------------------------------ of one epoch
def check_patches(n_patches: int) -> None:
    """ProbeError unless an epoch's patches divide into its seconds."""
    if n_patches % N_STEPS:
        raise ProbeError(
            f"events: an epoch of this encoder has {n_patches} patches, which do not divide into "
            f"{N_STEPS} seconds; use an encoder whose patch_size divides {round(RATE_HZ)}"
        )


def pooling_of(layer: int | None) -> str:
    """Name of the pooling behind token_steps, of this block."""
    return SECONDS if layer is None else f"{SECONDS}@{layer}"


def token_steps(seconds_NF: np.ndarray) -> np.ndarray:
    """Features of the pooling "seconds" by step, (N, M, F), rounded as they are kept: float16.

    They stand channel by channel; F is 16 x twice the width of a patch's embedding.
    """
    x_NCMF = seconds_NF.reshape(len(seconds_NF), N_CHANNELS, N_STEPS, -1)
    x_NMF = x_NCMF.transpose(0, 2, 1, 3).reshape(len(seconds_NF), N_STEPS, -1)
    return x_NMF.astype(np.float16).astype(np.float32)


def present_features(present_NC: np.ndarray, x_NMF: np.ndarray) -> np.ndarray:
    """Which token features are there, (N, F): those of the channels that are."""
    return np.repeat(present_NC, x_NMF.shape[2] // N_CHANNELS, axis=1)


def handmade_steps(x_NCT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hand-made features of each second (N, M, F) and the channel of each feature (F,).

    The measures are those of handmade_features, where a second can have them: logarithms of the
    band powers and of the size of breaths, levels of the gases.
    """
    columns = list(_measures(np.nan_to_num(np.asarray(x_NCT, np.float32), posinf=0, neginf=0)))
    channels = np.array([channel for channel, _ in columns])
    return np.stack([values_NM for _, values_NM in columns], axis=2), channels


def _measures(x_NCT: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(channel, values (N, M)) of each measure."""
    eeg, eyes, (chin,) = (list(CHANNEL_GROUPS[name]) for name in ("EEG", "EOG", "EMG"))
    moving = [*CHANNEL_GROUPS["flow"], *CHANNEL_GROUPS["effort"]]
    (snore,), (co2,), (spo2,) = (CHANNEL_GROUPS[name] for name in ("snore", "CO2", "SpO2"))
    powers = [(eeg, limits) for limits in handmade.EEG_BANDS.values()]
    powers += [(eyes, limits) for limits in handmade.EOG_BANDS.values()]
    powers += [([chin], handmade.EMG_HZ), (moving, handmade.BREATH_HZ)]
    powers += [([snore], (1.0, RATE_HZ / 2)), ([co2], handmade.BREATH_HZ)]
    for channels, limits in powers:
        part_NCT = handmade.band_pass(x_NCT[:, channels], *limits)
        log_NCM = np.log(np.maximum(handmade.window_rms(part_NCT, STEP_S), handmade.TINY))
        yield from ((channel, log_NCM[:, i]) for i, channel in enumerate(channels))
    seconds = x_NCT.reshape(len(x_NCT), N_CHANNELS, N_STEPS, -1)
    for channel in (spo2, co2):
        yield channel, seconds[:, channel].mean(-1)
    for channel in moving:
        yield channel, np.ptp(seconds[:, channel], axis=-1)


# ------------------------------------------------------------------ of one night
def step_onsets(onsets_s: np.ndarray) -> np.ndarray:
    """Onset of each step of the epochs, (N x M,), seconds."""
    return (onsets_s[:, None] + STEP_S * np.arange(N_STEPS)).ravel()


def night_steps(x_NMF: np.ndarray, present_NF: np.ndarray, onsets_s: np.ndarray) -> np.ndarray:
    """What the probes read of one night's steps, (S, windows x F) float32.

    Features are standardised within the night, 0 (the night's mean) where their channel is absent
    (``present_NF``); then averaged over each of WINDOWS within the stretch of adjoining epochs.
    """
    n_features = x_NMF.shape[2]
    x_SF = x_NMF.reshape(-1, n_features).astype(np.float32)
    x_SF[~np.repeat(present_NF, N_STEPS, axis=0)] = np.nan
    x_SF = np.nan_to_num(standardise_night(x_SF), copy=False, nan=0.0)
    out_SWF = np.empty((len(x_SF), len(WINDOWS), n_features), np.float32)
    for part in stretches(onsets_s):
        here = slice(part.start * N_STEPS, part.stop * N_STEPS)
        for w, window in enumerate(WINDOWS):
            out_SWF[here, w] = window_means(x_SF[here], *window)
    return out_SWF.reshape(len(x_SF), -1)


def window_means(x_SF: np.ndarray, first: int, last: int) -> np.ndarray:
    """Mean over the steps from ``first`` to ``last`` around each step; at the ends the end's value
    stands for what is not there."""
    n = last - first + 1
    if n == 1 and not first:
        return x_SF
    # uniform_filter1d's window of n is centred at n // 2; the origin moves it.
    before = -first
    pad = max(abs(first), abs(last)) + n
    wide_SF = np.pad(x_SF, ((pad, pad), (0, 0)), mode="edge")
    mean_SF = uniform_filter1d(wide_SF, n, axis=0, mode="nearest")
    shift = n // 2 - before  # the window around step i + shift begins at i + first
    return mean_SF[pad + shift : pad + shift + len(x_SF)]


def stretches(onsets_s: np.ndarray) -> list[slice]:
    """Runs of epochs that adjoin, in time order."""
    breaks = np.flatnonzero(np.abs(np.diff(onsets_s) - EPOCH_S) > STEP_S / 2) + 1
    edges = [0, *breaks.tolist(), len(onsets_s)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]
