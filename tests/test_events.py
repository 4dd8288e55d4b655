"""Single events: features of seconds, fitting, rules chosen on val, figures, script 3's files."""

import numpy as np
import pandas as pd
import pytest
import small_batches
import small_probes
import torch
from edf_files import nch_study, stage_rows, write_tsv

from pedsleepmae import metrics, store
from pedsleepmae.channels import CHANNEL_NAMES, N_CHANNELS
from pedsleepmae.errors import ProbeError
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.probe import detection, events, steps
from pedsleepmae.probe.detection import KINDS, NightSteps
from pedsleepmae.probe.truth import read_events
from pedsleepmae.tasks import LABELS


# ------------------------------------------------------------------ features of seconds
@pytest.mark.parametrize("window", steps.WINDOWS)
def test_a_window_is_the_mean_of_the_steps_it_names(window):
    x_SF = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    first, last = window
    wanted = [x_SF[np.clip(np.arange(s + first, s + last + 1), 0, 39)].mean(0) for s in range(40)]
    np.testing.assert_allclose(steps.window_means(x_SF, *window), wanted, atol=1e-6)


def test_a_step_sees_across_the_epochs_border_and_not_across_a_gap():
    onsets_s = np.array([0, 30, 90.0])
    assert steps.stretches(onsets_s) == [slice(0, 2), slice(2, 3)]
    x_NMF = np.zeros((3, 30, 1), np.float32)
    x_NMF[1] = 1
    x_NMF[2] = 5
    found = steps.night_steps(x_NMF, np.ones((3, 1), bool), onsets_s)
    assert found.shape == (90, len(steps.WINDOWS))
    after = steps.WINDOWS.index((3, 9))
    assert found[29, after] == found[30, 0] > found[20, after]
    assert found[59, after] == found[59, 0]  # nothing of what follows the gap
    assert found[60, steps.WINDOWS.index((-9, -3))] == found[60, 0]  # nothing of the epoch before


def test_token_steps_are_mean_and_spread_of_the_seconds_patches():
    torch.manual_seed(0)
    model = MaskedAutoencoder(patch_size=16, emb_dim=4, num_layer=2, num_head=2).eval()
    x_BCT, present_BC = torch.randn(2, N_CHANNELS, 3840), torch.ones(2, N_CHANNELS, dtype=bool)
    seconds = model.embed_many(x_BCT, ["seconds@1"], present_BC)["seconds@1"].numpy()
    found = steps.token_steps(seconds)
    with torch.no_grad():
        _, z_BCKE = model.encode_layers(x_BCT, [1], present_BC)[1]
    assert found.shape == (2, 30, N_CHANNELS * 8)
    second = z_BCKE[1, 7, 8 * 11 : 8 * 12]  # channel 7, second 11
    wanted = torch.cat([second.mean(0), second.std(0, unbiased=False)])
    np.testing.assert_allclose(found[1, 11, 7 * 8 : 8 * 8], wanted, atol=2e-3)
    present = steps.present_features(np.eye(N_CHANNELS, dtype=bool), found)
    assert np.flatnonzero(present[7]).tolist() == list(range(56, 64))


def test_a_patch_that_does_not_divide_a_second_is_refused():
    steps.check_patches(240)
    with pytest.raises(ProbeError, match="32 patches"):
        steps.check_patches(32)


def test_handmade_steps_follow_a_breath_that_stops():
    x_NCT = np.zeros((1, N_CHANNELS, 3840), np.float32)
    t = np.arange(3840) / 128
    flow = CHANNEL_NAMES.index("C-FLOW")
    x_NCT[0, flow] = np.sin(2 * np.pi * 0.3 * t) * (t < 15)
    found, channels = steps.handmade_steps(x_NCT)
    of_flow = found[0][:, channels == flow]
    assert (of_flow[2:12].mean(0) > of_flow[18:28].mean(0)).all()
    assert found.shape == (1, 30, len(channels))


# ------------------------------------------------------------------ truth
def test_the_step_whose_middle_lies_in_an_event_is_in_it():
    onset_S = np.arange(10.0)
    inside = detection.steps_in(np.array([[2.4, 4.6], [7.0, 7.0]]), onset_S)
    assert np.flatnonzero(inside).tolist() == [2, 3, 4, 7]


def test_events_that_touch_no_scored_step_are_not_judged():
    onset_S = np.r_[np.arange(10.0), np.arange(60, 70.0)]
    spans = np.array([[-5, 0], [-5, 0.5], [9.5, 30], [10, 60], [20, 40], [69, 90], [70, 80.0]])
    kept = detection.touching(spans, onset_S)
    assert kept.tolist() == [[-5, 0.5], [9.5, 30], [69, 90]]


