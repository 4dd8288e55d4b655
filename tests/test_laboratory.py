"""A night's figures as a sleep laboratory reports them: lights, latencies, shares, indices."""

from dataclasses import replace
from types import SimpleNamespace

import edfio
import numpy as np
import pytest
from edf_files import nch_file, stage_rows, write_tsv
from small_probes import run_script

from pedsleepmae.errors import SettingsError
from pedsleepmae.prepare.annotations import count_onsets, label_epochs, scoring_from_rows
from pedsleepmae.score import files
from pedsleepmae.score.laboratory import MEANINGS
from pedsleepmae.score.lights import Lights, check_lights, find_lights
from pedsleepmae.score.night import Night
from pedsleepmae.score.report import draw_night
from pedsleepmae.score.run import ScorePaths, ScoreSettings, read_examples
from pedsleepmae.score.summary import night_quantities, not_analysed_min, stage_agreement
from pedsleepmae.store import Examples

INDEX_RATIO = {"apnea_hypopnea_index": 0.5}  # events for an epoch of sleep that holds one


def scorer_of(events_per_epoch):
    """What night_quantities reads of a Scorer."""
    facts = {"nights": {"agreement": {}, "events_per_epoch": events_per_epoch}, "tasks": {}}
    return SimpleNamespace(basis=SimpleNamespace(facts=facts))


def quantities(night: Night, events_per_epoch=INDEX_RATIO) -> dict[str, dict]:
    return {row["name"]: row for row in night_quantities(scorer_of(events_per_epoch), night)}


def night_of(runs: str, **fields) -> Night:
    """A night on a 30-s grid, staged for sure by runs such as "W4 N1x4": stage and epochs."""
    stage_N = []
    for run in runs.split():
        stage, n = run.split("x")
        stage_N += [("W", "N1", "N2", "N3", "R").index(stage)] * int(n)
    stage_N = np.array(stage_N)
    n = len(stage_N)
    prob, called = {"sleep": np.eye(5)[stage_N]}, {"sleep": stage_N}
    return Night(30.0 * np.arange(n), prob, called, np.zeros(n), None, **fields)


# Epochs 0-3 W, 4-7 N1, 8-47 N2, 48-53 W, 54-89 R, 90-109 N3, 110-119 W. Lights are off from second
# 60, where epoch 2 begins, to second 3480, where epoch 116 begins.
RUNS = "Wx4 N1x4 N2x40 Wx6 Rx36 N3x20 Wx10"
LIGHTS = Lights(60.0, 3480.0, "settings", "settings")


def whole_night() -> Night:
    """RUNS with breathing events in 1 epoch before lights off, 10 of N2, 2 of wake and 6 of R."""
    night = night_of(RUNS, lights=LIGHTS)
    called_N = np.zeros(120, int)
    called_N[[0, *range(20, 30), 50, 51, *range(60, 66)]] = 1
    p_N = 0.25 + 0.5 * called_N
    prob = night.prob | {"apnea_hypopnea": np.stack([1 - p_N, p_N], axis=1)}
    return replace(night, prob=prob, called=night.called | {"apnea_hypopnea": called_N})


