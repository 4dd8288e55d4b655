"""Log band envelopes of stretches of a signal: what can be foretold of seconds that are hidden.

Nobody can foretell noise sample by sample, but how strong it is in a band. The bands are generic,
12 of three quarters of an octave from 1/8 to 64 Hz, the same for all channels; nothing here knows
what a channel is, nor what a laboratory looks for in it.

Axes: B batch, C 16 channels, T 3,840 samples, J stretches of an epoch (one token's 16 patches),
F bands, G summaries of an epoch (mean, largest and least over its stretches), L frames, N samples
of a frame, E and W widths of what the heads read.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

BAND_EDGES_HZ = 0.125 * 2.0 ** (0.75 * np.arange(13))  # up to 64 Hz, half the signals' rate
N_BANDS = len(BAND_EDGES_HZ) - 1
# Length and hop, s, of the frames that bands from these low edges (Hz) on are measured in: the
# slower, the longer, or a frame holds less than one period and its power is mostly chance.
FRAMES = ((0.125, 8.0, 2.0), (1.0, 4.0, 2.0), (4.0, 1.0, 0.5))
FLOOR = 1e-8  # added to a power, (1e-4)² of a standardised signal: silence has a finite log
SUMMARIES = ("mean", "largest", "least")
LEAST_SD = 0.2  # of a log envelope: what moves less in a band is chance more than signal
LARGEST = 5.0  # sd from the mean that a target lies at most: an artefact must not teach alone


class BandEnvelopes(nn.Module):
    """Log of the rms in each band: (B, C, T) at ``rate_hz`` -> (B, C, J, F) float32.

    A frame's power in a band is the sum of its squared Fourier coefficients there, under a Hann
    window, its mean removed. A stretch, of J equally long ones, has the mean over the frames whose
    middle lies in it, or within half a frame of its middle; or that of the nearest frame. A sine of
    amplitude a has the log of a / sqrt(2) in its band.
    """

    def __init__(self, n_stretches: int, n_samples: int, rate_hz: float):
        super().__init__()
        self.n_stretches, epoch_s = n_stretches, n_samples / rate_hz
        self.hops, self.lengths = [], []
        low_edges = [low_hz for low_hz, _, _ in FRAMES[1:]] + [np.inf]
        for i, ((low_hz, length_s, hop_s), high_hz) in enumerate(
            zip(FRAMES, low_edges, strict=True)
        ):
            here = (BAND_EDGES_HZ[:-1] >= low_hz) & (BAND_EDGES_HZ[:-1] < high_hz)
            bands = zip(BAND_EDGES_HZ[:-1][here], BAND_EDGES_HZ[1:][here], strict=True)
            basis_NK, sums_KF = _fourier(round(length_s * rate_hz), rate_hz, list(bands))
            means_JL = _means_of_frames(n_stretches, epoch_s, length_s, hop_s)
            self.lengths.append(len(basis_NK))
            self.hops.append(round(hop_s * rate_hz))
            for name, matrix in (("basis", basis_NK), ("sums", sums_KF), ("means", means_JL)):
                as_tensor = torch.tensor(matrix, dtype=torch.float32)
                self.register_buffer(f"{name}_{i}", as_tensor, persistent=False)

    def forward(self, x_BCT: Tensor) -> Tensor:
        powers = []
        with torch.autocast(x_BCT.device.type, enabled=False):
            for i, (length, hop) in enumerate(zip(self.lengths, self.hops, strict=True)):
                frames_BCLN = x_BCT.float().unfold(2, length, hop)
                parts_BCLK = frames_BCLN @ self.get_buffer(f"basis_{i}")
                power_BCLF = parts_BCLK.square() @ self.get_buffer(f"sums_{i}")
                powers.append(self.get_buffer(f"means_{i}") @ power_BCLF)
            return 0.5 * (torch.cat(powers, dim=3) + FLOOR).log()


def _fourier(
    length: int, rate_hz: float, bands: list[tuple[float, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Windowed cosines and sines (N, K), and which of them make up each band (K, F)."""
    hz = np.arange(length // 2) * rate_hz / length
    used = np.flatnonzero((hz >= bands[0][0]) & (hz < bands[-1][1]))
    window_N1 = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)[:, None]
    angle_NK = 2 * np.pi * np.arange(length)[:, None] * used / length
    basis_NK = window_N1 * np.concatenate([np.cos(angle_NK), np.sin(angle_NK)], axis=1)
    basis_NK -= basis_NK.mean(axis=0)  # as if the frame's mean had been removed
    basis_NK *= np.sqrt(2 / (length * np.square(window_N1).sum()))  # Parseval: squares are power
    inside_KF = [(hz[used] >= low) & (hz[used] < high) for low, high in bands]
    return basis_NK, np.tile(np.transpose(inside_KF), (2, 1))