def test_events_csv_becomes_spans_by_task(tmp_path):
    (tmp_path / "events.csv").write_text(
        "patient_id,study_id,kind,onset_s,duration_s\n"
        "1,2,hypopnea,50,10\n1,2,central_apnea,5.5,10\n1,2,arousal,9,3\n3,4,desaturation,1,0\n"
    )
    truth = read_events(tmp_path)
    assert set(truth) == {(1, 2), (3, 4)}
    assert truth[1, 2]["apnea_hypopnea"].tolist() == [[5.5, 15.5], [50, 60]]
    assert truth[1, 2]["apnea"].tolist() == [[5.5, 15.5]]
    assert truth[1, 2]["desaturation"].shape == (0, 2)


def test_scripts_0_and_1_write_every_scored_event_of_the_nights_they_use(tmp_path):
    _, tsv = nch_study(tmp_path, "5_6", "W23R")  # epochs from 10.25 to 130.25 s
    rows = [*stage_rows(10.25, "W23R"), (1.5, 4.0, "EEG Arousal"), (50.25, 12.5, "Mixed Apnea")]
    rows += [(60.0, 0.0, "Oxygen Desaturation"), (500.0, 9.0, "Hypopnea"), (5.0, 5.0, "apnea")]
    write_tsv(tsv, rows)
    nch_study(tmp_path, "7_8", "W")[1].write_text("no row\n")  # not used: its events neither
    paths = ("--paths.recordings_dir", tmp_path, "--paths.examples_dir", tmp_path / "examples")
    batches = ("--paths.batches_dir", tmp_path / "batches", "--n_workers", "1")
    for _ in range(2):  # the second run reads the state
        assert small_probes.run_script("1_prepare_dataset.py", *paths, *batches) == 0
        assert (tmp_path / "batches" / "events.csv").read_text() == (
            "patient_id,study_id,kind,onset_s,duration_s\n"
            "5,6,arousal,1.5,4.0\n5,6,mixed_apnea,50.25,12.5\n"
            "5,6,desaturation,60.0,0.0\n5,6,hypopnea,500.0,9.0\n"
        )
    simulated = ("--output_dir", tmp_path / "new", "--batches_dir", tmp_path / "new" / "batches")
    cohort = ("--n_patients", "3", "--n_repeat_studies", "0", "--hours", "0.25")
    assert small_probes.run_script("0_simulate_cohort.py", *simulated, *cohort) == 0
    studies = pd.read_csv(tmp_path / "new" / "batches" / "studies.csv")
    events = pd.read_csv(tmp_path / "new" / "batches" / "events.csv")
    assert set(events.study_id) <= set(studies.study_id)
    assert list(events.columns) == ["patient_id", "study_id", "kind", "onset_s", "duration_s"]


@pytest.mark.parametrize("row", ["x,2,arousal,1,3", "1,2,snore,1,3", "1,2,arousal,nan,3", "1"])
def test_a_row_that_is_no_event_is_refused_by_name(row, tmp_path):
    path = tmp_path / "events.csv"
    path.write_text(f"patient_id,study_id,kind,onset_s,duration_s\n{row}\n")
    with pytest.raises(ProbeError, match=r"events\.csv"):
        read_events(tmp_path)
    path.unlink()
    with pytest.raises(ProbeError, match="run script 1"):
        read_events(tmp_path)


# ------------------------------------------------------------------ fitting and choosing
def planted_night(rng, n_steps: int = 1800) -> NightSteps:
    """Events of 15 s that raise feature 0 (feature 1 is noise), of every kind alike."""
    onset_S = np.arange(float(n_steps))
    starts = np.arange(30, n_steps - 60, 90) + rng.integers(0, 40)
    true = np.stack([starts, starts + 15.0], axis=1).astype(float)
    x_SF = rng.normal(size=(n_steps, 2)).astype(np.float32)
    x_SF[:, 0] += 4 * detection.steps_in(true, onset_S)
    return NightSteps(onset_S, x_SF, dict.fromkeys(KINDS, true))