# ------------------------------------------------------------------ by hand
def test_every_figure_of_a_night_by_hand():
    rows = quantities(whole_night())
    by_hand = {
        "analysed_min": 57.0,  # epochs 2 to 115: 114
        "time_in_bed_min": 57.0,  # 3420 s
        "sleep_min": 50.0,  # 4 + 40 + 36 + 20 epochs
        "sleep_efficiency": 100 * 50 / 57,
        "sleep_latency_min": 1.0,  # from second 60 to 120, where epoch 4 begins
        "rem_latency_min": 25.0,  # from second 120 to 1620, where epoch 54 begins
        "waso_min": 6.0,  # epochs 48-53 and 110-115; 116-119 come after lights on
        "W_min": 7.0,  # these and epochs 2 and 3: latency and WASO together
        "N1_min": 2.0,
        "N2_min": 20.0,
        "N3_min": 10.0,
        "R_min": 18.0,
        "N1_percent": 4.0,
        "N2_percent": 40.0,
        "N3_percent": 20.0,
        "R_percent": 36.0,
    }
    assert {name: rows[name]["value"] for name in by_hand} == pytest.approx(by_hand)
    for name in set(by_hand) - {"analysed_min", "time_in_bed_min"}:
        assert rows[name]["called"] == pytest.approx(by_hand[name]), name
    # Called: 10 epochs in N2 and 6 in R are 5 and 3 events; those in wake are none.
    called = {
        name: rows[name]["called"] for name in ("apnea_hypopnea_index", "ahi_rem", "ahi_nrem")
    }
    assert called == pytest.approx(
        {"apnea_hypopnea_index": 8 / (50 / 60), "ahi_rem": 3 / (18 / 60), "ahi_nrem": 5 / (32 / 60)}
    )
    # Expected: 0.75 in each of these and 0.25 in the others of 36 epochs in R and 64 in NREM.
    rem, nrem = 0.5 * (6 * 0.75 + 30 * 0.25), 0.5 * (10 * 0.75 + 54 * 0.25)
    assert rows["ahi_rem"]["counted"]["value"] == pytest.approx(rem)
    assert rows["ahi_nrem"]["value"] == pytest.approx(nrem / (32 / 60))
    assert rows["apnea_hypopnea_index"]["value"] == pytest.approx((rem + nrem) / (50 / 60))


def test_the_scorers_own_figures_count_his_events_where_they_begin():
    night = whole_night()
    stage_N = night.called["sleep"].copy()
    stage_N[4], stage_N[54] = 0, -1  # asleep one epoch later; the first epoch of R unscored
    begun = {kind: np.zeros(120, int) for kind in ("apnea", "hypop", "desat", "eeg")}
    begun["apnea"][[1, 20, 50, 60]] = 1  # before lights off, N2, wake, R
    begun["hypop"][[30, 54, 61]] = (1, 5, 2)  # N2, unscored, R
    zeros = np.zeros(120, int)
    scored = dict.fromkeys(("apnea", "hypopnea", "desaturation", "arousal"), zeros)
    scored |= {"sleep": stage_N, "apnea_hypopnea": begun["apnea"]}
    rows = quantities(replace(night, scored=scored, begun=begun))
    assert rows["sleep_latency_min"]["scored"] == 1.5
    assert rows["rem_latency_min"]["scored"] == 25.0  # from second 150 to 1650
    assert rows["waso_min"]["scored"] == 6.0
    assert rows["sleep_min"]["scored"] == 49.0
    assert rows["sleep_efficiency"]["scored"] == pytest.approx(100 * 49 / 57)
    counted = {name: rows[name]["counted"]["scored"] for name in rows if "counted" in rows[name]}
    assert counted == {
        "apnea_hypopnea_index": 5.0,
        "ahi_rem": 3.0,
        "ahi_nrem": 2.0,
        "desaturation_index": 0.0,
        "arousal_index": 0.0,
    }
    assert rows["ahi_rem"]["scored"] == pytest.approx(3 / (17.5 / 60))
    assert rows["ahi_nrem"]["scored"] == pytest.approx(2 / (31.5 / 60))
    assert rows["apnea_hypopnea_index"]["scored"] == pytest.approx(5 / (49 / 60))


def test_events_of_rem_and_nrem_add_up_to_all_whatever_the_probabilities():
    rng = np.random.default_rng(0)
    prob = {"sleep": rng.dirichlet(np.ones(5), 200)}
    prob |= {"apnea_hypopnea": rng.dirichlet(np.ones(2), 200)}
    called = {task: p.argmax(axis=1) for task, p in prob.items()}
    night = Night(30.0 * np.arange(200), prob, called, np.zeros(200), None)
    rows = quantities(night)
    p_asleep_N = 1 - prob["sleep"][:, 0]
    assert rows["apnea_hypopnea_index"]["counted"]["value"] == pytest.approx(
        0.5 * (prob["apnea_hypopnea"][:, 1] * p_asleep_N).sum()
    )
    for way in ("value", "called"):
        rem, nrem = (rows[name]["counted"][way] for name in ("ahi_rem", "ahi_nrem"))
        assert min(rem, nrem) > 0
        assert rem + nrem == pytest.approx(rows["apnea_hypopnea_index"]["counted"][way])


