"""The pages at 1,200 pixels and on paper: every table whole, measured by a browser if there is one.

Elsewhere the tests of the templates hold what lets a browser show and print a table whole.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from edf_files import nch_study
from small_probes import ROOT, run_script

from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.generate.imputation import METHODS
from pedsleepmae.generate.pictures import METHOD_NAMES
from pedsleepmae.metrics import figure_names
from pedsleepmae.pages import page
from pedsleepmae.prepare.grouping import Grouping, SplitSettings
from pedsleepmae.prepare.outcome import Outcome
from pedsleepmae.prepare.report import write_report
from pedsleepmae.probe.report import make_page
from pedsleepmae.tasks import CLASSES, N_CLASSES, STAGES, TASKS

TEMPLATES = Path(page.__file__).parent / "templates"
FRAME = "page.html.j2"
NAMES = sorted(path.name for path in TEMPLATES.glob("*.html.j2") if path.name != FRAME)
SCREEN_PX = 1200
PAPER_PX = 680  # 180 mm, what A4 and Letter leave between the margins of @page; 96 px an inch
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LONG = "a_name_without_a_single_blank_" * 4  # 120 letters, no place to break a line
# What a browser would not show: what ends beyond the window, or is hidden by a box around it.
MEASURE = """<script>addEventListener("load", () => {
  const hidden = [];
  document.querySelectorAll("table, td, th, img").forEach(it => {
    const box = it.getBoundingClientRect();
    const name = it.tagName + " " + (it.alt || it.textContent.trim()).slice(0, 40);
    if (box.right > innerWidth) hidden.push(name + " ends at " + box.right);
    if (!it.checkVisibility()) hidden.push(name + " is not shown");
    if (it.tagName != "IMG" && it.scrollWidth > Math.ceil(box.width)) hidden.push(name + " spills");
    for (let around = it.parentElement; around; around = around.parentElement)
      if (getComputedStyle(around).overflow != "visible" && (
          around.scrollWidth > around.clientWidth || around.scrollHeight > around.clientHeight))
        hidden.push(name + " is cut by its box");
  });
  const out = document.createElement("pre");
  out.id = "measured";
  out.textContent = JSON.stringify({width: innerWidth, hidden});
  document.body.append(out);
});</script>"""


# ------------------------------------------------------------------ pages with all they can hold
@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """The pages of scripts 1 and 3 to 6: long names, 16 channels, six tasks."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        "script 1": prepare_page(folder),
        "script 3": probe_page(folder),
        "script 4": night_page(folder),
        "script 5": exploration_page(folder),
        "script 6": generation_page(folder),
    }


def prepare_page(folder: Path) -> Path:
    """Three studies whose channels come from other names, ten recordings left out."""
    lacks = {name: f"no signal named {LONG} or {name} or OSAT" for name in CHANNEL_NAMES[8:]}
    studies = [
        Outcome(
            patient_id=i,
            study_id=10 * i,
            recording=f"{LONG}_{i}.edf",
            onsets_s=[0.0, 30.0],
            channels=dict.fromkeys(CHANNEL_NAMES[:8], f"stand-in {LONG}"),
            absent=lacks,
            quality={
                "SPO2": {"flat": 0.9, "clipped": 0, "missing": 0, "out_of_range": 0, "mains": 0}
            },
            label_counts={"sleep": {"0": 1, "2": 1}},
            remarks=[f"two signals named {LONG}"],
            simulated=True,
        )
        for i in (1, 2, 3)
    ]
    left_out = [Outcome(9, i, f"{LONG}.edf", f"{LONG}.edf: no scored epoch") for i in range(10)]
    assignment = {1: "train", 2: "val", 3: "test"}
    plan = Grouping(studies, assignment, SplitSettings(), seed=0, scaling="policy")
    return write_report([*studies, *left_out], plan, folder)


def probe_page(folder: Path) -> Path:
    """Six tasks with every baseline, a compared checkpoint, neighbours and a montage."""
    tasks = {task: task_entry(task) for task in TASKS}
    figures = {"auroc": 0.5, "auroc_ci95": [0.25, 0.75], "kappa": None, "kappa_ci95": None}
    montage = {"montage": "two EEG, one EOG, chin, flow", "n_channels": 5, "n_test": 20_000}
    montage |= {"task": "apnea_hypopnea", "probes": "as fitted on all channels", **figures}
    read_out = "time_mean+time_abs+time_std+time_max+time_min@2, by night"
    pooling = {"source": "handmade+encoder", "features": read_out, "n_features": 20_000}
    content = {
        "tasks": tasks,
        "checkpoint": f"{LONG}.pt",
        "checkpoint_step": 100_000,
        "checkpoint_simulated": True,
        "compared_with": f"{LONG}.pt",
        "pooling": "time_mean",
        "layer": 2,
        "normalise": "night",
        "montages": [montage],
        "pooling_scores_val": [pooling | dict.fromkeys([*TASKS, "mean"], 0.123)],
        "non_finite_train_rows": {},
        "split_hash": "feedfacefeedface",
        "patient_disjoint": True,
        "simulated": True,
        "seen_patients": 0,
        "nights": {"n": 0, "agreement": {}, "events_per_epoch": {}},
    }
    counts = {"epochs": 20_000, "patients": 200, "nights": 210}
    counts = dict.fromkeys(("train", "val", "test"), counts)
    path = folder / "report.html"
    path.write_text(make_page(content, counts, {}), encoding="utf-8")
    return path


