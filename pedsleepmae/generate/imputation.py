"""Channels imputed from the other ones, and how near that comes to what was recorded.

The model is shown an epoch with the target channels absent (its learned token stands there) and
decodes them. Beside it, on the same epochs, stand three baselines that need no network. Axes: **N**
epochs, **C** 16 channels, **H** hidden channels, **T** samples, **M** METHODS, **F** FIGURES.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import welch
from torch import Tensor
from tqdm import tqdm

from pedsleepmae import data, metrics, store
from pedsleepmae.channels import (
    CHANNEL_GROUPS,
    CHANNEL_NAMES,
    EPOCH_S,
    N_CHANNELS,
    RATE_HZ,
    canonical_label,
)
from pedsleepmae.data import VARIANCE_SAMPLE, channel_variances
from pedsleepmae.errors import GenerationError
from pedsleepmae.machine import Compute
from pedsleepmae.model import MaskedAutoencoder, hidden_patches
from pedsleepmae.probe.handmade import EEG_BANDS
from pedsleepmae.tasks import CLASSES, class_members

METHODS = ("model", "zero", "recording_mean", "nearest_channel")  # the order of an axis M
BOUNDS = {"correlation": (-1.0, 1.0), "spectral_error": (0.0, np.inf), "nmse": (0.0, np.inf)}
FIGURES = tuple(BOUNDS)
NMSE = FIGURES.index("nmse")

SHOWN_CLASSES = ("W", "N2", "N3", "R", "apnea", "desaturation")  # in pictures
EACH = "each"  # the target that stands for every channel by itself
REFERENCE_EPOCHS = 40  # of a recording, from which a baseline learns its mean and gains
# Bands in Hz of the spectral error. Fast channels: those of the hand-made features and the muscle;
# slow ones (breathing and gases): drift, breaths (7 to 60 a minute), and what gives them shape.
FAST_BANDS = EEG_BANDS | {"muscle": (30.0, 60.0)}
SLOW_BANDS = {"drift": (1 / EPOCH_S, 0.12), "breath": (0.12, 1.0), "shape": (1.0, 4.0)}
FAST_WELCH_S, SLOW_WELCH_S = 4.0, EPOCH_S
SLOW_CHANNELS = frozenset(
    channel for group in ("effort", "flow", "CO2", "SpO2") for channel in CHANNEL_GROUPS[group]
)
POWER_FLOOR = 1e-4  # of the channel's variance; less power in a band counts as this much
LEAST_SD = 1e-6  # of a standardised signal; below, it is constant and has no correlation


# ------------------------------------------------------------------ what is imputed, and where
def parse_targets(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Positions of the channels to hide together, by target's name.

    A name is a channel (SPO2, or C3-M2 for EEG C3-M2), a group of CHANNEL_GROUPS (EEG), or "each"
    for every channel by itself. GenerationError names what is neither.
    """
    by_label = {canonical_label(name): name for name in CHANNEL_NAMES}
    groups = {name.upper(): name for name in CHANNEL_GROUPS}
    targets = {}
    for name in names:
        label = canonical_label(name)
        if name == EACH:
            targets |= {channel: (i,) for i, channel in enumerate(CHANNEL_NAMES)}
        elif label in by_label:
            targets[by_label[label]] = (CHANNEL_NAMES.index(by_label[label]),)
        elif label in groups:
            targets[groups[label]] = CHANNEL_GROUPS[groups[label]]
        else:
            raise GenerationError(
                f"targets: {name!r} is neither a channel ({', '.join(CHANNEL_NAMES)}) nor a group "
                f"({', '.join(CHANNEL_GROUPS)}); give some of these, or {EACH}"
            )
    return targets


def sample_classes(
    index: store.ExampleIndex, split: str, n: int, seed: int
) -> dict[str, np.ndarray]:
    """At most ``n`` positions of each class in a split, drawn by the seed, sorted."""
    rows = index.rows(split)
    members = class_members(index.labels)
    return {
        name: data.fixed_sample(rows[members[name][rows]], n, seed + number)
        for number, name in enumerate(CLASSES)
    }