# ------------------------------------------------------------------ what a night does not have
def test_a_night_without_rem_has_no_rem_latency_and_no_index_in_rem():
    night = night_of("Wx10 N2x60")
    events = {"apnea_hypopnea": np.tile([0.5, 0.5], (70, 1))}
    called = night.called | {"apnea_hypopnea": np.ones(70, int)}
    rows = quantities(replace(night, prob=night.prob | events, called=called))
    for name in ("rem_latency_min", "ahi_rem"):
        assert rows[name]["value"] is None
        assert rows[name]["called"] is None
        assert rows[name]["reason"] == "no REM sleep"
        assert rows[name]["called_reason"] == "no REM sleep"
    assert rows["R_percent"]["value"] == 0.0
    assert rows["ahi_nrem"]["value"] == rows["apnea_hypopnea_index"]["value"]


def test_a_night_without_sleep_has_neither_latency_nor_shares():
    rows = quantities(night_of("Wx40", lights=Lights(0.0, 1200.0)))
    for name in ("sleep_latency_min", "rem_latency_min", "waso_min", "N2_percent"):
        assert (rows[name]["value"], rows[name]["reason"]) == (None, "no sleep")
    assert rows["sleep_efficiency"]["value"] == 0.0  # this one is defined: none of 20 minutes
    assert rows["sleep_min"]["value"] == 0.0


def test_where_lights_are_not_known_the_rows_say_what_stands_for_them():
    rows = quantities(night_of("Wx6 N2x40 Wx4 N2x1 Wx3"))
    assert rows["time_in_bed_min"]["value"] is None
    assert "not both known" in rows["time_in_bed_min"]["reason"]
    assert rows["sleep_efficiency"]["unit"] == "% of the analysed time"
    assert rows["sleep_efficiency"]["value"] == pytest.approx(100 * 41 / 54)
    assert rows["sleep_latency_min"]["value"] == 3.0
    assert "from the first analysed epoch" in rows["sleep_latency_min"]["note"]
    assert rows["waso_min"]["value"] == 3.5
    assert "to the last analysed epoch" in rows["waso_min"]["note"]
    known = quantities(night_of("Wx6 N2x40", lights=Lights(15.0, 1380.0)))
    assert "note" not in known["sleep_latency_min"]
    assert known["sleep_efficiency"]["unit"] == "% of the time in bed"


def test_every_quantity_has_its_definition_and_source():
    rows = quantities(whole_night())
    assert list(MEANINGS) == list(rows)
    assert all(row["definition"].endswith(".") and row["source"] for row in rows.values())
    checkpoint = {"file": "x.pt"}
    summary = {"quantities": list(rows.values()), "checkpoint": checkpoint}
    table = files.summary_table(summary).set_index("quantity")
    assert table.loc["ahi_rem", "counted_called"] == 3.0
    assert table.loc["sleep_min", "definition"] == MEANINGS["sleep_min"].definition


def test_time_in_bed_without_an_epoch_is_told():
    assert not_analysed_min(whole_night()) == 0.0
    # Of 60 minutes in bed 57 are left when six epochs are taken out.
    night = night_of("Wx20 N2x100", lights=Lights(0.0, 3600.0))
    kept = np.r_[:50, 56:120]
    stage_N = night.called["sleep"][kept]
    night = replace(
        night,
        onsets_s=night.onsets_s[kept],
        prob={"sleep": np.eye(5)[stage_N]},
        called={"sleep": stage_N},
    )
    assert not_analysed_min(night) == 3.0
    rows = quantities(night)
    assert rows["sleep_efficiency"]["value"] == pytest.approx(100 * 47 / 60)
    assert rows["sleep_latency_min"]["value"] == 10.0


