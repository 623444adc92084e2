"""Figures as files: ``python -m benchmarks.pages DIRECTORY`` makes tables and charts anew.

``make bench`` writes ``results.json`` with all rounds, and makes from it ``tables.md`` and a chart
(SVG) for each suite and each curve.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from . import report
from .report import Record

RESULTS = "results.json"

COLORS = {"coro": "#0b6e4f", "floor": "#9aa0a6", "peer": "#c98b3c", "kin": "#7bbf9f"}
PEERS = ("#c98b3c", "#4f6db8", "#9aa0a6", "#a8508c")
"""Of curves: each its own."""

Document = dict[str, Any]


def write(directory: Path, document: Document) -> None:
    """Write a run's figures, tables and charts to a directory, in the place of an earlier run's."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULTS).write_text(json.dumps(document, indent=1) + "\n")
    make(directory)


def make(directory: Path) -> None:
    """Make tables and charts from the figures in a directory."""
    document: Document = json.loads((directory / RESULTS).read_text())
    (directory / "tables.md").write_text(_tables(document))
    for old in directory.glob("*.svg"):
        old.unlink()
    for suite, cases in groupby(document["cases"], lambda case: case["suite"]):
        curves: list[Record] = []
        bars: list[Record] = []
        for case in cases:
            (curves if "at" in case else bars).append(case)
        if bars:
            _draw_bars(directory / f"{suite}.svg", bars)
        for name, points in groupby(curves, lambda case: case["case"]):
            _draw_curve(directory / f"{name}.svg", list(points))


def _tables(document: Document) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    lines = [
        "# Figures",
        "",
        f"Measured on {document['date']}, in {document['minutes']} minutes: {facts}.",
        f"Medians of {document['rounds']} rounds, of curves at most 3.",
        "[How to read them](../README.md).",
        "",
        *(report.on_page(grid) for grid in report.grids(document["cases"])),
        *(f"- {problem}" for problem in report.problems(document["cases"])),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _color(subject: str) -> str:
    if subject == "coro":
        return COLORS["coro"]
    if subject.startswith("bare"):
        return COLORS["floor"]
    return COLORS["kin" if "coro" in subject else "peer"]


def _speeds(case: Record) -> Iterator[tuple[str, float]]:
    """Subjects from the best to the worst, with how good each is where coro is 1."""
    rows = [row for row in case["rows"] if "coro_speed" in row]
    for row in sorted(rows, key=lambda row: row["coro_speed"]):
        yield row["subject"], 1 / row["coro_speed"]


def _draw_bars(file: Path, cases: list[Record]) -> None:
    """A panel for each case, a bar for each subject."""
    plt = _pyplot()
    columns = 2
    lines = -(-len(cases) // columns)
    tallest = max(len(case["rows"]) for case in cases)
    figure, panels = plt.subplots(
        lines, columns, figsize=(10, lines * (0.9 + 0.24 * tallest)), squeeze=False
    )
    for panel in panels.flat[len(cases) :]:
        panel.set_visible(False)
    for panel, case in zip(panels.flat, cases, strict=False):
        speeds = list(_speeds(case))
        names = [name for name, _ in speeds]
        bars = panel.barh(names, [speed for _, speed in speeds], color=[*map(_color, names)])
        panel.bar_label(bars, fmt="%.2f", padding=3, fontsize=7)
        panel.axvline(1, color=COLORS["coro"], linewidth=0.8)
        panel.margins(x=0.15)
        panel.invert_yaxis()
        panel.set_title(f"{case['case']}: {case['title']}", fontsize=8, loc="left")
        panel.tick_params(labelsize=7)
        memory = case["unit"] == "bytes"
        panel.set_xlabel(
            "how many fit in the memory of one of coro's" if memory else "speed, coro = 1",
            fontsize=7,
        )
    _save(figure, file)


def _draw_curve(file: Path, points: list[Record]) -> None:
    """A line for each subject."""
    plt = _pyplot()
    figure, panel = plt.subplots(figsize=(6.4, 3.6))
    unit = points[0]["unit"]
    at = [point["at"] for point in points]
    colors = iter(PEERS)
    for rows in zip(*(point["rows"] for point in points), strict=True):
        name = rows[0]["subject"]
        color = COLORS["coro"] if name == "coro" else next(colors)
        values = [report.on_curve(unit, row) for row in rows]
        panel.plot(at, values, marker="o", markersize=3, color=color, label=name)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("{x:g}")
    panel.set_ylabel(f"CPU {unit}" if unit in report.PLAIN else unit, fontsize=8)
    panel.set_title(f"{points[0]['case']}: {points[0]['title']}", fontsize=9, loc="left")
    panel.tick_params(labelsize=8, which="both")
    panel.grid(visible=True, which="major", linewidth=0.3)
    panel.legend(fontsize=7)
    _save(figure, file)


def _pyplot() -> Any:
    import matplotlib  # only here: who prints tables does without it

    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "coro"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    _pyplot().close(figure)


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(directory: Path) -> None:
    """Make tables and charts from DIRECTORY/results.json."""
    make(directory)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.pages")
