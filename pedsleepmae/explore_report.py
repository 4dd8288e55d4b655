"""explore.json and an Exploration to explore.html, its tables (CSV) and pictures (PNG)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pedsleepmae import explore_pictures, probe_pictures, store
from pedsleepmae.embedding_map import event_kinds
from pedsleepmae.exploration import Exploration, comparison_figures
from pedsleepmae.probe_pictures import EVENT_NAMES, counted
from pedsleepmae.probes import STAGES, task_labels
from pedsleepmae.report import interval_in_words, page_template, write_pictures
from pedsleepmae.signal_distances import TOGETHER

TEMPLATE = "explore.html.j2"
WARN = "#8a4b00"
FEW_PATIENTS = 10  # of a group: below it a comparison is a lead at best


def write_page(output_dir: Path, result: Exploration, content: Mapping) -> Path:
    """Write tables/*.csv, pictures/*.png and explore.html, which holds both; its path.

    ``content`` is explore.json.
    """
    for name, table in make_tables(result).items():
        store.write_table(output_dir / "tables" / f"{name}.csv", table)
    pictures = write_pictures(output_dir / "pictures", marked_pictures(result))
    page = page_template(TEMPLATE).render(
        content=content,
        pictures=pictures,
        headlines=headlines(content),
        cautions=cautions(content),
        counted=counted,
        n_mapped=len(result.mapped),
        n_mapped_patients=len(np.unique(result.index.patient_ids[result.mapped])),
    )
    with store.write_whole(output_dir / "explore.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output_dir / "explore.html"


def marked_pictures(result: Exploration) -> Iterator[tuple[str, Figure]]:
    """The pictures; those of simulated recordings say so, wherever they are pasted."""
    for name, figure in make_pictures(result):
        if result.index.simulated:
            figure.text(
                0.998, 0.997, "simulated data", ha="right", va="top", fontsize=8, color=WARN
            )
        yield name, figure


def make_pictures(result: Exploration) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every picture, drawn one at a time."""
    for one in result.maps:
        yield f"map_{one.method.lower()}", probe_pictures.draw_map(one)
    for number, night in enumerate(result.nights, start=1):
        yield f"night_{number}", explore_pictures.draw_path(night)
    if any(one.separation is not None for one in result.comparisons):
        yield "cohort", explore_pictures.draw_comparisons(result.cohort.name, result.comparisons)
    if result.distances is not None:
        correlations, pairs = result.distances.correlations, result.distances.pairs
        yield "distance_correlations", explore_pictures.draw_correlations(correlations)
        yield "distances", explore_pictures.draw_pairs(pairs, correlations)


def make_tables(result: Exploration) -> dict[str, pd.DataFrame]:
    """The tables of the page for a spreadsheet."""
    tables = {}
    for one in result.maps:
        name = one.method.lower()
        tables[f"map_{name}"] = _points(result, one.positions, one.xy)
        tables[f"separation_{name}"] = pd.DataFrame(
            [{"labels": label, **figures} for label, figures in one.separation.items()]
        )
    for number, night in enumerate(result.nights, start=1):
        tables[f"night_{number}"] = _points(result, night.positions, night.xy)
    if result.comparisons:
        rows = []
        for one in map(comparison_figures, result.comparisons):
            for name in ("draws95", "ci95", "shuffled95"):
                low, high = one.pop(name) or (None, None)
                one |= {f"{name}_low": low, f"{name}_high": high}
            rows.append(one)
        tables["cohort"] = pd.DataFrame(rows)
    if result.distances is not None:
        tables["distance_correlations"] = result.distances.correlations
        tables["distance_pairs"] = result.distances.pairs
    return tables


def _points(result: Exploration, positions: np.ndarray, xy: np.ndarray) -> pd.DataFrame:
    """A row an epoch of a map or a path: who, when, stage, event, place."""
    index = result.index
    stages = np.array([*STAGES, ""])[task_labels(index, "sleep")[positions]]
    return pd.DataFrame(
        {
            "patient_id": index.patient_ids[positions],
            "study_id": index.study_ids[positions],
            "onset_s": index.onsets_s[positions],
            "stage": stages,
            "event": np.array(EVENT_NAMES)[event_kinds(index, positions)],
            "x": xy[:, 0],
            "y": xy[:, 1],
        }
    )


# ------------------------------------------------------------------ words
def headlines(content: Mapping) -> list[str]:
    """What was found, one sentence each, with its numbers of patients and epochs."""
    lines = []
    for first in content["maps"][:1]:  # none where UMAP alone was asked for and is absent
        parts = [f"{n} {figures['silhouette']:.3f}" for n, figures in first["separation"].items()]
        if not parts:
            continue
        lines.append(
            f"On the map of {counted(first['n_epochs'], 'epoch')} of "
            f"{counted(first['n_patients'], 'patient')} the silhouette is: {', '.join(parts)} "
            "(0: no separation)."
        )
    for one in (content["cohort"] or {"comparisons": []})["comparisons"]:
        lines.append(comparison_in_words(content["cohort"]["name"], one))
    for row in (content["distances"] or {"correlations": []})["correlations"]:
        if row["channel"] == TOGETHER and row["spearman"] is not None:
            edges = None if row["ci95_low"] is None else [row["ci95_low"], row["ci95_high"]]
            lines.append(
                f"Over {row['n_pairs']:,} pairs {row['pairs']}, distance between embeddings and "
                f"{row['measure']} distance between signals correlate at "
                f"{row['spearman']:.2f} {interval_in_words(edges, 2)} (Spearman)."
            )
    return lines


def comparison_in_words(name: str, one: Mapping) -> str:
    """One comparison of the cohort, as a sentence."""
    if one["silhouette"] is None:
        return f"{name} is not compared with {one['against']}: {one['reason']}."
    text = (
        f"{name} ({counted(one['n_cohort'], 'patient')}) against {one['n_rest']:,} "
        f"{one['against']}: silhouette {one['silhouette']:.3f} "
        f"{interval_in_words(one['ci95'])}, with patients shuffled {one['shuffled']:.3f}, "
        f"p = {one['p_value']:.3g}"
    )
    if one["age_cohort"] is not None and one["age_rest"] is not None:
        text += f"; median ages {one['age_cohort']:.1f} and {one['age_rest']:.1f} years"
    if one["age_gap"] is not None:
        text += f", in a set {one['age_gap']:.1f} years apart on average"
    return text + "."


def cautions(content: Mapping) -> list[str]:
    """What must be known before a figure is quoted, gravest first."""
    lines = []
    if content["simulated"]:
        lines.append(
            "The recordings are simulated: the figures show that the machinery works, nothing "
            "about children."
        )
    elif content["checkpoint_simulated"]:
        lines.append("The encoder was pretrained on simulated recordings.")
    seen = content["seen_patients"]
    if seen is None:
        lines.append("Which patients the checkpoint saw in pretraining is unknown.")
    elif seen:
        lines.append(
            f"Pretraining saw the signals, never a label, of {seen} of the "
            f"{counted(content['n_patients'], 'patient')} explored."
        )
    compared = (content["cohort"] or {"comparisons": []})["comparisons"]
    for one in compared:
        if one["silhouette"] is None:
            continue
        fewest = min(one["n_cohort"], one["n_rest"])
        if fewest < FEW_PATIENTS:
            lines.append(
                f"Against {one['against']}, a group has {counted(fewest, 'patient')}: a lead at "
                f"best; no p-value below {one['least_p']:.2g} was possible."
            )
    if any(one["silhouette"] is not None for one in compared):
        lines.append(
            "Patients of a cohort differ from others in more than the diagnosis: age (hence the "
            "matched comparison), medication, treatment in the lab, the year and its equipment."
        )
    return [*lines, *content["notes"]]


def text_summary(content: Mapping) -> str:
    """The findings in lines for a terminal."""
    title = "simulated data" if content["simulated"] else f"split {content['split']}"
    return "\n".join(
        [f"{title}, pooling {content['pooling']}", *headlines(content), *content["notes"]]
    )
