"""Does the simulation lie within what papers report? A table of published and simulated values.

    python benchmarks/check_simulation.py                     # 300 nights
    python benchmarks/check_simulation.py --nights 20         # a quick look

Published intervals come from papers alone, never from the simulator's constants; each row names
its own. Architecture and events are counted in the truth of 8-hour nights; what papers measure in
signals is measured in signals (a spindle detector, band power, breaths, pulse) of half an hour a
child, without variation of the recording chain. Then, beside the one real night (Sleep-EDF SC4001
in --real_dir), levels and slopes of recordings with ``--variation``.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.signal import butter, sosfiltfilt, welch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pedsleepmae.prepare.examples import ExampleSettings, build_examples
from pedsleepmae.prepare.layouts import find_studies
from pedsleepmae.simulate import batches, oxygen
from pedsleepmae.simulate.cohort import SimulateSettings, plan_cohort, visit_night
from pedsleepmae.simulate.events import EventRates, draw_night
from pedsleepmae.simulate.night import RESPIRATORY, draw_ages, draw_child
from pedsleepmae.simulate.norms import N2, N3, REM, WAKE
from pedsleepmae.simulate.signals import simulate_signals
from pedsleepmae.simulate.waves import KNOT_HZ
from pedsleepmae.tasks import STAGES

RATE = 128
HEALTHY = EventRates(0, 0, 0, min_events=0)  # papers on sleep and arousals are of healthy children
# Ages at which single papers have values; further ones are NCH's.
INFANT, TODDLER, SCHOOL, TEEN = 0.375, 2.5, 12.0, 16.5


@dataclass(frozen=True)
class Row:
    """One line of the table: a quantity, who published what interval, and what came out."""

    quantity: str
    source: str
    low: float
    high: float
    values: np.ndarray  # of nights; their median is compared

    def text(self) -> str:
        if not len(self.values):
            return (
                f"{self.quantity:44s} {self.low:6.2f} to {self.high:6.2f}      none  {self.source}"
            )
        value = float(np.median(self.values))
        inside = "inside" if self.low <= value <= self.high else "OUTSIDE"
        return (
            f"{self.quantity:44s} {self.low:6.2f} to {self.high:6.2f} {value:8.2f}  {inside:7s} "
            f"{self.source}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nights", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variation", choices=("none", "realistic", "wide"), default="realistic")
    parser.add_argument(
        "--real_dir", type=Path, default=ROOT.parent / "shared/psg/sleep_edf_SC4001"
    )
    options = parser.parse_args()
    truths = [truth_of(options.seed, i) for i in tqdm(range(options.nights), desc="truth")]
    n_signals = max(options.nights // 5, 4)
    measured = {
        age: [signals_at(age, options.seed, i) for i in tqdm(range(n_signals), desc=f"age {age}")]
        for age in (INFANT, TODDLER, SCHOOL, TEEN)
    }
    rows = [*architecture(truths), *oxygen_rows(truths), *signal_rows(measured)]
    print(f"\n{'quantity (median of nights)':44s} {'published':>16s} {'simulated':>9s}")
    for row in rows:
        print(row.text())
    levels(options)


# ------------------------------------------------------------------ truth of whole nights
def truth_of(seed: int, number: int) -> dict:
    """Figures of one 8-hour night: shares of sleep, arousals an hour, and slopes of falls."""
    rng = np.random.default_rng((seed, 1, number))
    child = draw_child(rng, draw_ages(rng, 1)[0])
    night = draw_night(child, 28_800.0, 60.0, HEALTHY, rng)
    counts = np.bincount(night.scored_stages, minlength=5)
    asleep_h = counts[1:].sum() / 120
    ill = draw_night(child, 10_800.0, 60.0, EventRates(), rng)
    slopes = []
    for event in (event for event in ill.events if "Apnea" in event.name):
        (fall,) = oxygen.falls(child, [event], ill.duration_s)
        if fall is not None and fall.size >= 3:
            curve = oxygen.caused_saturation(child, [event], round(ill.duration_s) * KNOT_HZ + 1)
            low = int(curve.argmin())
            slopes.append(fall.size / max(low / KNOT_HZ - fall.onset_s, 1))
    return {
        "age": child.age_years,
        "shares": 100 * counts[1:] / counts[1:].sum(),
        "efficiency": 100 * counts[1:].sum() / counts.sum(),
        "arousals": sum(e.name == "EEG arousal" for e in night.scored_events) / asleep_h,
        "spo2": child.spo2_percent,
        "slopes": slopes,
        "respiratory": sum(e.name in RESPIRATORY for e in ill.events),
    }


def architecture(truths: list[dict]) -> list[Row]:
    """Stages, arousals and baseline SpO2 of healthy children."""
    beck = "Beck & Marcus, Sleep Med Clin 2009;4:393, table 2"
    kurth = "Kurth 2010, J Neurosci 30:13211, table 1, mean +- 2 SE"
    traeger = "Traeger 2005, Pediatr Pulmonol 40:22, mean +- SD"

    def at(key, low, high, place=None):
        found = [
            t[key] if place is None else t[key][place] for t in truths if low <= t["age"] < high
        ]
        return np.array(found)

    return [
        Row("N1, % of sleep, 1-18 y", beck, 4, 5, at("shares", 1, 18.1, 0)),
        Row("N2, % of sleep, 1-18 y", beck, 44, 56, at("shares", 1, 18.1, 1)),
        Row("N3, % of sleep, 1-10 y", beck, 29, 32, at("shares", 1, 10, 2)),
        Row("N3, % of sleep, 2-9 y", traeger, 24, 40, at("shares", 2, 9, 2)),
        Row("R, % of sleep, 1-18 y", beck, 17, 21, at("shares", 1, 18.1, 3)),
        Row("R, % of sleep, 2-5 y", kurth, 25.0, 30.2, at("shares", 2, 5, 3)),
        Row("R, % of sleep, 8-11 y", kurth, 16.4, 21.2, at("shares", 8, 11, 3)),
        Row("R, % of sleep, 14-17 y", kurth, 15.5, 21.1, at("shares", 14, 17, 3)),
        Row("slow-wave sleep, %, 14-17 y", kurth, 18.1, 23.3, at("shares", 14, 17, 2)),
        Row("sleep efficiency, %, 1-18 y", kurth, 84, 92, at("efficiency", 1, 18.1)),
        Row("arousals an hour, 1-18 y", beck, 9, 16, at("arousals", 1, 18.1)),
        Row("arousals an hour, 2-9 y", traeger, 6.9, 15.5, at("arousals", 2, 9)),
        Row("baseline SpO2, %, 2-9 y", traeger, 96, 98, at("spo2", 2, 9)),
    ]


def oxygen_rows(truths: list[dict]) -> list[Row]:
    """Slope of SpO2 in apneas that desaturate by 3 %."""
    children = np.concatenate([t["slopes"] for t in truths if 6 <= t["age"] < 15] + [[]])
    young = [np.median(t["slopes"]) for t in truths if t["age"] < 6 and t["slopes"]]
    old = [np.median(t["slopes"]) for t in truths if t["age"] >= 12 and t["slopes"]]
    ratio = np.array([np.median(young) / np.median(old)] if young and old else [])
    paper = "35 children of median 10.6 y with apnea: 0.64 %/s; ours +- half"
    return [
        Row("fall of SpO2 in apnea, %/s, 6-15 y", paper, 0.32, 0.96, children),
        Row("the same, below 6 over 12 y and more", "Hara, Am J Otolaryngol: > 1", 1, 10, ratio),
    ]


# ------------------------------------------------------------------ signals
def signals_at(age_years: float, seed: int, number: int) -> dict:
    """Figures that are measured in the signals of half an hour of a healthy child of this age."""
    rng = np.random.default_rng((seed, 2, number, round(100 * age_years)))
    child = draw_child(rng, age_years)
    night = draw_night(child, 2400.0, 30.0, HEALTHY, rng)
    signals = simulate_signals(night, RATE, rng, all_sensors=True)
    stage_n = np.repeat(night.stage_of_seconds(), RATE)
    c3 = signals["EEG C3-M2"].astype(float)
    found = spindles(c3, stage_n == N2)
    minutes = (stage_n == N2).sum() / RATE / 60
    hz, density = welch(c3[stage_n == N3], RATE, nperseg=4 * RATE)
    belt = signals["RESP THORACIC"][np.isin(stage_n, (N2, N3))].astype(float)
    belt_hz, breaths = welch(belt, RATE, nperseg=64 * RATE)
    inside = (belt_hz > 0.12) & (belt_hz < 1.2)
    return {
        "density": len(found) / minutes,
        "length": np.median([f[0] for f in found]) if found else np.nan,
        "hz": np.median([f[1] for f in found]) if found else np.nan,
        "delta": density[(hz >= 1) & (hz < 4)].sum(),
        "breaths": 60 * belt_hz[inside][breaths[inside].argmax()],
        "pulse": np.median(signals["RATE"][stage_n != WAKE]),
        "rem": (stage_n == REM).mean(),
    }


def spindles(x: np.ndarray, where: np.ndarray) -> list[tuple[float, float]]:
    """(length s, frequency Hz) of spindles in the parts ``where`` (n,) of an EEG, in uV.

    The 10.5-16 Hz envelope above six times its lower quartile, its edges at three times, for 0.5 s
    at least: the quartile, for an infant's spindles fill a third of the time.
    """
    sos = butter(4, (10.5, 16), "bandpass", fs=RATE, output="sos")
    sigma = sosfiltfilt(sos, x)
    width = RATE // 4
    envelope = np.sqrt(np.convolve(sigma**2, np.ones(width) / width, "same"))
    usual = np.quantile(envelope[where], 0.25) if where.any() else np.inf
    above = (envelope > 3 * usual) & where
    edges = np.flatnonzero(np.diff(np.r_[0, above.astype(int), 0]))
    found = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        if last - first >= RATE // 2 and envelope[first:last].max() > 6 * usual:
            power = np.abs(np.fft.rfft(sigma[first:last] * np.hanning(last - first), 8 * RATE))
            found.append(((last - first) / RATE, power.argmax() / 8))
    return found


def signal_rows(measured: dict) -> list[Row]:
    """Spindles, slow-wave power, breathing and pulse."""

    def at(age, key):
        values = np.array([each[key] for each in measured[age]])
        return values[np.isfinite(values)]

    ventura = "Ventura 2022, Sleep, PMID 34755881, 4-5 months, quartiles"
    delta = np.array([np.median(at(TEEN, "delta")) / np.median(at(SCHOOL, "delta"))])
    fewer = np.array([np.median(at(TODDLER, "density")) / np.median(at(INFANT, "density"))])
    fewer_than_teen = np.array([np.median(at(TODDLER, "density")) / np.median(at(TEEN, "density"))])
    tanguay = "Evolution of sleep spindles in childhood 1975: < 1"
    return [
        Row("spindles a minute of N2, 4-5 months", ventura, 5.7, 8.0, at(INFANT, "density")),
        Row("their length, s", ventura, 2.6, 3.6, at(INFANT, "length")),
        Row("their frequency, Hz", ventura, 12.8, 13.3, at(INFANT, "hz")),
        Row("spindles, 2.5 y over 4-5 months", tanguay, 0, 1, fewer),
        Row(
            "spindles, 2.5 y over 16.5 y",
            "Kwon 2023: rate rises 3 to 14 y: < 1",
            0,
            1,
            fewer_than_teen,
        ),
        Row("spindle frequency, Hz, 16.5 y", "Shinomiya: 11.0 to 14.5", 11, 14.5, at(TEEN, "hz")),
        Row("N3 power 1-4 Hz, 16.5 y over 12 y", "Feinberg 2013: falls > 60 %", 0, 0.4, delta),
        Row(
            "breaths a minute asleep, 2.5 y",
            "Herbert 2020, at 3 y 22.0; ours +- 4",
            18,
            26,
            at(TODDLER, "breaths"),
        ),
        Row(
            "pulse asleep, 2.5 y",
            "Fleming 2011: 113 awake at 2 y, ours 70-100 %",
            79,
            113,
            at(TODDLER, "pulse"),
        ),
    ]


# ------------------------------------------------------------------ beside the real night
def levels(options) -> None:
    """Level and slope by stage of simulated recordings, 5th to 95th percentile, and the real."""
    real = real_night(options.real_dir)
    n = max(options.nights // 5, 4)
    settings = SimulateSettings(
        n_patients=n, n_repeat_studies=0, hours=1.0, variation=options.variation, seed=options.seed
    )
    found = []
    for visit in tqdm(plan_cohort(settings), desc="levels"):
        grid_s = round(visit.first_onset_s * RATE) / RATE
        night = visit_night(replace(visit, first_onset_s=grid_s), settings)
        rng = np.random.default_rng((*visit.stream, 2))
        x_NCT, labels, _ = batches.simulate_examples(night, np.ones(16, bool), rng, visit.chain)
        found.append(levels_of(x_NCT, labels.sleep))
    print(
        f"\nvariation {options.variation}, {n} recordings: 5 % median 95 %, and SC4001 (an adult)"
    )
    for key in [("C3-M2", stage) for stage in STAGES] + [("EOG", "W")]:
        for figure, name in enumerate(("rms uV", "slope 2-40 Hz", "sd of log rms")):
            values = np.array([each[key][figure] for each in found if key in each])
            low, middle, high = np.nanquantile(values, (0.05, 0.5, 0.95))
            beside = "" if key not in real else f"{real[key][figure]:8.2f}"
            held = "" if not beside else "inside" if low <= real[key][figure] <= high else "OUTSIDE"
            print(
                f"{key[0]:6s} {key[1]:3s} {name:14s} "
                f"{low:8.2f} {middle:8.2f} {high:8.2f} {beside} {held}"
            )


def levels_of(x_NCT: np.ndarray, stage_N: np.ndarray) -> dict:
    """(median rms uV, median slope, sd of log rms) by channel and stage, of examples in volts."""
    figures = {}
    for name, place in (("C3-M2", 0), ("EOG", 13)):
        x = x_NCT[:, place].astype(float) * 1e6
        hz, density = welch(x, RATE, nperseg=4 * RATE)
        band = (hz >= 2) & (hz <= 40)
        for stage, word in enumerate(STAGES):
            mine = (stage_N == stage) & (x.std(1) > 0.5)  # not where an electrode is off
            if mine.sum() >= 2:
                log_rms = np.log(x[mine].std(1))
                slopes = np.polyfit(np.log(hz[band]), np.log(density[mine][:, band].T + 1e-12), 1)[
                    0
                ]
                figures[name, word] = (np.exp(np.median(log_rms)), np.median(slopes), log_rms.std())
    return figures


def real_night(folder: Path) -> dict:
    """`levels_of` the night in the folder; empty where there is none."""
    if not folder.is_dir():
        print(f"\nno real night: {folder} is not there")
        return {}
    settings = ExampleSettings(
        layout="sleep_edf",
        wake_margin_min=30,
        min_channels=1,
        stand_ins={"EEG C3-M2": ["EEG Fpz-Cz"], "EOG LOC-M2": ["EOG horizontal"]},
    )
    examples, _ = build_examples(find_studies(folder, "sleep_edf")[0], settings)
    scale, center = examples.scale[:, :, None], examples.center[:, :, None]
    return levels_of(examples.signals.astype(np.float32) * scale + center, examples.labels["sleep"])


if __name__ == "__main__":
    main()