def test_agreement_is_that_of_the_epochs_in_bed():
    night = night_of("Wx4 N2x4", lights=Lights(60.0, 240.0))
    scored = {"sleep": np.array([4, 4, 0, 0, 2, 2, 2, 0])}  # both before lights off are wrong
    agreement = stage_agreement(replace(night, scored=scored))
    assert agreement["n_epochs"] == 6
    assert agreement["accuracy"] == pytest.approx(5 / 6)
    unscored = {"sleep": np.array([4, 4, -1, -1, -1, -1, -1, -1])}
    assert stage_agreement(replace(night, scored=unscored))["kappa"] is None


# ------------------------------------------------------------------ lights
def lights_of(off, on, rows=(), *, hours=8.0, start="22:58:00") -> Lights:
    """Lights of a recording of some hours that starts at a clock time, with annotation rows."""
    h, m, s = map(int, start.split(":"))
    scoring = scoring_from_rows(rows)
    onsets_s = np.arange(0, hours * 3600 - 30, 30.0)
    return find_lights(off, on, scoring, onsets_s, hours * 3600, 3600 * h + 60 * m + s)


def test_clock_times_count_from_the_start_and_pass_midnight():
    lights = lights_of("23:00:30", "06:28")
    assert (lights.off_s, lights.on_s) == (150.0, 7.5 * 3600)
    assert lights_of("00:10:00", "06:00:00").off_s == 72 * 60
    assert lights_of("1800", "27000.5").on_s == 27000.5


@pytest.mark.parametrize(
    ("off", "on", "words"),
    [
        ("22:30:00", "06:00:00", "lights_off 22:30:00 is not within the recording"),
        ("23:30:00", "07:00:00", "lights_on 07:00:00 is not within the recording"),
        ("2:00:00", "1:00:00", "lights_on 1:00:00 is not after lights_off 2:00:00"),
        ("02:00:00", "3600", "lights_on 3600 is not after lights_off 02:00:00"),
        ("605", "614", "no epoch lies between them"),
    ],
)
def test_lights_that_leave_no_time_in_bed_are_refused_without_the_start_time(off, on, words):
    with pytest.raises(SettingsError, match=words) as refused:
        lights_of(off, on)
    assert "22:58" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_clock_time_needs_a_header_with_a_start_time():
    onsets_s = np.arange(0, 3600, 30.0)
    with pytest.raises(SettingsError, match="no start time; give seconds"):
        find_lights("23:00:00", None, None, onsets_s, 3600.0, None)
    assert find_lights("60", None, None, onsets_s, 3600.0, None).off_s == 60.0


@pytest.mark.parametrize(
    ("off", "on", "words"),
    [
        ("200", "100", "lights_on 100 is not after lights_off 200"),
        ("100", "100", "lights_on 100 is not after lights_off 100"),
        ("22:00", "22:00:00", "is not after"),
        ("24:00:00", None, "lights_off is '24:00:00'; give a clock time such as"),
        (None, "half past six", "lights_on is 'half past six'"),
        ("-5", None, "lights_off is '-5'"),
    ],
)
def test_lights_that_are_wrong_in_any_recording_stop_the_script_with_exit_2(
    tmp_path, capsys, off, on, words
):
    with pytest.raises(SettingsError, match=words):
        check_lights(off, on)
    given = [f"--{key}={text}" for key, text in (("lights_off", off), ("lights_on", on)) if text]
    with pytest.raises(SystemExit) as stopped:
        run_script("4_score_recording.py", tmp_path / "x.edf", *given)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert check_lights("22:00", "06:00") is None