def task_entry(task: str) -> dict:
    """A task as metrics.json has it; every figure has an interval."""
    names = figure_names(N_CLASSES[task])
    edges, gain = [0.100, 0.150], {"value": -0.123, "ci95": [-0.150, -0.100]}
    test = dict.fromkeys(names, 0.123) | {"ci95": dict.fromkeys(names, edges)}
    test |= {"undefined": {}, "ece_before_recalibration": 0.2, "brier_before_recalibration": 0.2}
    other = test | {"difference": dict.fromkeys(names, gain)}
    if task == "sleep":
        test = test | {"f1_by_stage": dict.fromkeys(STAGES, 0.123)}
    sources = ("untrained", "compared", "handmade", "handmade+encoder", "prevalence")
    return {
        **{"n_train": 20_000, "n_val": 20_000, "n_test": 20_000, "n_test_patients": 200},
        **{"prevalence": 0.1234, "bootstrap_over": "patient", "n_bootstrap_groups": 200},
        **{"threshold": 0.123, "C": 0.001, "val": test, "test": test, "context": other},
        "baselines": dict.fromkeys(sources, other),
    }


def night_page(folder: Path) -> Path:
    """A staged recording with a long name, scored by the shipped checkpoint."""
    edf, _ = nch_study(folder, LONG[:60])
    argv = ["--paths.checkpoint", ROOT / "checkpoint" / "m15p8_checkpoint.pt"]
    argv += ["--paths.probes", ROOT / "checkpoint" / "probes.npz"]
    argv += ["--paths.output_dir", folder / "scored"]
    assert run_script("4_score_recording.py", edf, *argv) == 0
    (report,) = folder.glob("scored/*/report.html")
    return report


def exploration_page(folder: Path) -> Path:
    """Two maps with what separates them and a cohort compared twice, without pictures."""
    separation = {"silhouette": -0.123, "silhouette_shuffled": -0.123, "n": 20_000}
    separation |= {"agreement": 0.123, "agreement_shuffled": 0.123}
    maps = {"n_epochs": 20_000, "n_patients": 200, "separation": {"patient": separation}}
    one = {"n_cohort": 100, "n_rest": 1000, "epochs_per_patient": 20, "reason": None}
    one |= {
        "age_cohort": 10.5,
        "age_rest": 11.5,
        "age_gap": 1.5,
        "p_value": 0.001,
        "least_p": 0.001,
    }
    one |= {"silhouette": -0.123, "ci95": [-0.150, -0.100], "draws95": [-0.150, -0.100]}
    one |= {"shuffled": -0.123, "shuffled95": [-0.150, -0.100]}
    against = ("other patients", "controls of nearest age")
    cohort = {"name": LONG, "n_patients_by_code": {"Q90.9": 100}, "n_listed": 10}
    cohort["comparisons"] = [one | {"against": words} for words in against]
    content = {"checkpoint": f"{LONG}.pt", "checkpoint_step": 100_000, "pooling": "time_mean"}
    content |= {"split": "all", "n_epochs": 20_000, "n_patients": 200, "simulated": True}
    content |= {"maps": [{"method": "PCA"} | maps, {"method": "UMAP"} | maps], "cohort": cohort}
    content |= {"nights": [], "distances": None, "notes": [LONG]}
    return write_page(
        folder / "explore.html", content=content, cautions=[LONG], few_patients=page.FEW_PATIENTS
    )


def generation_page(folder: Path) -> Path:
    """Every channel imputed, with intervals, without pictures."""
    names = ("correlation", "spectral_error", "nmse")
    edges, gain = [-0.15, -0.10], {"value": -0.123, "ci95": [-0.150, -0.100]}
    figures = dict.fromkeys(names, -0.12) | {"ci95": dict.fromkeys(names, edges)}
    baseline = figures | {"difference": dict.fromkeys(names, gain)}
    found = {"n": 20_000, "n_patients": 200, "model": figures}
    found["baselines"] = dict.fromkeys(METHODS[1:], baseline)
    content = {"checkpoint": f"{LONG}.pt", "checkpoint_step": 100_000, "pooling": "time_mean"}
    content |= {"split": "test", "split_hash": None, "simulated": True, "patient_disjoint": True}
    content |= {"mask_channels": 0.1, "exclude_own_night": True, "typical_queries": True}
    content |= {"n_neighbours": 5, "max_epochs": 60, "bootstrap_draws": 200, "show_all": False}
    content |= {"prevalence": {name: {"n": 20_000, "share": 0.123} for name in CLASSES}}
    content |= {"outliers": {"n_reference": 20_000}}
    return write_page(
        folder / "generation_report.html",
        content=content,
        cautions=[LONG],
        rows=[(f"{name}  (all effort hidden)", {"all": found}) for name in CHANNEL_NAMES],
        method_names=METHOD_NAMES,
        baselines=METHODS[1:],
        classes=CLASSES,
        means=[],
        queries=[],
        targets={},
    )


