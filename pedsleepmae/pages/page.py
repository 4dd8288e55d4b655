"""A page: its template, its pictures as PNG, numbers and intervals in words."""

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from pedsleepmae import store

PICTURE_DPI = 120


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
        png = to_png(figure, dpi)
        with store.write_whole(folder / f"{name}.png") as temporary:
            temporary.write_bytes(png)
        pictures[name] = base64.b64encode(png).decode()
    return pictures


def to_png(figure: Figure, dpi: int = PICTURE_DPI) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


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