@pytest.mark.parametrize(
    "words", ["Lights Off", "LIGHTS OFF", "lights  off", "Lights out", "Lights off@@EEG F4-A1"]
)
def test_a_technicians_rows_tell_the_lights_in_any_spelling(words):
    rows = [(100.0, 0.0, words), (9000.0, 0.0, "Lights On"), (50.0, 0.0, "lights off soon")]
    lights = lights_of(None, None, rows)
    assert lights == Lights(100.0, 9000.0, "annotations", "annotations")
    lights = lights_of("200", None, rows)
    assert lights == Lights(200.0, 9000.0, "settings", "annotations")


def test_of_several_rows_the_last_off_before_sleep_and_the_first_on_after_it_count():
    off = [(t, 0.0, "Lights Off") for t in (20.0, 100.0, 600.0)]
    on = [(t, 0.0, "Lights On") for t in (60.0, 560.0, 1000.0, 1100.0)]
    staged = stage_rows(300.0, "W2222W22222222222222")  # asleep from second 330 to 900
    assert lights_of(None, None, [*staged, *off, *on]) == Lights(
        100.0, 1000.0, "annotations", "annotations"
    )
    unstaged = lights_of(None, None, [*off, *on])
    assert (unstaged.off_s, unstaged.on_s) == (20.0, 1100.0)


def test_rows_that_make_no_sense_leave_the_lights_unknown():
    on_before_off = [(5000.0, 0.0, "Lights Off"), (100.0, 0.0, "Lights On")]
    lights = lights_of(None, None, on_before_off)
    assert (lights.off_s, lights.on_s, lights.on_from) == (5000.0, None, "")
    outside = [(-20.0, 0.0, "Lights Off"), (90_000.0, 0.0, "Lights On")]
    assert lights_of(None, None, outside) == Lights()
    too_near = [(605.0, 0.0, "Lights Off"), (614.0, 0.0, "Lights On")]
    assert lights_of(None, None, too_near) == Lights()


def test_an_epoch_is_in_bed_with_half_of_it_or_more():
    lights = Lights(40.0, 100.0)
    assert lights.in_bed(np.array([24.0, 25.0, 26.0, 84.0, 85.0, 86.0])).tolist() == [
        *(False, True, True),
        *(True, True, False),
    ]


# ------------------------------------------------------------------ from the files
def settings_of(**fields) -> ScoreSettings:
    return ScoreSettings(scaling="policy", paths=ScorePaths(), **fields)


def test_a_files_own_start_time_places_the_lights(tmp_path):
    path = nch_file(seconds=300, header={"starttime": b"23.58.00"}).write(tmp_path / "a.edf")
    settings = settings_of(lights_off="23:59:00", lights_on="00:02:30")
    examples, _, told = read_examples(path, settings)
    assert (told["lights"].off_s, told["lights"].on_s) == (60.0, 270.0)
    assert told["lights"].in_bed(examples.onsets_s).tolist() == [False] * 2 + [True] * 7 + [False]
    assert told["begun"] is None
    with pytest.raises(SettingsError, match=r"a.edf: lights_off 23:30:00 is not within"):
        read_examples(path, settings_of(lights_off="23:30:00"))
    broken = nch_file(seconds=60, header={"starttime": b"XX.XX.XX"}).write(tmp_path / "b.edf")
    assert read_examples(broken, settings_of())[2]["lights"] == Lights()
    with pytest.raises(SettingsError, match="no start time"):
        read_examples(broken, settings_of(lights_off="23:30:00"))


def test_rows_beside_the_recording_tell_lights_and_where_events_begin(tmp_path):
    path = nch_file(seconds=240).write(tmp_path / "1_2.edf")
    rows = [(9.0, 0.0, "Lights Off"), (215.0, 0.0, "LIGHTS ON"), (60.0, 40.0, "Hypopnea")]
    write_tsv(tmp_path / "1_2.tsv", [*stage_rows(10.0, "WW122RW"), *rows])
    _, outcome, told = read_examples(path, settings_of())
    assert told["lights"] == Lights(9.0, 215.0, "annotations", "annotations")
    assert told["begun"]["hypop"].tolist() == [0, 1, 0, 0, 0, 0, 0]  # in W, though it ends in N1
    assert outcome.event_counts["hypop"] == 0
    passed_over = read_examples(path, settings_of(use_annotations=False))[2]
    assert passed_over == {"lights": Lights(), "begun": None}