def _means_of_frames(n_stretches: int, epoch_s: float, length_s: float, hop_s: float) -> np.ndarray:
    """Weights (J, L) of the frames in each stretch; rows sum to 1."""
    stretch_s = epoch_s / n_stretches
    middle_J1 = (np.arange(n_stretches)[:, None] + 0.5) * stretch_s
    frames = np.arange(1 + int((epoch_s - length_s) // hop_s))
    away_JL = np.abs(middle_J1 - (frames * hop_s + length_s / 2))
    near_s = max(stretch_s, length_s) / 2
    taken_JL = away_JL <= np.maximum(near_s, away_JL.min(axis=1, keepdims=True)) + 1e-9
    return taken_JL / taken_JL.sum(axis=1, keepdims=True)


def epoch_summaries(envelope_BCJF: Tensor) -> Tensor:
    """Mean, largest and least over an epoch's stretches: (B, C, G, F)."""
    found = envelope_BCJF.mean(dim=2), envelope_BCJF.amax(dim=2), envelope_BCJF.amin(dim=2)
    return torch.stack(found, dim=2)


class BandHeads(nn.Module):
    """Linear layers that foretell envelopes, and the targets they are held against.

    ``of_stretch`` reads a stretch's 16 patches as the decoder leaves them (W wide), ``of_epoch`` a
    channel's class token (E wide; None: class tokens have no target). ``mean`` and ``sd``,
    (C, 1 + G, F), of stretches and of each summary, come from the training data (:meth:`measure`)
    and go into checkpoints with the weights.
    """

    def __init__(
        self, envelopes: BandEnvelopes, n_channels: int, width: int, class_width: int | None
    ):
        super().__init__()
        self.envelopes = envelopes
        self.of_stretch = nn.Linear(width, N_BANDS)
        self.of_epoch = None
        if class_width is not None:
            self.of_epoch = nn.Linear(class_width, len(SUMMARIES) * N_BANDS)
        shape = n_channels, 1 + len(SUMMARIES), N_BANDS
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("sd", torch.ones(shape))

    def targets(self, x_BCT: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised ``stretch_BCJF`` and ``epoch_BCGF`` of signals, float32."""
        envelope_BCJF = self.envelopes(x_BCT)
        epoch_BCGF = epoch_summaries(envelope_BCJF)
        stretch_BCJF = (envelope_BCJF - self.mean[:, :1]) / self.sd[:, :1]
        epoch_BCGF = (epoch_BCGF - self.mean[:, 1:]) / self.sd[:, 1:]
        return stretch_BCJF.clamp(-LARGEST, LARGEST), epoch_BCGF.clamp(-LARGEST, LARGEST)

    def foretell(self, z_BCSE: Tensor) -> Tensor:
        """``stretch_BCJF`` from the decoder's patches."""
        z_BCJSE = z_BCSE.unflatten(2, (self.envelopes.n_stretches, -1))
        return self.of_stretch(z_BCJSE.flatten(3))

    def summarise(self, class_BCE: Tensor) -> Tensor:
        """``epoch_BCGF`` from the class tokens."""
        return self.of_epoch(class_BCE).unflatten(2, (len(SUMMARIES), N_BANDS))

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take ``mean`` and ``sd`` over the (``x_BCT``, ``present_BC``), where present.

        sd is LEAST_SD or more; a channel that is never present keeps 0 and 1.
        """
        count_C, sums = torch.zeros(len(self.mean), dtype=torch.float64), [0.0, 0.0]
        for x_BCT, present_BC in batches:
            x_BCT = x_BCT.float().masked_fill(~present_BC[:, :, None], 0).to(self.mean.device)
            envelope_BCJF = self.envelopes(x_BCT).double().cpu()
            summary_BCGF = epoch_summaries(envelope_BCJF)
            for power in (1, 2):
                of_stretch_BC1F = envelope_BCJF.pow(power).mean(dim=2, keepdim=True)
                parts = torch.cat([of_stretch_BC1F, summary_BCGF.pow(power)], dim=2)
                sums[power - 1] += (parts * present_BC[:, :, None, None]).sum(dim=0)
            count_C += present_BC.sum(dim=0)
        count_C11 = count_C[:, None, None]
        mean, square = (total / count_C11.clamp(min=1) for total in sums)
        sd = (square - mean.square()).clamp(min=LEAST_SD**2).sqrt()
        self.mean.copy_(torch.where(count_C11 > 0, mean, 0))
        self.sd.copy_(torch.where(count_C11 > 0, sd, 1))
