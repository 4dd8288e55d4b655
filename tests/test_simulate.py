"""Simulated nights: the truth follows the rules by age, and the signals follow the truth."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pedsleepmae import tasks
from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.prepare import annotations
from pedsleepmae.simulate import batches, body, head, norms, oxygen, waves
from pedsleepmae.simulate.events import (
    EventRates,
    draw_night,
    night_from_scoring,
    scored_rows,
)
from pedsleepmae.simulate.night import (
    AROUSAL,
    DESATURATION,
    RESPIRATORY,
    SHALLOW_DIP,
    Child,
    Event,
    Night,
    _deal,
    draw_ages,
    draw_child,
    draw_hypnogram,
    score_stages,
)
from pedsleepmae.simulate.signals import simulate_signals

SHARED_TSV = Path(__file__).resolve().parents[2] / "shared" / "psg" / "ucddb_tsv"
W, N1, N2, N3, R = range(5)
RATE = 128
BLOCK_S = 600  # of each stage in the hand-made night
APNEAS = ("Obstructive Apnea", "Central Apnea", "Mixed Apnea")
ALL_CHANNELS = np.ones(16, bool)


def any_child(rng) -> Child:
    return draw_child(rng, draw_ages(rng, 1)[0])


def a_child(age_years=9.0, seed=4, **fields):
    child = draw_child(np.random.default_rng(seed), age_years)
    plain = {"eeg_gain": 1.0, "posterior_gain": 1.2, "muscle_gain": 1.0, "breath_factor": 1.0}
    plain |= {"posterior_shift_hz": 0.0, "spindle_gain": 1.0, "spindle_shift_hz": 0.0}
    return replace(child, **(plain | fields))


def made_night(events=(), child=None, blocks=(W, N1, N2, N3, R), block_s=BLOCK_S) -> Night:
    """A night of one block for each stage, with exactly these true events."""
    onsets_s = np.arange(len(blocks)) * float(block_s)
    epochs_s = np.arange(0, len(blocks) * block_s, 30.0)
    return Night(
        child=child or a_child(),
        duration_s=float(len(blocks) * block_s),
        stage_onsets_s=onsets_s,
        stages=np.array(blocks),
        events=sorted(events),
        epoch_onsets_s=epochs_s,
        scored_stages=np.repeat(blocks, block_s // 30),
        scored_events=sorted(events),
    )


def signals_of(night, seed=0, rate_hz=RATE, **options):
    return simulate_signals(night, rate_hz, np.random.default_rng(seed), **options)


def power(x, low, high, rate_hz=RATE):
    """Median over 4-s pieces of the power between two frequencies: artefacts do not count."""
    pieces = x[: len(x) // (4 * rate_hz) * 4 * rate_hz].reshape(-1, 4 * rate_hz)
    pieces = (pieces - pieces.mean(1, keepdims=True)) * np.hanning(4 * rate_hz)
    density = np.abs(np.fft.rfft(pieces) / rate_hz) ** 2
    hz = np.fft.rfftfreq(4 * rate_hz, 1 / rate_hz)
    return np.median(density[:, (hz >= low) & (hz < high)].mean(1))


def block(x, stage, rate_hz=RATE):
    """The part of a signal in one stage of the hand-made night, without its borders."""
    return x[int((stage * BLOCK_S + 30) * rate_hz) : int(((stage + 1) * BLOCK_S - 30) * rate_hz)]


def part(x, start_s, end_s, rate_hz=RATE):
    return x[int(start_s * rate_hz) : int(end_s * rate_hz)]


@pytest.fixture(scope="module")
def quiet():
    """Signals of the hand-made night of one 9-year-old without events."""
    return signals_of(made_night())


@pytest.fixture(scope="module")
def breathing():
    """(events, signals): eight respiratory events of 18 s of each kind, all in N2."""
    kinds = [*norms.APNEA_SHARES, *norms.HYPOPNEA_SHARES]
    events = [
        Event(60.0 + 60 * i, 18.0, kind, 0.5 if "Hypopnea" in kind else 1.0)
        for i, kind in enumerate(kinds * 8)
    ]
    night = made_night(events, blocks=(N2,) * 9, block_s=300)
    return night.events, signals_of(night, seed=8)


@pytest.fixture(scope="module")
def drawn():
    """20 nights of 3 h, as drawn, without their signals."""
    nights = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        child = any_child(rng)
        nights.append(draw_night(child, 10_800.0, 97.25, EventRates(), rng))
    return nights


# ------------------------------------------------------------------ rules by age
def test_stage_shares_are_near_nchs_at_its_mean_age_and_change_with_age_as_measured():
    shares = norms.stage_shares(8.8)
    np.testing.assert_allclose(shares, [0.182, 0.035, 0.378, 0.239, 0.167], atol=0.0105)
    by_age = np.array([norms.stage_shares(age) for age in (0.5, 3, 8, 13, 18)])
    np.testing.assert_allclose(by_age.sum(1), 1)
    assert (np.diff(by_age[:, N3]) < 0).all()
    assert (np.diff(by_age[:, R]) < 0).all()
    assert (np.diff(by_age[:, N2]) > 0).all()


def test_rules_by_age_give_the_values_of_their_sources():
    assert norms.posterior_rhythm_hz(3) == 8.0
    assert norms.posterior_rhythm_hz(15) == 9.9
    assert norms.breaths_per_minute(2) == pytest.approx(0.8 * 26)
    assert norms.shortest_event_s(2) == pytest.approx(2 * 60 / 20.8)
    assert norms.beats_per_minute(2) == pytest.approx(0.85 * 113)
    gain = norms.slow_wave_gain
    assert gain(6) < gain(8) == 1.0 > gain(12)
    assert gain(16.5) ** 2 / gain(12) ** 2 <= 0.4  # delta power falls by more than 60 %
    slow, fast = np.array([norms.spindle_hz(age) for age in range(4, 19)]).T
    assert ((slow >= 11) & (slow <= 12.75) & (fast >= 12.5) & (fast <= 14.5)).all()
    assert (np.diff(fast) > 0).all()
    assert (np.diff(slow) >= 0).all()


def test_confusions_of_a_scorer_are_probabilities():
    np.testing.assert_allclose(norms.STAGE_CONFUSION.sum(1), 1)
    assert sum(norms.APNEA_SHARES.values()) == pytest.approx(1)
    assert sum(norms.HYPOPNEA_SHARES.values()) == pytest.approx(1)


# ------------------------------------------------------------------ hypnograms
@pytest.mark.parametrize("age_years", [0.5, 4, 11, 18])
def test_an_hour_holds_all_five_stages_in_a_nights_order(age_years):
    middle = {stage: [] for stage in range(5)}
    for seed in range(12):
        stages = draw_hypnogram(120, age_years, np.random.default_rng(seed))
        assert len(stages) == 120
        assert set(stages) == {W, N1, N2, N3, R}
        assert stages[0] == W
        assert stages[np.flatnonzero(stages != W)[0]] == N1
        for stage in range(5):
            middle[stage].append(np.flatnonzero(stages == stage).mean())
    assert np.mean(middle[N3]) < np.mean(middle[N2]) < np.mean(middle[R])


def test_stage_shares_of_a_scored_cohort_are_near_nchs():
    counts = np.zeros(5)
    for seed in range(150):
        rng = np.random.default_rng(seed)
        child = any_child(rng)
        stages = draw_hypnogram(180, child.age_years, rng)
        counts += np.bincount(score_stages(stages, rng), minlength=5)
    shares = counts / counts.sum()
    np.testing.assert_allclose(shares, norms.NCH_STAGE_SHARES, atol=0.02)
    assert 0.025 < shares[N1] < 0.045


@pytest.mark.parametrize(
    ("stage", "ages", "low", "high"),
    [  # percent of sleep: Beck & Marcus 2009 (1 to 18 years), Kurth 2010 (the narrower ranges)
        (N1, (1, 18), 4, 5),
        (N2, (1, 18), 44, 56),
        (N3, (1, 10), 29, 32),
        (N3, (14, 17), 18.1, 23.3),
        (R, (1, 18), 17, 21),
        (R, (2, 5), 25.0, 30.2),
        (R, (8, 11), 16.4, 21.2),
        (R, (14, 17), 15.5, 21.1),
    ],
)
def test_stages_of_whole_nights_lie_within_published_intervals(stage, ages, low, high):
    shares = []
    for seed in range(150):
        rng = np.random.default_rng((4, seed))
        stages = draw_hypnogram(960, rng.uniform(*ages), rng)
        counts = np.bincount(score_stages(stages, rng), minlength=5)
        shares.append(100 * counts[stage] / counts[1:].sum())
    assert low <= np.median(shares) <= high


def test_longer_nights_have_more_cycles():
    def n_rem_periods(n_epochs):
        stages = draw_hypnogram(n_epochs, 9.0, np.random.default_rng(1))
        deep = stages[(stages == N3) | (stages == R)]
        return int((np.diff(deep) == R - N3).sum())

    assert n_rem_periods(130) == 2
    assert n_rem_periods(1100) >= 4


def test_a_night_too_short_for_all_stages_is_refused():
    with pytest.raises(ValueError, match="5 epochs cannot hold all stages"):
        draw_hypnogram(5, 9.0, np.random.default_rng(0))


def test_shares_are_dealt_out_by_largest_remainder():
    assert _deal(10, np.array([0.55, 0.25, 0.2])).tolist() == [6, 2, 2]
    assert _deal(7, np.array([1.0, 1.0, 1.0])).sum() == 7
    assert _deal(20, np.array([0.98, 0.01, 0.01]), least=2).tolist() == [16, 2, 2]


def test_true_stages_change_within_12_s_of_the_epochs_border(drawn):
    for night in drawn[:5]:
        edges = night.stage_onsets_s[2:]
        distance = np.abs((edges - 97.25 + 15) % 30 - 15)
        assert distance.max() <= 12
        assert distance.max() > 3
        assert night.stage_at(np.array([0.0, 50.0])).tolist() == [W, W]


# ------------------------------------------------------------------ events
def test_apneas_and_hypopneas_last_two_breaths_and_do_not_touch(drawn):
    for night in drawn:
        events = [event for event in night.events if event.name in RESPIRATORY]
        shortest_s = norms.shortest_event_s(night.child.age_years)
        assert events
        assert min(event.duration_s for event in events) >= 0.99 * (
            shortest_s / night.child.breath_factor
        )
        for earlier, later in pairwise(events):
            assert later.onset_s >= earlier.end_s + 8
        onsets_s = np.array([event.onset_s for event in events])
        assert (night.stage_at(np.floor(onsets_s) + 0.5) > 0).all()


def test_each_hypopnea_has_a_desaturation_or_an_arousal(drawn):
    for night in drawn:
        for event in night.events:
            if "Hypopnea" not in event.name:
                continue
            assert event.size <= 1 - norms.LEAST_FLOW_DROP
            desaturated = any(
                after.name == DESATURATION
                and after.size >= 3
                and 9.9 <= after.onset_s - event.onset_s <= 25.1
                for after in night.events
            )
            aroused = any(
                after.name == AROUSAL and abs(after.onset_s - event.end_s) <= 1
                for after in night.events
            )
            assert desaturated or aroused


def test_events_are_where_children_have_them(drawn):
    hours, counts = np.zeros(5), {name: np.zeros(5) for name in norms.STAGE_RISK}
    for night in drawn:
        hours += np.bincount(night.stage_at(np.arange(night.duration_s)), minlength=5) / 3600
        for event in night.events:
            if event.name in counts:
                counts[event.name][night.stage_at(np.array([event.onset_s]))[0]] += 1
    per_hour = {name: count / hours for name, count in counts.items()}
    obstructive = per_hour["Obstructive Apnea"]
    assert obstructive[R] > 2 * obstructive[[N1, N2, N3]].mean()
    assert obstructive[N2] > obstructive[N3]
    assert sum(per_hour[name][W] for name in APNEAS) < 0.5
    arousals = [event for night in drawn for event in night.events if event.name == "EEG arousal"]
    assert min(event.duration_s for event in arousals) >= 3
    total = {name: counts[name].sum() for name in APNEAS}
    assert total["Obstructive Apnea"] > total["Central Apnea"] > total["Mixed Apnea"] > 0


def test_the_default_cohort_is_enriched_as_documented(drawn):
    positive, n_epochs = dict.fromkeys(tasks.EVENT_KINDS, 0), 0
    for night in drawn:
        scoring = annotations.scoring_from_rows(scored_rows(night))
        labels = annotations.label_epochs(scoring, night.duration_s)
        n_epochs += len(labels.sleep)
        for kind, codes in labels.events.items():
            positive[kind] += (codes > 0).sum()
            assert (codes > 0).sum() >= 2
    share = {kind: count / n_epochs for kind, count in positive.items()}
    assert 0.035 < share["apnea"] < 0.07
    assert 0.045 < share["hypop"] < 0.085
    assert 0.08 < share["desat"] < 0.15
    assert 0.11 < share["eeg"] < 0.17


def test_rates_of_zero_give_a_night_without_events():
    rng = np.random.default_rng(0)
    none = EventRates(0, 0, 0, 0, min_events=0)
    night = draw_night(a_child(), 4000.0, 100.0, none, rng)
    assert night.events == []
    assert night.scored_events == []


def test_children_differ_in_severity(drawn):
    counts = [sum(event.name in RESPIRATORY for event in night.events) for night in drawn]
    assert max(counts) > 3 * min(counts)


# ------------------------------------------------------------------ the scorer
def test_a_scorer_misses_some_events_invents_some_and_is_a_little_off(drawn):
    real, found, spurious, scored, offsets = 0, 0, 0, 0, []
    for night in drawn:
        truth = [event for event in night.events if event.name != SHALLOW_DIP]
        real, scored = real + len(truth), scored + len(night.scored_events)
        for event in truth:
            near = [s for s in night.scored_events if abs(s.onset_s - event.onset_s) < 3]
            near = [s for s in near if (s.name == event.name) or event.name in APNEAS]
            found += bool(near)
            offsets += [s.onset_s - event.onset_s for s in near[:1]]
        spurious += sum(
            all(abs(s.onset_s - event.onset_s) > 3 for event in truth) for s in night.scored_events
        )
    assert 0.85 < found / real < 0.97
    assert 0.01 < spurious / scored < 0.08
    assert 0.4 < np.std(offsets) < 1.2


def test_scored_stages_disagree_most_about_n1_and_beside_changes():
    rng = np.random.default_rng(0)
    truth = np.concatenate([draw_hypnogram(600, 9.0, rng) for _ in range(20)])
    scored = score_stages(truth, rng)
    right = scored == truth
    agreement = [right[truth == stage].mean() for stage in range(5)]
    assert 0.88 < right.mean() < 0.97
    assert np.argmin(agreement) == N1
    beside = np.r_[False, np.diff(truth) != 0] | np.r_[np.diff(truth) != 0, False]
    assert right[beside].mean() < right[~beside].mean()
    # Confusions are between neighbours only: no N3 is scored as wake or R, nor the reverse.
    assert not ((truth == N3) & np.isin(scored, (W, R))).any()
    assert not (np.isin(truth, (W, R)) & (scored == N3)).any()


# ------------------------------------------------------------------ building blocks
def test_band_noise_has_unit_power_in_its_band_and_one_density_at_every_rate():
    noise = {
        rate: waves.band_noise(np.random.default_rng(1), 300 * rate, rate, (20.0, 100.0))
        for rate in (128, 400)
    }
    assert noise[400].std() == pytest.approx(1, abs=0.02)
    assert noise[128].std() == pytest.approx(np.sqrt(44 / 80), abs=0.02)
    ratio = power(noise[128], 25, 50, 128) / power(noise[400], 25, 50, 400)
    assert ratio == pytest.approx(1, abs=0.1)
    assert power(noise[400], 1, 17, 400) < 0.01 * power(noise[400], 25, 50, 400)
    assert noise[400].dtype == np.float32


def test_knots_are_joined_by_straight_lines():
    curve = waves.spread(np.array([0.0, 4.0, 2.0]), 16)
    assert curve.tolist() == [0, 1, 2, 3, 4, 3.5, 3, 2.5]
    phase = waves.spread_phase(np.array([0.75, 1.25]), 16)
    assert phase.tolist() == [0.75, 0.875, 0.0, 0.125]


def test_scattered_times_follow_their_rate():
    rate = np.r_[np.full(4 * 6000, 10.0), np.zeros(4 * 6000 + 1)]
    times = waves.scatter(np.random.default_rng(0), rate)
    assert pytest.approx(len(times), rel=0.1) == 1000
    assert times.max() <= 6000
    apart = waves.scatter(np.random.default_rng(0), rate, least_gap_s=5.0)
    assert np.diff(apart).min() >= 5


def test_a_breath_is_two_fifths_inspiration_and_its_co2_a_plateau():
    volume, flow, co2 = body.breath_tables()
    phase = body.PHASES
    assert phase[volume.argmax()] == pytest.approx(0.4, abs=0.002)
    assert (volume.min(), volume.max()) == (-1, pytest.approx(1, abs=1e-5))
    assert (flow[(phase > 0) & (phase < 0.4)] > 0).all()
    assert (flow[(phase >= 0.41) & (phase < 0.9)] < 0).all()
    assert co2[(phase >= 0.1) & (phase < 0.4)].max() < 0.01
    assert co2[phase >= 0.6].min() > 0.9
    assert (np.diff(co2[phase >= 0.6]) >= 0).all()


# ------------------------------------------------------------------ EEG, EOG, EMG
def test_spindles_of_an_age_have_its_rate_length_and_frequency():
    assert norms.spindles_per_minute(0.37) == pytest.approx(6.6, rel=0.1)
    assert norms.spindle_s(0.37) == pytest.approx(2.9, abs=0.1)
    assert norms.spindle_hz(0.37) == pytest.approx((13.05, 13.05), abs=0.1)
    toddler, child, adolescent = (norms.spindles_per_minute(age) for age in (2.5, 8, 14))
    assert toddler < child < adolescent


def test_a_spindle_is_moved_to_the_highest_up_state_near_it():
    slow = np.zeros(100 * RATE)
    slow[50 * RATE] = 1.0
    start_s = head._into_up_state(slow, 49.0, 1.0, RATE)
    assert start_s + 0.5 == 50.0
    assert head._into_up_state(slow, 99.9, 4.0, RATE) == 99.9  # beyond the end


def test_spindles_belong_to_n2_at_the_frequency_of_the_age(quiet):
    c3 = quiet["EEG C3-M2"]

    def peak_over_neighbours(x):
        sigma = [x[i : i + 2 * RATE] for i in range(0, len(x) - 2 * RATE, RATE)]
        spectra = np.abs(np.fft.rfft(np.array(sigma) * np.hanning(2 * RATE), axis=1)) ** 2
        hz = np.fft.rfftfreq(2 * RATE, 1 / RATE)
        mean = spectra.mean(0)
        here = mean[(hz >= 11) & (hz <= 14)].mean()
        around = mean[((hz >= 8.5) & (hz <= 10)) | ((hz >= 16) & (hz <= 18))].mean()
        return here / around

    assert peak_over_neighbours(block(c3, N2)) > 2 * peak_over_neighbours(block(c3, W))
    assert peak_over_neighbours(block(c3, N2)) > 1.5 * peak_over_neighbours(block(c3, R))


def test_slow_waves_grow_from_wake_over_n2_to_n3_and_are_an_8_year_olds(quiet):
    f3 = quiet["EEG F3-M2"]
    slow = [power(block(f3, stage), 0.5, 2) for stage in range(5)]
    assert slow[N3] > 4 * slow[N2]
    assert slow[N2] > 1.5 * max(slow[W], slow[R])

    def n3_power(age_years):
        night = made_night(child=a_child(age_years), blocks=(N3,), block_s=300)
        return power(signals_of(night)["EEG C3-M2"], 0.5, 2)

    assert n3_power(8.0) > 2 * n3_power(17.0)


def test_n3_has_waves_of_75_uv_in_a_fifth_of_the_time(quiet):
    """AASM: slow waves above 75 uV peak to peak in at least 20 % of an epoch."""
    x = block(quiet["EEG F4-M1"], N3)
    spectrum = np.fft.rfft(x)
    hz = np.fft.rfftfreq(len(x), 1 / RATE)
    slow = np.fft.irfft(spectrum * ((hz > 0.4) & (hz < 3)), len(x)).reshape(-1, 2 * RATE)
    assert (np.ptp(slow, axis=1) > 75).mean() > 0.5


@pytest.mark.parametrize("age_years", [0.5, 3.0, 9.0, 15.0])
def test_the_posterior_rhythm_of_wake_has_the_frequency_of_the_age(age_years):
    child = a_child(age_years, posterior_gain=1.6)
    x = signals_of(made_night(child=child, blocks=(W,), block_s=400))["EEG O2-M1"]
    pieces = x[: len(x) // (4 * RATE) * 4 * RATE].reshape(-1, 4 * RATE) * np.hanning(4 * RATE)
    hz = np.fft.rfftfreq(4 * RATE, 1 / RATE)
    spectrum = np.median(np.abs(np.fft.rfft(pieces)) ** 2, axis=0) * hz**1.5  # flat but for peaks
    band = (hz >= 3) & (hz <= 13)
    peak_hz = hz[band][spectrum[band].argmax()]
    assert peak_hz == pytest.approx(norms.posterior_rhythm_hz(age_years), abs=0.8)


def test_the_posterior_rhythm_is_occipital_and_goes_with_sleep(quiet):
    alpha = {name: power(block(quiet[name], W), 8.4, 9.8) for name in CHANNEL_NAMES[:7]}
    assert min(alpha["EEG O1-M2"], alpha["EEG O2-M1"]) > alpha["EEG F3-M2"]
    assert alpha["EEG O1-M2"] > 1.5 * power(block(quiet["EEG O1-M2"], R), 8.4, 9.8)


def test_chin_emg_falls_with_sleep_and_is_lowest_in_rem(quiet):
    level = []
    for stage in range(5):
        seconds = block(quiet["EMG CHIN1-CHIN2"], stage).reshape(-1, RATE)
        level.append(np.median(seconds.std(1)))
    assert level[W] > level[N1] > level[R]
    assert min(level) == level[R]
    assert level[R] ** 2 < 0.5 * level[N3] ** 2  # powers of tone and electrode noise add


def test_eyes_move_against_each_other_and_frontal_waves_reach_both_alike(quiet):
    left, right = quiet["EOG LOC-M2"], quiet["EOG ROC-M1"]
    correlation = [np.corrcoef(block(left, s), block(right, s))[0, 1] for s in range(5)]
    assert correlation[W] < -0.3
    assert correlation[R] < -0.3
    assert correlation[N3] > 0.2
    # R has jumps, N1 slow rolling: the ratio of fast to slow power tells them apart.
    difference = left - right
    fast_to_slow = [
        power(block(difference, s), 3, 8) / power(block(difference, s), 0.2, 0.5) for s in range(5)
    ]
    assert fast_to_slow[N1] < fast_to_slow[N2]


def test_derivations_are_differences_of_the_same_electrodes(quiet, monkeypatch):
    # CZ-O1 is seen again in C3-M2 minus O1-M2, which have M2 in common.
    x = block(quiet["EEG C3-M2"] - quiet["EEG O1-M2"], N3)
    assert np.corrcoef(x, block(quiet["EEG CZ-O1"], N3))[0, 1] > 0.6
    level = {name: np.float32(2.0**i) for i, name in enumerate(head.ELECTRODES)}
    monkeypatch.setattr(
        head,
        "recorded_electrodes",
        lambda *_: {n: np.full(7680, v) for n, v in level.items()},
    )
    made = signals_of(made_night(blocks=(N2,), block_s=60))
    for name in (n for n in CHANNEL_NAMES if n.startswith(("EEG", "EOG"))):
        plus, minus = name.split(" ")[1].replace("LOC", "E1").replace("ROC", "E2").split("-")
        assert set(made[name]) == {level[plus] - level[minus]}


def test_arousals_are_bursts_of_fast_eeg_with_chin_emg():
    events = [Event(40.0 + 60 * i, 8.0, "EEG arousal") for i in range(9)]
    x = signals_of(made_night(events, blocks=(N2, R), block_s=300))
    for name, (low, high) in {"EEG F4-M1": (16, 30), "EMG CHIN1-CHIN2": (20, 60)}.items():
        during = [power(part(x[name], e.onset_s + 1, e.end_s - 1), low, high) for e in events]
        before = [power(part(x[name], e.onset_s - 16, e.onset_s - 2), low, high) for e in events]
        assert np.median(during) > 2 * np.median(before)


# ------------------------------------------------------------------ breathing
def correlation_of_belts(signals, start_s, end_s):
    chest, abdomen = (part(signals[f"RESP {n}"], start_s, end_s) for n in ("THORACIC", "ABDOMINAL"))
    return np.corrcoef(chest, abdomen)[0, 1]


def test_belts_oppose_each_other_in_obstructive_apneas_only(breathing):
    events, signals = breathing
    found = {
        name: [
            correlation_of_belts(signals, e.onset_s + 2, e.end_s - 1)
            for e in events
            if e.name == name
        ]
        for name in RESPIRATORY
    }
    usual = [correlation_of_belts(signals, e.onset_s - 22, e.onset_s - 2) for e in events]
    assert np.median(usual) > 0.8
    assert np.median(found["Obstructive Apnea"]) < -0.6
    assert np.median(found["Hypopnea"]) > 0.5
    assert np.median(found["Obstructive Hypopnea"]) < np.median(usual)


def amplitude_ratio(signals, name, event, first=0.15, last=0.9):
    """Range of a signal inside an event over its range in the 20 s before."""
    inside = part(
        signals[name],
        event.onset_s + first * event.duration_s,
        event.onset_s + last * event.duration_s,
    )
    before = part(signals[name], event.onset_s - 22, event.onset_s - 2)
    return np.diff(np.percentile(inside, (5, 95)))[0] / np.diff(np.percentile(before, (5, 95)))[0]


def test_effort_stops_in_central_and_goes_on_in_obstructive_apneas(breathing):
    events, signals = breathing
    for belt in ("RESP THORACIC", "RESP ABDOMINAL"):
        ratio = {
            name: np.median([amplitude_ratio(signals, belt, e) for e in events if e.name == name])
            for name in APNEAS[:2]
        }
        assert ratio["Central Apnea"] < 0.3
        assert ratio["Obstructive Apnea"] > 0.5
        mixed = [e for e in events if e.name == "Mixed Apnea"]
        early = np.median([amplitude_ratio(signals, belt, e, 0.1, 0.4) for e in mixed])
        late = np.median([amplitude_ratio(signals, belt, e, 0.55, 0.95) for e in mixed])
        assert early < 0.3 < 0.5 < late


def test_flow_and_co2_cease_in_apneas_and_flow_is_halved_in_hypopneas(breathing):
    events, signals = breathing
    for event_kinds, low, high in ((APNEAS, 0, 0.15), (norms.HYPOPNEA_SHARES, 0.35, 0.7)):
        chosen = [event for event in events if event.name in event_kinds]
        ratio = np.median([amplitude_ratio(signals, "C-FLOW", e) for e in chosen])
        assert low <= ratio < high
    for event in (event for event in events if event.name in APNEAS):
        late = part(signals["CAPNO"], event.onset_s + 6, event.end_s)  # gas needs 1-2 s, a breath 4
        assert np.median(late) < 8
    usual = np.concatenate([part(signals["CAPNO"], e.onset_s - 20, e.onset_s - 2) for e in events])
    assert 33 < np.percentile(usual, 90) < 48


def test_snoring_precedes_obstructive_events_and_stops_with_them(breathing):
    events, signals = breathing
    chosen = [event for event in events if event.name == "Obstructive Apnea"]
    loud = [part(signals["SNORE"], e.onset_s - 8, e.onset_s - 1).std() for e in chosen]
    inside = [part(signals["SNORE"], e.onset_s + 2, e.end_s - 1).std() for e in chosen]
    assert np.median(loud) > 3 * np.median(inside)


def test_the_child_breathes_at_the_rate_of_its_age():
    for age_years in (1.0, 6.0, 15.0):
        night = made_night(child=a_child(age_years), blocks=(N3,), block_s=300)
        x = signals_of(night)["RESP THORACIC"]
        spectrum = np.abs(np.fft.rfft(x - x.mean())) ** 2
        hz = np.fft.rfftfreq(len(x), 1 / RATE)
        band = (hz > 0.12) & (hz < 1)
        peak = hz[band][spectrum[band].argmax()] * 60
        assert peak == pytest.approx(norms.breaths_per_minute(age_years), rel=0.12)


# ------------------------------------------------------------------ oxygen
def test_spo2_falls_from_the_onset_of_a_desaturation_by_its_size():
    events = [Event(100.0 + 100 * i, 24.0, "Oxygen Desaturation", 6.0) for i in range(8)]
    night = made_night(events, blocks=(N2,) * 3, block_s=300, child=a_child(spo2_percent=97.0))
    spo2 = signals_of(night)["SPO2"][::RATE]
    falls, troughs = [], []
    for event in events:
        start = int(event.onset_s)
        window = spo2[start : start + 40]
        if window.min() == 0:  # the probe was off
            continue
        falls.append(spo2[start - 10 : start].mean() - window.min())
        troughs.append(window.argmin())
        assert abs(spo2[start - 10 : start + 1].mean() - 97) < 1.5
    assert len(falls) >= 6
    assert np.mean(falls) == pytest.approx(6, abs=1.0)
    assert np.mean(troughs) == pytest.approx(0.65 * 24, abs=3)


def test_desaturations_follow_their_apnea_by_10_to_25_seconds(drawn):
    """In the truth by construction, and in the signal: nothing falls before the lag is over."""
    lags = []
    for night in drawn:
        dips = [e for e in night.events if e.name in (DESATURATION, SHALLOW_DIP)]
        for event in night.events:
            if event.name in APNEAS:
                lags += [
                    d.onset_s - event.onset_s for d in dips if 9 < d.onset_s - event.onset_s < 26
                ]
    assert min(lags) >= 10 - 1e-9
    assert 12 < np.mean(lags) < 20
    child = a_child(desaturation_lag_s=16.0)
    apnea = Event(300.0, 20.0, "Obstructive Apnea")
    (fall,) = oxygen.falls(child, [apnea], 600.0)
    night = made_night([apnea, fall], child=child, blocks=(N2,), block_s=600)
    spo2 = signals_of(night, seed=2)["SPO2"][::RATE]
    assert spo2[300:310].min() > spo2[280:300].mean() - 1.5
    trough = 300 + spo2[300:380].argmin()
    assert 316 < trough < 316 + 20 + 16
    assert spo2[280:300].mean() - spo2[trough] > 2


def fall_of(*events, age_years=8.0, which=0, spo2_percent=97.5):
    child = a_child(age_years, desaturation_lag_s=16.0, spo2_percent=spo2_percent)
    found = oxygen.falls(child, [Event(*event) for event in events], 400.0)[which]
    return found.size if found else 0.0


def apnea(onset_s, duration_s):
    return (onset_s, duration_s, "Obstructive Apnea")


def test_falls_are_deeper_the_longer_the_event_the_younger_the_child_and_the_lower_its_baseline():
    by_length = [fall_of(apnea(100.0, seconds)) for seconds in (7, 12, 18, 30)]
    assert (np.diff(by_length) > 0.5).all()
    by_age = [fall_of(apnea(100.0, 12.0), age_years=age) for age in (0.5, 3, 8, 17)]
    assert (np.diff(by_age) < 0).all()
    assert fall_of(apnea(100.0, 12.0), spo2_percent=95.0) > 1.3 * by_length[1]
    assert fall_of((100.0, 18.0, "Hypopnea", 0.5)) < by_length[2]


def test_an_event_before_the_lung_is_filled_again_desaturates_more():
    alone = fall_of(apnea(100.0, 18.0))
    child = a_child(8.0, desaturation_lag_s=16.0, spo2_percent=97.5)
    pair = [Event(*apnea(100.0, 18.0)), Event(*apnea(121.0, 18.0))]
    lowest = oxygen.caused_saturation(child, pair, 1601).min()
    assert -lowest > alone + 0.5


def test_without_a_breath_the_pressure_falls_by_the_uptake_and_nothing_moves_at_rest():
    child = a_child(8.0, desaturation_lag_s=16.0, spo2_percent=97.5)
    assert not oxygen.caused_saturation(child, [], 1000).any()
    resting = np.interp(97.5, oxygen._PERCENT, oxygen._MMHG)
    after_10_s = resting - 10 * norms.oxygen_fall_mmhg(8.0)
    expected = oxygen.saturation(after_10_s) - 97.5
    lowest = oxygen.caused_saturation(child, [Event(*apnea(100.0, 10.0))], 1601).min()
    assert expected <= lowest < 0.8 * expected  # the oximeter's average is a little higher


def test_scored_desaturations_are_falls_of_3_percent_of_the_curve_that_is_shown(drawn):
    shown = []
    for night in drawn:
        n_knots = round(night.duration_s) * 4 + 1
        curve = oxygen.night_saturation(night.child, night.events, n_knots)
        for event in night.events:
            if event.name == DESATURATION:
                first, last = round(event.onset_s * 4), round(event.end_s * 4)
                assert event.size >= 3
                shown.append(curve[first] - curve[first : last + 1].min())
    # Two of 408 begin while the curve still rises from the fall before, and end as low.
    assert np.mean(np.array(shown) > 2.4) > 0.99
    assert min(shown) > 1.5


def test_spo2_is_held_for_a_second_and_the_probe_falls_off_at_times(quiet):
    seconds = quiet["SPO2"].reshape(-1, RATE)
    assert (seconds == seconds[:, :1]).all()
    night = made_night(blocks=(W, N2), block_s=7200)
    state = waves.night_state(night, RATE, np.random.default_rng(0))
    spo2 = body.oximeter(night, state, np.random.default_rng(1))
    assert spo2.shape == (14_400,)
    assert 0.001 < (spo2 == 0).mean() < 0.1
    assert 90 < spo2[spo2 > 0].min() <= spo2.max() <= 100


# ------------------------------------------------------------------ whole nights
def test_every_sensor_of_nchs_montages_is_there_at_any_rate():
    night = made_night(blocks=(W, N2), block_s=60)
    signals = signals_of(night, rate_hz=400, all_sensors=True)
    assert set(CHANNEL_NAMES) <= set(signals)
    assert {"ECG", "EMG LLEG", "EMG RLEG", "RATE", "ETCO2", "TCCO2", "TIDAL VOL"} <= set(signals)
    for x in signals.values():
        assert x.shape == (120 * 400,)
        assert x.dtype == np.float32
        assert np.isfinite(x).all()
    beats = np.flatnonzero(np.diff((signals["ECG"] > 450).astype(int)) == 1)
    assert len(beats) / 2 == pytest.approx(signals["RATE"].mean(), rel=0.05)


def test_128_hz_shows_the_same_night_as_256_hz():
    night = made_night(blocks=(N2,), block_s=400)
    low, high = signals_of(night, rate_hz=128), signals_of(night, rate_hz=256)
    for name in ("EEG C3-M2", "EEG O2-M1", "EOG LOC-M2"):
        ratio = power(low[name], 1, 12, 128) / power(high[name], 1, 12, 256)
        assert 0.7 < ratio < 1.4
    emg = "EMG CHIN1-CHIN2"
    assert 0.6 < power(low[emg], 15, 55, 128) / power(high[emg], 15, 55, 256) < 1.6


def test_a_rate_that_does_not_fit_the_knots_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        signals_of(made_night(blocks=(N2,), block_s=60), rate_hz=130)


def test_examples_are_the_scored_epochs_in_the_units_of_the_channels():
    rng = np.random.default_rng(5)
    child = any_child(rng)
    night = draw_night(child, 1900.0, 50.5, EventRates(), rng)
    present = np.ones(16, bool)
    present[12] = False
    x_NCT, labels, present_NC = batches.simulate_examples(night, present, np.random.default_rng(1))
    n = int((1900 - 50.5) // 30)
    assert x_NCT.shape == (n, 16, 3840)
    assert x_NCT.dtype == np.float32
    np.testing.assert_array_equal(labels.sleep, night.scored_stages[:n])
    np.testing.assert_allclose(labels.onsets_s, 50.5 + 30 * np.arange(n))
    assert set(labels.events) == {"apnea", "hypop", "desat", "eeg"}
    assert not x_NCT[:, 12].any()
    assert not present_NC[:, 12].any()
    sd = np.median(x_NCT.std(-1), axis=0)
    assert (sd[:7] > 5e-6).all()  # volts
    assert (sd[:7] < 3e-4).all()
    assert 85 < np.nanmedian(x_NCT[:, 8]) <= 100  # percent
    whole = simulate_signals(night, 128, np.random.default_rng(1))
    start = round((50.5 + 30 * 7) * 128)
    np.testing.assert_allclose(
        x_NCT[7, 3], whole["EEG CZ-O1"][start : start + 3840] * 1e-6, rtol=1e-5
    )


def test_the_seed_decides_everything():
    def make(seed):
        rng = np.random.default_rng(seed)
        night = draw_night(any_child(rng), 900.0, 20.0, EventRates(), rng)
        return batches.simulate_examples(night, ALL_CHANNELS, rng)[0]

    np.testing.assert_array_equal(make(3), make(3))
    assert not np.array_equal(make(3), make(4))


def test_simple_features_tell_n3_from_wake_but_not_n1_from_rem():
    slow, tone, stages = [], [], []
    for seed in range(8):
        rng = np.random.default_rng(seed + 20)
        night = draw_night(any_child(rng), 3660.0, 60.0, EventRates(), rng)
        x_NCT, labels, _ = batches.simulate_examples(night, ALL_CHANNELS, rng)
        spectrum = np.abs(np.fft.rfft(x_NCT[:, 6])) ** 2
        hz = np.fft.rfftfreq(3840, 1 / 128)
        slow.append(np.log(spectrum[:, (hz > 0.5) & (hz < 2)].mean(1)))
        tone.append(np.log(np.median(x_NCT[:, 15].reshape(len(x_NCT), 30, 128).std(2), axis=1)))
        stages.append(labels.sleep)
    slow, tone, stages = map(np.concatenate, (slow, tone, stages))

    def auroc(feature, high, low):
        return np.mean(feature[stages == high][:, None] > feature[stages == low])

    assert auroc(slow, N3, W) > 0.95
    assert 0.7 < auroc(tone, N1, R) < 0.97


# ------------------------------------------------------------------ driven by a real scoring
def test_a_scoring_drives_a_night_and_keeps_its_rows():
    rows = [(20.0 + 30 * i, 30.0, f"Sleep stage {s}") for i, s in enumerate("WWW" + "2" * 40)]
    rows += [(200.0, 15.0, "Central Apnea"), (400.5, 20.0, "obstructive hypopnea")]
    rows += [(600.0, 0.0, "Central Apnea")]  # a note, not an event with a duration
    scoring = annotations.scoring_from_rows(rows)
    night = night_from_scoring(
        a_child(), scoring, 1312.0, EventRates(0, 0, 0, 0, 0), np.random.default_rng(1)
    )
    scored = [e for e in night.scored_events if e.name in RESPIRATORY]
    assert [(e.onset_s, e.duration_s, e.name) for e in scored] == [
        (200.0, 15.0, "Central Apnea"),
        (400.5, 20.0, "Obstructive Hypopnea"),
    ]
    np.testing.assert_array_equal(night.epoch_onsets_s, scoring.stage_onsets_s)
    np.testing.assert_array_equal(night.scored_stages, scoring.stages)
    truth = [e for e in night.events if e.name in RESPIRATORY]
    assert 0 < abs(truth[0].onset_s - 200) < 4
    # The hypopnea needs a consequence, and the file has neither kind, so that it was added.
    assert any(e.name in (DESATURATION, AROUSAL) for e in night.events)
    with_desaturations = annotations.scoring_from_rows(
        [*rows, (430.0, 20.0, "Oxygen Desaturation")]
    )
    night = night_from_scoring(
        a_child(), with_desaturations, 1312.0, EventRates(), np.random.default_rng(1)
    )
    assert sum(e.name == DESATURATION for e in night.scored_events) == 1


def test_where_a_file_gives_the_falls_spo2_has_no_others():
    rows = [(20.0 + 30 * i, 30.0, "Sleep stage 2") for i in range(40)]
    causes = [Event(200.0, 20.0, "Central Apnea"), Event(400.0, 5.0, "Central Apnea")]
    rows += [event[:3] for event in causes] + [(800.0, 20.0, "Oxygen Desaturation")]
    child, scoring = a_child(3.0, spo2_percent=97.0), annotations.scoring_from_rows(rows)
    deep, shallow = oxygen.falls(child, causes, 1232.0)
    assert (deep.name, shallow.name) == (DESATURATION, SHALLOW_DIP)
    night = night_from_scoring(child, scoring, 1232.0, EventRates(), np.random.default_rng(1))
    curve = oxygen.night_saturation(child, night.events, 1232 * waves.KNOT_HZ + 1)
    assert curve[: 780 * waves.KNOT_HZ].min() == 0
    assert curve[790 * waves.KNOT_HZ :].min() <= -3


def test_a_scoring_without_stages_is_refused():
    scoring = annotations.scoring_from_rows([(0.0, 30.0, "Sleep stage ?")])
    with pytest.raises(ValueError, match="no scored stage"):
        night_from_scoring(a_child(), scoring, 60.0, EventRates(), np.random.default_rng(0))


def test_nights_of_ucddb_drive_nights():
    if not SHARED_TSV.is_dir():
        pytest.skip("shared/psg/ucddb_tsv is not here")
    for path in sorted(SHARED_TSV.glob("*.tsv"))[:5]:
        scoring = annotations.read_tsv(path)
        duration_s = float(scoring.stage_onsets_s[-1] + 30)
        night = night_from_scoring(
            a_child(), scoring, duration_s, EventRates(), np.random.default_rng(0)
        )
        labels = annotations.label_epochs(scoring, duration_s)
        ours = annotations.label_epochs(
            annotations.scoring_from_rows(scored_rows(night)), duration_s
        )
        np.testing.assert_array_equal(ours.sleep, labels.sleep)
        np.testing.assert_array_equal(ours.events["apnea"], labels.events["apnea"])
        assert (ours.events["desat"] > 0).any()