def write_page(path: Path, **values) -> Path:
    """A template's page without pictures."""
    template = page.page_template(f"{path.name}.j2")
    text = template.render(headlines=[LONG], pictures={}, counted=page.counted, **values)
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------ measured by a browser
@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser to measure pages with: none of {', '.join(BROWSERS)} on PATH")
    return found


def hidden_parts(browser: str, text: str, width_px: int, folder: Path) -> list[str]:
    """What a browser window of this width would not show of a page."""
    path = folder / "measured.html"
    path.write_text(text.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    # The page is our own and loads nothing; in a container Chromium has no sandbox to offer.
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width_px},900"]
    command += ["--dump-dom", path.as_uri()]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True)
    (measured,) = re.findall(r'<pre id="measured">(.*?)</pre>', run.stdout, re.DOTALL)
    measured = json.loads(html.unescape(measured))
    assert measured["width"] == width_px
    return measured["hidden"]


@pytest.mark.parametrize("script", [f"script {number}" for number in (1, 3, 4, 5, 6)])
def test_no_table_is_cut_at_1200_pixels_or_on_paper(browser, pages, script, tmp_path):
    text = pages[script].read_text(encoding="utf-8")
    assert hidden_parts(browser, text, SCREEN_PX, tmp_path) == []
    on_paper = text.replace("@media print", "@media all")
    assert hidden_parts(browser, on_paper, PAPER_PX, tmp_path) == []


@pytest.mark.parametrize(
    ("around", "words"),
    [
        ("<div style='width: 1300px'>{}</div>", "TABLE figures ends at 1300"),
        ("<div style='overflow: auto; height: 9px'>{}</div>", "TABLE figures is cut by its box"),
        ("<details>{}</details>", "TABLE figures is not shown"),
        ("<p>{}</p>", None),
    ],
)
def test_the_measure_sees_what_is_hidden(browser, tmp_path, around, words):
    table = "<table style='width: 100%'><tr><td>figures</td></tr></table>"
    text = f"<!doctype html><body style='margin: 0'>{around.format(table)}</body>"
    found = hidden_parts(browser, text, SCREEN_PX, tmp_path)
    assert words in found if words else found == []


# ------------------------------------------------------------------ what holds without a browser
@pytest.mark.parametrize("name", [*NAMES, FRAME, "style.css"])
def test_no_box_around_a_table_scrolls_or_is_closed(name):
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    assert not re.findall(r'overflow(?:-[xy])?:|class="scroll"|position: sticky', text)
    assert re.findall(r"max-height: [^;]*", text) == ["max-height: 225mm"] * (name == "style.css")
    assert len(re.findall(r"<details", text)) == len(re.findall(r"<details open>", text))


@pytest.mark.parametrize("name", NAMES)
def test_every_page_has_the_shared_style_and_no_other(name):
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    assert text.startswith(f'{{% extends "{FRAME}" %}}')
    assert "<style" not in text


@pytest.mark.parametrize("name", NAMES)
def test_every_table_has_a_head_that_paper_repeats(name):
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    assert len(re.findall("<table", text)) == len(re.findall("<table><thead>\n *<tr><th", text)) > 0


def test_paper_keeps_rows_and_pictures_whole_and_repeats_heads():
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    assert "@page { margin: 14mm 15mm; }" in style  # PAPER_PX
    printed = style[style.index("@media print") :]
    assert "thead { display: table-header-group; }" in printed
    assert re.search(r"tr, [^{]*figure[^{]*\{ break-inside: avoid; \}", printed)
    assert "print-color-adjust: exact" in printed


def test_tables_of_script_3_with_intervals_have_at_most_eight_columns(pages):
    tables = re.findall(r"<table>.*?</table>", pages["script 3"].read_text(encoding="utf-8"), re.S)
    assert len(tables) == 3 + len(TASKS) + 2  # events twice, sleep; each task; montages, poolings
    for table in tables:
        n_columns = len(re.findall(r"<th\b", table))
        rows = re.findall(r"<tr.*?</tr>", table, re.S)
        assert {len(re.findall(r"<t[hd]\b", row)) for row in rows} == {n_columns}
        assert n_columns <= (8 if "[" in table else 10)


def test_tables_of_script_6_with_intervals_have_at_most_eight_columns(pages):
    tables = re.findall(r"<table>.*?</table>", pages["script 6"].read_text(encoding="utf-8"), re.S)
    assert [len(re.findall(r"<th\b", table)) for table in tables] == [8, 5, 1 + len(CLASSES)]


def test_every_left_out_recording_and_channel_is_in_the_page_of_script_1(pages):
    text = pages["script 1"].read_text(encoding="utf-8")
    assert text.count(f"<td>{LONG}.edf: no scored epoch</td>") == 10
    for name in CHANNEL_NAMES:
        assert f'<tr><td class="key">{name}</td>' in text
