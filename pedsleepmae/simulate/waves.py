"""What the simulated signals are made of: noise of a band, curves of knots, waves put in place.

Axes: n samples, E electrodes, K control knots (4 a second). Whatever changes slowly (stage,
arousal, movement, amplitude, rate) is a curve of knots; what is fast (noise, waves) is made at the
sampling rate and multiplied by such curves. :class:`State` holds the curves of a night.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.fft import next_fast_len

from pedsleepmae.simulate.night import AROUSAL, Night
from pedsleepmae.simulate.norms import N3, WAKE

KNOT_HZ = 4


def band_noise(
    rng: Generator, n: int, rate_hz: float, band_hz: tuple[float, float], steepness=0.0
) -> np.ndarray:
    """Gaussian noise (n,) float32 of unit RMS, its power falling as 1/f^steepness in the band.

    The band's edges fall off over a tenth of its frequency; what reaches the Nyquist frequency
    is cut there and the rest keeps its density.
    """
    n_fft = next_fast_len(n, real=True)
    hz = np.fft.rfftfreq(n_fft, 1 / rate_hz)
    low, high = band_hz
    first, last = np.searchsorted(hz, (0.95 * low, 1.05 * high))
    f = hz[max(first, 1) : last]
    edges = np.clip((f / low - 0.95) * 10, 0, 1) * np.clip((1.05 - f / high) * 10, 0, 1)
    amplitude = f ** (-steepness / 2) * edges
    # Power that a faster rate would have shown, so that rates agree in density, not in RMS.
    full = np.arange(max(low, 1e-3), high, (high - low) / 512)
    inside = (full ** -float(steepness))[full < rate_hz / 2].sum()
    share = inside / (full ** -float(steepness)).sum()
    scale = n_fft * np.sqrt(share) / (2 * np.sqrt((amplitude**2).sum()))
    spectrum = np.zeros(len(hz), np.complex64)
    draws = rng.standard_normal((2, len(f)), np.float32)
    spectrum[max(first, 1) : last] = (draws[0] + 1j * draws[1]) * (amplitude * scale)
    return np.fft.irfft(spectrum, n_fft)[:n].astype(np.float32, copy=False)


def slow_noise(rng: Generator, n_knots: int, period_s: float) -> np.ndarray:
    """Unit-RMS noise over knots that wanders with about this period."""
    slowest = max(0.2 / period_s, 1.2 * KNOT_HZ / n_knots)
    return band_noise(rng, n_knots, KNOT_HZ, (slowest, max(1 / period_s, 2 * slowest)))


def spread(knots_K: np.ndarray, rate_hz: int) -> np.ndarray:
    """Curve of knots at the sampling rate: straight lines between them, (n,) float32."""
    knots = knots_K.astype(np.float32)
    ramp = np.arange(rate_hz // KNOT_HZ, dtype=np.float32) * np.float32(KNOT_HZ / rate_hz)
    return (knots[:-1, None] + np.diff(knots)[:, None] * ramp).ravel()


def spread_phase(cycles_K: np.ndarray, rate_hz: int) -> np.ndarray:
    """Phase 0 to 1 at the sampling rate from a count of cycles at the knots, (n,) float32."""
    step = rate_hz // KNOT_HZ
    ramp = np.arange(step) / step
    cycles = cycles_K[:-1, None] + np.diff(cycles_K)[:, None] * ramp
    return (cycles - np.floor(cycles)).ravel().astype(np.float32)


def look_up(table: np.ndarray, phase_n: np.ndarray) -> np.ndarray:
    """Values of one cycle's table at these phases (0 to 1), (n,) float32."""
    places = (phase_n * len(table)).astype(np.int32)
    return table.astype(np.float32)[np.minimum(places, len(table) - 1)]


def pulse(
    n_knots: int, onsets_s: np.ndarray, ends_s: np.ndarray, values: np.ndarray | float = 1.0
) -> np.ndarray:
    """Curve of knots that is ``values`` between onsets and ends and 0 elsewhere."""
    curve = np.zeros(n_knots)
    values = np.broadcast_to(values, len(onsets_s))
    for onset_s, end_s, value in zip(onsets_s, ends_s, values, strict=True):
        first, last = round(onset_s * KNOT_HZ), round(end_s * KNOT_HZ)
        curve[max(first, 0) : max(last, first + 1)] = value
    return curve