# ------------------------------------------------------------------ the model's imputation
def impute(
    model: MaskedAutoencoder,
    x_BCT: Tensor,
    present_BC: Tensor,
    channels: Sequence[int],
    *,
    show_all: bool = False,
) -> Tensor:
    """These channels (B, H, 3840) from the others; the model never sees what stands in them.

    To the encoder they are absent, as in a recording that lacks them. With ``show_all`` the others
    are shown whole, which a model pretrained with show_whole has learnt to answer best. Else they
    are masked as in pretraining, by masks that together cover each patch, and the mean over the
    masks is taken: of all that is decoded, or of what they hide, where pretraining hid no channels
    and all else was never asked for.
    """
    shown_BC = present_BC.clone()
    shown_BC[:, list(channels)] = False
    if show_all:
        return model.reconstruct(x_BCT, present=shown_BC)[:, list(channels)]

    def decode(keep_1CK: Tensor) -> Tensor:
        return model.reconstruct(x_BCT, keep_1CK.expand(len(x_BCT), -1, -1), shown_BC)

    if not model.settings.mask_channels:
        return read_where_hidden(model, decode)[:, list(channels)]
    masks = covering_masks(model, torch.Generator().manual_seed(0))
    decoded = [decode(keep_1CK.to(x_BCT.device))[:, list(channels)] for keep_1CK in masks]
    return torch.stack(decoded).mean(0)


