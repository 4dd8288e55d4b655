"""A page: its template, its pictures as PNG, numbers and intervals in words."""

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from pedsleepmae import disk

PICTURE_DPI = 120
FEW_PATIENTS = 20  # fewer, and an interval over them says little of others


def page_template(name: str) -> jinja2.Template:
    """A page of templates/ with the filters for figures, their intervals and differences."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fig": in_digits, "ci": interval_in_words, "signed": signed_in_words}
    return environment.get_template(name)


def write_pictures(
    folder: Path, figures: Iterable[tuple[str, Figure]], dpi: int = PICTURE_DPI
) -> dict[str, str]:
    """Write each (name, figure) as ``<folder>/<name>.png``; by name what a page embeds, base64."""
    pictures = {}
    for name, figure in figures:
        pictures[name] = to_base64(figure, dpi)
        with disk.write_whole(folder / f"{name}.png") as temporary:
            temporary.write_bytes(base64.b64decode(pictures[name]))
    return pictures


def to_base64(figure: Figure, dpi: int = PICTURE_DPI) -> str:
    """A figure as PNG in base64, as a page that stands alone embeds it."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi)
    return base64.b64encode(png.getvalue()).decode()


def in_digits(value: float | None, digits: int = 3) -> str:
    """A figure for a table; an en dash where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval_in_words(edges: list[float] | None, digits: int = 3) -> str:
    """`[low, high]`, or nothing where there is no interval."""
    return "" if edges is None else f"[{edges[0]:.{digits}f}, {edges[1]:.{digits}f}]"


def signed_in_words(difference: Mapping | None) -> str:
    """A paired difference with its interval, `+0.041 [+0.020, +0.063]`."""
    if difference is None or difference["value"] is None:
        return "–"
    text = f"{difference['value']:+.3f}"
    if difference["ci95"] is not None:
        text += f" [{difference['ci95'][0]:+.3f}, {difference['ci95'][1]:+.3f}]"
    return text


def counted(n: int, noun: str) -> str:
    """`1 patient`, `2 patients`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


# ------------------------------------------------------------------ cautions
def data_cautions(content: Mapping, judged: str) -> list[str]:
    """What the data and the checkpoint forbid to conclude, gravest first.

    ``content`` is that of metrics.json, explore.json or generate.json; ``judged`` names the
    patients that pretraining should not have seen.
    """
    lines = []
    if content["simulated"]:
        lines.append(
            "The recordings are simulated: the figures show that the machinery works, not how "
            "well it does on children."
        )
    elif content["checkpoint_simulated"]:
        lines.append("The encoder was pretrained on simulated recordings.")
    disjoint, seen = content.get("patient_disjoint", True), content["seen_patients"]
    if not disjoint:
        lines.append(
            "The nights are split in time: train, val and test hold the same people, which "
            "flatters every figure."
        )
    if seen is None:
        lines.append(
            "Which patients the checkpoint saw in pretraining is unknown; some may be among "
            f"{judged}."
        )
    elif seen and disjoint:
        lines.append(f"Pretraining saw the signals, never a label, of {seen} of {judged}.")
    return lines


def few_patients_caution(n_patients: int, where: str) -> list[str]:
    """One line where fewer than FEW_PATIENTS carry an interval."""
    line = f"{where} holds {counted(n_patients, 'patient')}: intervals are wide and uncertain."
    return [line] if n_patients < FEW_PATIENTS else []