def test_a_recording_that_nobody_staged_still_tells_its_lights(tmp_path):
    labels = ("C4-M1", "O1-M2", "O2-M1", "F4-M1")
    noise = np.random.default_rng(0).normal(0, 30, (4, 128 * 120))
    signals = [
        edfio.EdfSignal(x, 128, label=f"EEG {name}", physical_dimension="uV")
        for name, x in zip(labels, noise, strict=True)
    ]
    rows = [
        edfio.EdfAnnotation(30.0, None, "Lights off"),
        edfio.EdfAnnotation(95, None, "Lights on"),
    ]
    edfio.Edf(signals, annotations=rows).write(tmp_path / "a.edf")
    examples, _, told = read_examples(tmp_path / "a.edf", settings_of())
    assert told["lights"] == Lights(30.0, 95.0, "annotations", "annotations")
    assert told["lights"].in_bed(examples.onsets_s).tolist() == [False, True, True, False]


def test_an_event_belongs_to_the_epoch_that_holds_its_onset():
    rows = [*stage_rows(10.0, "W2"), *stage_rows(100.0, "R")]
    rows += [(39.0, 20.0, "Obstructive Apnea"), (40.0, 5.0, "Central Apnea")]
    rows += [(75.0, 40.0, "Hypopnea"), (129.0, 9.0, "Hypopnea"), (130.0, 9.0, "EEG arousal")]
    scoring = scoring_from_rows(rows)
    begun = count_onsets(scoring.events, scoring.stage_onsets_s)
    assert {kind: n_N.tolist() for kind, n_N in begun.items()} == {
        "apnea": [1, 1, 0],
        "hypop": [0, 0, 1],  # the first begins in the gap
        "desat": [0, 0, 0],
        "eeg": [0, 0, 0],  # after the last epoch
    }
    labels = label_epochs(scoring, 200.0)
    assert labels.n_events == {"apnea": 1, "hypop": 1, "desat": 0, "eeg": 0}


# ------------------------------------------------------------------ the picture and the table
def test_the_hypnodensity_stacks_the_probabilities_under_the_hypnogram():
    prob_NK = np.array([[0.7, 0.1, 0.1, 0.05, 0.05], [0.1, 0.2, 0.3, 0.25, 0.15]])
    night = night_of("Wx1 N2x1", lights=Lights(0.0, 60.0))
    night = replace(night, prob={"sleep": prob_NK})
    present = np.zeros((2, 16), bool)
    empty = np.zeros(2, int)
    nothing = Examples(
        np.zeros((2, 16, 1)), {}, empty, empty, night.onsets_s, present, empty, empty
    )
    axes = draw_night(night, nothing, {}).axes
    assert [ax.get_ylabel().split("\n")[0] for ax in axes] == [
        *("predicted", "hypnodensity", "distance"),
    ]
    density = axes[1]
    names = [text.get_text() for text in density.get_legend().get_texts()]
    assert names == ["W", "R", "N1", "N2", "N3"]  # from top to bottom, as the hypnogram has them
    blocks = [stage.get_paths() for stage in density.collections]
    tops = [[path.vertices[:, 1].max() for path in paths] for paths in blocks]
    np.testing.assert_allclose(tops[0], prob_NK[:, 3])  # N3 lies at the bottom
    np.testing.assert_allclose(tops[-1], 1.0)


def test_epochs_out_of_bed_stay_in_the_table_marked():
    table = files.epoch_table(whole_night())
    assert len(table) == 120
    assert table["in_bed"].tolist() == [0] * 2 + [1] * 114 + [0] * 4