def read_where_hidden(model: MaskedAutoencoder, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """Samples (B, 16, 3840), each as ``decode(keep_1CK)`` gives it where the mask hides it.

    The masks are always the same, and hide each patch once or more; then their mean is taken.
    """
    device = next(model.parameters()).device
    total_BCT, count_1CT = 0.0, 0.0
    for keep_1CK in covering_masks(model, torch.Generator().manual_seed(0)):
        keep_1CK = keep_1CK.to(device)
        hidden_1CS = hidden_patches(keep_1CK, model.n_patches)
        hidden_1CT = hidden_1CS.repeat_interleave(model.patch_size, dim=2)
        total_BCT = total_BCT + decode(keep_1CK) * hidden_1CT
        count_1CT = count_1CT + hidden_1CT.float()
    return total_BCT / count_1CT


def covering_masks(model: MaskedAutoencoder, generator: torch.Generator) -> list[Tensor]:
    """As few ``keep_1CK`` as hide every patch once or more, as training hides them.

    Where the loss is on masked patches, only there has the decoder learnt what to say.
    """
    n_patches = model.n_patches
    span = model.settings.mask_span * model.settings.mask_unit_patches
    n_hide, n_runs = n_patches - model.n_keep, -(-n_patches // span)
    noise_CR = torch.rand(model.layout.n_masks, n_runs, generator=generator)
    noise_CS = noise_CR.repeat_interleave(span, dim=1)[:, :n_patches]
    order_CS = noise_CS.argsort(dim=1, stable=True)  # run by run, in time order within a run
    masks = []
    for start in range(0, n_patches, n_hide):
        kept_CK = order_CS.roll(-start, dims=1)[:, n_hide:].sort(dim=1).values
        masks.append(kept_CK.expand(N_CHANNELS, -1)[None])
    return masks


# ------------------------------------------------------------------ baselines
def second_moments(x_BCT: np.ndarray) -> np.ndarray:
    """Sums (B, 17, 17) over time of the products of channels and of 1, divided by T.

    [c, d] is the mean of x_c x_d, [c, 16] the mean of x_c and [16, 16] is 1, so that sums over
    epochs hold all that means and least-squares gains need.
    """
    n_batch, _, n_samples = x_BCT.shape
    with_one = np.ones((n_batch, N_CHANNELS + 1, n_samples))
    with_one[:, :N_CHANNELS] = x_BCT
    return with_one @ with_one.transpose(0, 2, 1) / n_samples


class RecordingMoments:
    """Moments of up to REFERENCE_EPOCHS epochs of each recording, less the epoch asked about.

    The baselines learn from these other epochs of the recording, never from the epoch that is
    imputed. They are generous to the baselines: a recording that truly lacks a channel offers no
    such epochs.
    """

    def __init__(self, index: store.ExampleIndex, positions: np.ndarray, seed: int):
        self.night_N = index.nights()
        self.totals: dict[int, np.ndarray] = {}
        self.own: dict[int, np.ndarray] = {}
        nights = np.unique(self.night_N[positions])
        order = np.argsort(self.night_N, kind="stable")
        bounds = np.searchsorted(self.night_N[order], [nights, nights + 1])
        sampled = [
            data.fixed_sample(order[first:last], REFERENCE_EPOCHS, seed) for first, last in bounds.T
        ]
        bar = tqdm(sampled, desc="recordings' means and gains", unit="rec", leave=False)
        for night, rows in zip(nights.tolist(), bar, strict=True):
            ((x_BCT, _),) = data.sample_batches(index, rows, REFERENCE_EPOCHS)
            moments = second_moments(x_BCT.float().numpy())
            self.totals[night] = moments.sum(axis=0)
            self.own |= dict(zip(rows.tolist(), moments, strict=True))

    def of_others(self, position: int) -> np.ndarray:
        """Sums of moments (17, 17) over the other epochs of the example's recording."""
        total = self.totals[int(self.night_N[position])]
        return total - self.own.get(int(position), 0.0)

    def n_others(self, positions: np.ndarray) -> np.ndarray:
        """How many other epochs each example's baselines can learn from."""
        return np.array([round(self.of_others(position)[-1, -1]) for position in positions], int)


def nearest_channel(
    moments: np.ndarray, target: int, candidates: Sequence[int]
) -> tuple[int | None, float, float]:
    """The channel that correlates most with the target, and gain and offset by least squares.

    ``moments`` (17, 17) as of :meth:`RecordingMoments.of_others`. Where nothing correlates (or
    the target is constant) the channel is None, the gain 0 and the offset the target's mean.
    """
    mean_C = moments[:-1, -1] / moments[-1, -1]
    cov_CC = moments[:-1, :-1] / moments[-1, -1] - np.outer(mean_C, mean_C)
    sd_C = np.sqrt(np.maximum(np.diag(cov_CC), 0))
    usable = [c for c in candidates if sd_C[c] > LEAST_SD]
    if sd_C[target] <= LEAST_SD or not usable:
        return None, 0.0, float(mean_C[target])
    nearest = max(usable, key=lambda c: abs(cov_CC[target, c]) / sd_C[c])
    gain = cov_CC[target, nearest] / cov_CC[nearest, nearest]
    return nearest, float(gain), float(mean_C[target] - gain * mean_C[nearest])


def baselines(
    x_CT: np.ndarray, present_C: np.ndarray, moments: np.ndarray, channels: Sequence[int]
) -> np.ndarray:
    """What each baseline makes of the hidden channels of one epoch, (M - 1, H, T) float32.

    zero: the mean of the population (signals are standardised); recording_mean: the channel's mean
    in the recording's other epochs; nearest_channel: see :func:`nearest_channel`, among channels
    that are not hidden themselves.
    """
    shown = [c for c in range(N_CHANNELS) if present_C[c] and c not in channels]
    made = np.zeros((len(METHODS) - 1, len(channels), x_CT.shape[1]), np.float32)
    for h, target in enumerate(channels):
        made[1, h] = moments[target, -1] / moments[-1, -1]
        channel, gain, offset = nearest_channel(moments, target, shown)
        made[2, h] = offset if channel is None else gain * x_CT[channel] + offset
    return made


# ------------------------------------------------------------------ figures of one epoch
def correlation(true_XT: np.ndarray, pred_XT: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis: 0 for a constant prediction, which follows nothing;
    NaN where the truth is constant, so that there is nothing to follow."""
    true_XT = true_XT - true_XT.mean(axis=-1, keepdims=True)
    pred_XT = pred_XT - pred_XT.mean(axis=-1, keepdims=True)
    sd_X = [np.sqrt((values**2).mean(axis=-1)) for values in (true_XT, pred_XT)]
    varies_X = (sd_X[0] > LEAST_SD) & (sd_X[1] > LEAST_SD)
    product_X = np.where(varies_X, sd_X[0] * sd_X[1], 1)
    r_X = np.where(varies_X, (true_XT * pred_XT).mean(axis=-1) / product_X, 0)
    return np.where(sd_X[0] > LEAST_SD, r_X, np.nan)


def band_powers(x_XT: np.ndarray, channel: int, variance: float) -> np.ndarray:
    """log10 of the power in each band of the channel's kind (Welch), the bands along a last axis.

    ``variance`` of the channel over training sets the floor.
    """
    slow = channel in SLOW_CHANNELS
    n_window = round((SLOW_WELCH_S if slow else FAST_WELCH_S) * RATE_HZ)
    hz, power_XF = welch(x_XT, RATE_HZ, nperseg=n_window, noverlap=n_window // 2)
    bands = SLOW_BANDS if slow else FAST_BANDS
    powers = [power_XF[..., (hz >= low) & (hz < high)].sum(-1) for low, high in bands.values()]
    power_XB = np.stack(powers, axis=-1) * (hz[1] - hz[0])
    return np.log10(np.maximum(power_XB, POWER_FLOOR * variance))


def score_channel(
    true_NT: np.ndarray, pred_NMT: np.ndarray, channel: int, variance: float
) -> np.ndarray:
    """FIGURES of each epoch and method, (N, M, F).

    correlation within the epoch; spectral_error, the mean over bands of the absolute log10 ratio
    of powers (0.3 is a factor of two); nmse, the mean squared error over the channel's variance in
    training (1: what the training mean is worth on average).
    """
    true_N1T = true_NT[:, None].astype(np.float64)
    pred_NMT = pred_NMT.astype(np.float64)
    ratio_NMB = band_powers(pred_NMT, channel, variance) - band_powers(true_N1T, channel, variance)
    spectral_error_NM = np.abs(ratio_NMB).mean(axis=-1)
    nmse_NM = ((pred_NMT - true_N1T) ** 2).mean(axis=-1) / variance
    return np.stack([correlation(true_N1T, pred_NMT), spectral_error_NM, nmse_NM], axis=-1)


# ------------------------------------------------------------------ many epochs
@dataclass(frozen=True)
class Imputation:
    """One target imputed: ``scores`` (N, H, M, F) of the epochs at ``positions``.

    NaN where a channel was not recorded, so that nothing is known of the truth.
    """

    channels: tuple[int, ...]
    positions: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Trace:
    """A channel of the typical epoch of a class: recorded (T,), and by each method (M, T)."""

    class_name: str
    position: int
    channel: int
    true_T: np.ndarray
    pred_MT: np.ndarray
    correlation_M: np.ndarray


@dataclass(frozen=True)
class Imputer:
    """What imputing takes, whatever the target; the model is on its device."""

    model: MaskedAutoencoder
    index: store.ExampleIndex
    moments: RecordingMoments
    variance_C: np.ndarray
    show_all: bool
    compute: Compute

    def impute_target(
        self, target: str, channels: tuple[int, ...], positions: np.ndarray
    ) -> Imputation:
        """Impute a target in these epochs and score it beside the baselines.

        Left out are epochs in which none of its channels was recorded, none besides them was, or
        whose recording offers the baselines no other epoch.
        """
        hidden = np.isin(np.arange(N_CHANNELS), channels)
        present_NC = self.index.present[positions]
        usable = present_NC[:, hidden].any(axis=1) & present_NC[:, ~hidden].any(axis=1)
        positions = positions[usable & (self.moments.n_others(positions) > 0)]
        scores = np.full((len(positions), len(channels), len(METHODS), len(FIGURES)), np.nan)
        with tqdm(total=len(positions), desc=f"imputing {target}", unit="ex", leave=False) as bar:
            for rows, true_BHT, pred_BMHT in self.predict(positions, channels):
                known_BH = self.index.present[positions[rows]][:, list(channels)]
                for h, channel in enumerate(channels):
                    true_NT, pred_NMT = true_BHT[known_BH[:, h], h], pred_BMHT[known_BH[:, h], :, h]
                    if len(true_NT):  # welch refuses to work on nothing
                        scores[rows, h][known_BH[:, h]] = score_channel(
                            true_NT, pred_NMT, channel, self.variance_C[channel]
                        )
                bar.update(len(true_BHT))
        return Imputation(channels, positions, scores)

    def predict(
        self, positions: np.ndarray, channels: Sequence[int]
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """The hidden channels, batch by batch: (places in ``positions``, recorded (B, H, T), as
        each method gives them (B, M, H, T))."""
        device, done = self.compute.device, 0
        batches = data.sample_batches(self.index, positions, self.compute.batch_size)
        for x_BCT, present_BC in batches:
            shown = x_BCT.to(device), present_BC.to(device)
            with self.compute.autocast():
                pred_BHT = impute(self.model, *shown, channels, show_all=self.show_all)
            rows = slice(done, done + len(x_BCT))
            x_BCT, present_BC = x_BCT.float().numpy(), present_BC.numpy()
            simple_BMHT = [
                baselines(x_CT, present_C, self.moments.of_others(at), channels)
                for at, x_CT, present_C in zip(positions[rows], x_BCT, present_BC, strict=True)
            ]
            pred_B1HT = pred_BHT.float().cpu().numpy()[:, None]
            yield rows, x_BCT[:, list(channels)], np.concatenate([pred_B1HT, simple_BMHT], axis=1)
            done = rows.stop

    def typical_traces(
        self, imputation: Imputation, sample: Mapping[str, np.ndarray]
    ) -> list[Trace]:
        """What pictures show of a target.

        For one channel the typical epochs of SHOWN_CLASSES; for a group the typical epoch of all
        (or of the first class in which it was recorded), a trace for each channel recorded in it.
        """
        typical = typical_epochs(imputation, sample)
        names = [name for name in typical if name in SHOWN_CLASSES] or list(typical)
        if len(imputation.channels) > 1:
            names = (["all"] if "all" in typical else names)[:1]
        traces = []
        for name in names:
            at = typical[name]
            scores_HMF = imputation.scores[np.searchsorted(imputation.positions, at)]
            ((_, true_1HT, pred_1MHT),) = self.predict(np.array([at]), imputation.channels)
            for h, channel in enumerate(imputation.channels):
                if self.index.present[at, channel]:
                    signals = true_1HT[0, h], pred_1MHT[0, :, h]
                    traces.append(Trace(name, at, channel, *signals, scores_HMF[h, :, 0]))
        return traces


def train_variances(index: store.ExampleIndex, seed: int) -> np.ndarray:
    """Variance of each channel in a sample of the train examples, (16,)."""
    sample = data.fixed_sample(index.rows("train"), VARIANCE_SAMPLE, seed)
    return channel_variances(data.sample_batches(index, sample, REFERENCE_EPOCHS)).numpy()


def typical_epochs(imputation: Imputation, sample: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Of each class the epoch whose nmse by the model is the median one, for pictures.

    Neither the best nor the worst, of the target's first channel that was recorded there.
    """
    nmse_NH = imputation.scores[:, :, 0, NMSE]
    first_N = np.argmax(np.isfinite(nmse_NH), axis=1)
    nmse_N = nmse_NH[np.arange(len(nmse_NH)), first_N]
    chosen = {}
    for name, drawn in sample.items():
        here = np.flatnonzero(np.isin(imputation.positions, drawn))
        if len(here):
            order = here[np.argsort(nmse_N[here], kind="stable")]
            chosen[name] = int(imputation.positions[order[len(order) // 2]])
    return chosen


# ------------------------------------------------------------------ figures with intervals
def summarise(
    imputation: Imputation,
    index: store.ExampleIndex,
    sample: Mapping[str, np.ndarray],
    n_draws: int,
    seed: int,
) -> dict[str, dict[str, dict]]:
    """Figures by channel and class: ``{channel: {class: {...}}}`` as they stand in generate.json.

    Of each class the epochs of ``sample`` (as of sample_classes) count. Means over epochs, 95 %
    intervals by bootstrap over patients, and paired differences model - baseline.
    """
    result = {CHANNEL_NAMES[channel]: {} for channel in imputation.channels}
    for h, by_class in enumerate(result.values()):
        known = np.isfinite(imputation.scores[:, h, 0, NMSE])
        for name, drawn in sample.items():
            here = known & np.isin(imputation.positions, drawn)
            if here.any():
                rows, scores_NMF = imputation.positions[here], imputation.scores[here, h]
                by_class[name] = summarise_class(index, rows, scores_NMF, n_draws, seed)
    return result


def summarise_class(
    index: store.ExampleIndex, rows: np.ndarray, scores_NMF: np.ndarray, n_draws: int, seed: int
) -> dict:
    """Counts of these epochs, and the figures of each method with its difference to the model."""
    group_N, group = metrics.bootstrap_groups(
        index.patient_ids[rows], index.study_ids[rows], index.onsets_s[rows]
    )
    weights_RG = metrics.draw_weights(group_N.max() + 1, n_draws, seed)
    by_method = {}
    for m, method in enumerate(METHODS):
        means, gaps = {}, {}
        for f, (figure, (low, high)) in enumerate(BOUNDS.items()):
            model_N, score_N = scores_NMF[:, 0, f], scores_NMF[:, m, f]
            means[figure] = metrics.bootstrap_mean(score_N, group_N, weights_RG, (low, high))
            gap_N, edges = model_N - score_N, (low - high, high - low)
            gaps[figure] = metrics.bootstrap_mean(gap_N, group_N, weights_RG, edges)
        by_method[method] = {figure: mean["value"] for figure, mean in means.items()}
        by_method[method]["ci95"] = {figure: mean["ci95"] for figure, mean in means.items()}
        if method != "model":
            by_method[method]["difference"] = gaps
    return {
        "n": len(rows),
        "n_patients": len(np.unique(index.patient_ids[rows])),
        "bootstrap_over": group,
        "model": by_method.pop("model"),
        "baselines": by_method,
    }


def prevalences(index: store.ExampleIndex, split: str) -> dict[str, dict[str, float | int]]:
    """Epochs of each class in a split, and their share of all of them."""
    rows, members = index.rows(split), class_members(index.labels)
    counts = {name: int(member_N[rows].sum()) for name, member_N in members.items()}
    return {name: {"n": n, "share": n / len(rows)} for name, n in counts.items()}