def soften(curve_K: np.ndarray, seconds: float) -> np.ndarray:
    """Moving average over this many seconds, ends held."""
    width = max(1, round(seconds * KNOT_HZ)) | 1
    padded = np.pad(curve_K, width // 2, mode="edge")
    total = np.cumsum(np.r_[0.0, padded])
    return (total[width:] - total[:-width]) / width


def scatter(rng: Generator, per_minute_K: np.ndarray, least_gap_s: float = 0.0) -> np.ndarray:
    """Times in seconds of a random process whose rate at each knot is given, sorted."""
    hits = rng.random(len(per_minute_K) - 1) < per_minute_K[:-1] / (60 * KNOT_HZ)
    times = (np.flatnonzero(hits) + rng.random(hits.sum())) / KNOT_HZ
    kept = []
    for time in times:
        if not kept or time - kept[-1] >= least_gap_s:
            kept.append(time)
    return np.array(kept)


# ------------------------------------------------------------------ state
@dataclass(frozen=True)
class State:
    """The night as curves of knots, (K,) each; ``stage`` (5, K) holds the shares of W N1 N2 N3 R.

    ``depth`` is how deep N3 has become, 0 to 1, and lags the stage, so that N2 and N3 pass into
    each other; ``arousal``, ``movement`` and ``eyes_open`` are 0 to 1. Its signals have ``n``
    samples at ``rate_hz``.
    """

    rate_hz: int
    n: int
    n_knots: int
    stage: np.ndarray
    depth: np.ndarray
    arousal: np.ndarray
    movement: np.ndarray
    eyes_open: np.ndarray

    def by_stage(self, values: np.ndarray) -> np.ndarray:
        """Curve of a quantity that has these values in W, N1, N2, N3, R."""
        return np.asarray(values, float) @ self.stage

    def spread(self, knots_K: np.ndarray) -> np.ndarray:
        """A curve of knots at the sampling rate, (n,) float32."""
        return spread(knots_K, self.rate_hz)

    def noise(self, rng: Generator, band_hz: tuple[float, float], steepness=0.0) -> np.ndarray:
        """Noise of a band, (n,) float32: `band_noise`."""
        return band_noise(rng, self.n, self.rate_hz, band_hz, steepness)

    def times(self, length_s: float) -> np.ndarray:
        """Seconds from 0 on of the samples of a wave that lasts so long, (m,)."""
        return np.arange(round(length_s * self.rate_hz)) / self.rate_hz

    def add_wave(self, x: np.ndarray, start_s: float, wave: np.ndarray, weights) -> None:
        """Add a wave (m,) from a time on to each row of x (E, n), times the row's weight (E,)."""
        start = round(start_s * self.rate_hz)
        end = min(start + len(wave), x.shape[1])
        if 0 <= start < end:
            seen = np.flatnonzero(weights)
            x[seen, start:end] += weights[seen, None] * wave[: end - start].astype(np.float32)


def night_state(night: Night, rate_hz: int, rng: Generator) -> State:
    """Curves of a night's stages, arousals and movements.

    Movements: often in wake, with a third of the arousals, now and then in sleep. Bursts of alpha
    shorter than the 3 s of an arousal (AASM) occur as well, and nobody scores them.
    """
    n_knots = round(night.duration_s * KNOT_HZ) + 1
    codes = night.stage_at(np.arange(n_knots) / KNOT_HZ)
    stage = np.stack([soften((codes == stage).astype(float), 4) for stage in range(5)])
    arousals = [event for event in night.events if event.name == AROUSAL]
    onsets = np.array([event.onset_s for event in arousals])
    ends = np.array([event.end_s for event in arousals])
    bursts = scatter(rng, 0.12 * (1 - stage[WAKE]))
    brief = pulse(n_knots, bursts, bursts + rng.uniform(0.8, 2.5, len(bursts)))
    moving = rng.random(len(arousals)) < 0.35
    starts = np.r_[
        scatter(rng, np.array((0.9, 0.15, 0.03, 0.01, 0.08)) @ stage),
        onsets[moving] + rng.uniform(0, 1.5, moving.sum()),
    ]
    lengths = np.r_[rng.gamma(2.0, 2.5, len(starts) - moving.sum()), (ends - onsets)[moving]]
    open_eyes = np.zeros(n_knots)
    blocks = np.cumsum(rng.gamma(1.2, 40.0, int(night.duration_s / 8) + 2))
    for first, last in zip(blocks[::2], blocks[1::2], strict=False):
        open_eyes[round(first * KNOT_HZ) : round(last * KNOT_HZ)] = 1.0
    moves = pulse(n_knots, starts, starts + lengths, rng.uniform(0.4, 1, len(starts)))
    return State(
        rate_hz=rate_hz,
        n=(n_knots - 1) * rate_hz // KNOT_HZ,
        n_knots=n_knots,
        stage=stage,
        depth=soften(soften((codes == N3).astype(float), 30), 20),
        arousal=soften(np.maximum(pulse(n_knots, onsets, ends), brief), 0.75),
        movement=soften(moves, 1),
        eyes_open=soften(open_eyes, 0.5) * stage[WAKE],
    )