def test_planted_events_are_found_and_their_probabilities_are_shares():
    rng = np.random.default_rng(3)
    train, val, test = [[planted_night(rng) for _ in range(4)] for _ in range(3)]
    x_RF, targets, weight_R = detection.keep_rows(train, 2000, 7200, 15 / 90, seed=0)
    assert 1500 < len(x_RF) < 2500
    assert 0.35 < targets["apnea"].mean() < 0.65
    assert weight_R.sum() == pytest.approx(7200, rel=0.1)
    share = np.average(targets["apnea"], weights=weight_R)
    assert share == pytest.approx(
        np.mean([n.true["apnea"].shape[0] * 15 / 1800 for n in train]), 0.1
    )
    fitted = detection.fit_steps(x_RF, targets, weight_R, [1e-2, 1.0])
    chosen = detection.choose_rules(fitted, val)
    probe, f1 = chosen["arousal"]
    assert f1 > 0.95
    assert abs(probe.weight_F[0]) > 10 * abs(probe.weight_F[1])
    counts = sum(
        detection.count_matches(
            night.true["apnea"],
            detection.find_events({"apnea": chosen["apnea"][0]}, night)["apnea"],
            0.5,
        )
        for night in test
    )
    assert detection.f1_score(counts) > 0.95
    prob_S = probe.probabilities(test[0].x_SF)
    assert prob_S.mean() == pytest.approx(15 / 90, abs=0.03)


def test_match_figures_by_hand():
    counts_P3 = np.array([[2, 4, 3], [0, 1, 0], [1, 1, 1.0]])  # matched, scored, found
    figures, draws_R = events.match_figures(counts_P3, np.array([[1, 1, 1], [3, 0, 0.0]]))
    assert figures["f1"] == pytest.approx(2 * 3 / (6 + 4))
    assert figures["sensitivity"] == 3 / 6
    assert figures["precision"] == 3 / 4
    np.testing.assert_allclose(draws_R, [6 / 10, 12 / 21])
    empty, _ = events.match_figures(np.zeros((2, 3)), np.ones((4, 2)))
    assert empty["f1"] is None
    assert empty["ci95"]["f1"] is None


def test_nights_of_too_little_scored_sleep_have_no_index_and_stop_nothing():
    n = 40  # 20 minutes, scored awake throughout, called asleep
    labels = {name: np.zeros(n, np.int64) for name in LABELS}
    index = store.ExampleIndex(
        files=[],
        file_of=np.zeros(n, int),
        row_of=np.arange(n),
        split=np.full(n, 2),
        labels=labels,
        patient_ids=np.ones(n, int),
        study_ids=np.ones(n, int),
        onsets_s=30.0 * np.arange(n),
        present=np.ones((n, N_CHANNELS), bool),
        split_hash="",
        patient_disjoint=True,
        simulated=True,
    )
    nobody = dict(events.NO_EVENTS)
    table = events.index_table(index, [np.arange(n)], [nobody], [nobody], np.full(n, 2))
    figures = events.index_figures(table)
    assert table["arousal_index_predicted"].tolist() == [0.0]
    assert table["arousal_index_scored"].isna().all()
    assert {found["n"] for found in figures.values()} == {0}


def test_absolute_agreement_by_hand():
    # Shrout & Fleiss 1979, table 2, first two judges: ICC(2,1) from its mean squares.
    pairs = np.array([[9, 2], [6, 1], [8, 4], [7, 1], [10, 5], [6, 2.0]])
    n, mean = 6, pairs.mean()
    rows = 2 * ((pairs.mean(1) - mean) ** 2).sum() / 5
    columns = 6 * ((pairs.mean(0) - mean) ** 2).sum()
    whole = ((pairs - mean) ** 2).sum()
    error = (whole - 5 * rows - columns) / 5
    wanted = (rows - error) / (rows + error + 2 * (columns - error) / n)
    assert metrics.absolute_agreement(pairs) == pytest.approx(wanted)
    assert metrics.absolute_agreement(np.array([[1, 1], [2, 2], [5, 5.0]])) == pytest.approx(1)
    assert metrics.absolute_agreement(np.ones((3, 2))) is None
    assert metrics.absolute_agreement(np.ones((1, 2))) is None


# ------------------------------------------------------------------ script 3
def test_script_3_refuses_at_once_what_single_events_lack(tmp_path, capsys, monkeypatch):
    batches, checkpoint = tmp_path / "batches", tmp_path / "checkpoint.pt"
    small_batches.write_folder(batches, train=[4], val=[2], test=[2])
    small_probes.save_model(checkpoint, [])
    argv = (*small_probes.paths(tmp_path, batches, checkpoint), "--events", "true")
    assert small_probes.script_3(*argv) == 2
    assert "32 patches" in capsys.readouterr().err
    monkeypatch.setitem(small_probes.MODEL, "patch_size", 16)
    small_probes.save_model(checkpoint, [])
    assert small_probes.script_3(*argv) == 2
    assert "events.csv, so single events cannot be fitted" in capsys.readouterr().err
    (batches / "events.csv").write_text("patient_id,study_id\n1,2\n")
    assert small_probes.script_3(*argv) == 2
    assert "has no column kind" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
