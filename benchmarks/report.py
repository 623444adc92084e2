"""The results: as records for JSON, and from these as tables, on a terminal or a page."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

from rich.table import Table

from .model import Case, Row, Unit, ratio

Record: TypeAlias = dict[str, Any]
"""One case with all its rounds, as JSON has it."""

LEGEND = """\
spread: slowest minus fastest round, as a share of the median; where it is large, something
else ran on the machine, and the CPU columns tell more; CPU us: CPU time of one operation;
coro's speed: operations that coro does while the row's subject does one, and the least wanted;
of what runs on coro's loop, or inside asyncio: its own speed where its rival's is 1, and the least
wanted; coro's CPU: CPU time that coro takes where the subject takes 1; of memory: bytes that the
process grew by for each, coro holds: how many it has in the memory of one of the row's subject; of
curves: growth: cost of an operation beside 10,000, over that beside 10"""

PLAIN: frozenset[Unit] = frozenset({"us/op", "bytes", "ms"})
"""Units that count what one operation costs; the others count operations in a second."""

FACTORS: dict[Unit, float] = {"us/op": 1e6, "ms": 1e3}
"""How many of a unit are a second."""


class Grid(NamedTuple):
    """A table before it is drawn; in its cells, marks that were missed end with ``MISSED``."""

    title: str
    headers: list[str]
    rows: list[list[str]]


MISSED = " missed"

FEW, MANY = 10, 10_000
"""The points of a curve between which an operation of coro's is to cost the same ..."""

MOST_GROWTH = 1.2
"""... but for so much."""


def record(case: Case, rows: list[Row]) -> Record:
    """One case with all its rounds, ready for ``json.dump``."""
    facts: Record = {"case": case.name, "title": case.title, "unit": case.unit}
    if case.at is not None:
        facts["at"] = case.at
    coro = next((row for row in rows if row.subject.name == "coro" and not row.problem), None)
    measured = {row.subject.name: row for row in rows if not row.problem}
    return {
        **facts,
        "rows": [
            _record_row(case.unit, row, coro, measured.get(row.subject.rival or "")) for row in rows
        ],
    }


def _record_row(unit: Unit, row: Row, coro: Row | None, rival: Row | None) -> Record:
    facts: Record = {"subject": row.subject.name}
    if row.problem is not None:
        return {**facts, "problem": row.problem, "failed": row.failed}
    value = row.cost * FACTORS.get(unit, 1) if unit in PLAIN else 1 / row.cost
    facts |= {"value": value, "spread": row.spread}
    if unit != "bytes":
        facts["cpu_us"] = row.cpu * 1e6
    if coro is not None:
        facts["coro_speed"] = ratio(row.costs, coro.costs)
        if unit != "bytes":
            facts["coro_cpu"] = ratio(coro.cpus, row.cpus)
    if rival is not None:
        facts["rival"] = rival.subject.name
        facts["rival_speed"] = ratio(rival.costs, row.costs)
    for mark in ("wanted", "most"):
        if (limit := getattr(row.subject, mark)) is not None:
            facts[mark] = limit
    return {**facts, "rounds": [asdict(round) for round in row.rounds]}


def grids(records: Iterable[Record]) -> Iterator[Grid]:
    """Tables of cases; those of one curve make one together."""
    for _, group in groupby(records, lambda each: each["case"]):
        points = list(group)
        yield _curve(points) if "at" in points[0] else _grid(points[0])


def _grid(case: Record) -> Grid:
    columns = [case["unit"], "spread", "CPU us", "coro's speed", "wanted", "coro's CPU"]
    if case["unit"] == "bytes":
        columns = [case["unit"], "spread", "coro holds", "wanted"]
    rows = [_cells(case["unit"], row) for row in case["rows"]]
    return Grid(f"{case['case']}: {case['title']}", ["subject", *columns], rows)


def _cells(unit: Unit, row: Record) -> list[str]:
    name = row["subject"]
    if "problem" in row:
        return [name, "failed" if row["failed"] else "skipped"]
    cells = [name, _number(unit, row["value"])]
    cells.append(f"{row['spread']:.0%}" if len(row["rounds"]) > 1 else "")
    if unit != "bytes":
        cells.append(f"{row['cpu_us']:.2f}")
    compared = name != "coro" and "coro_speed" in row
    cells.append(f"{row['coro_speed']:.2f} x" if compared else "")
    cells.append(_verdict(row, compared))
    if compared and unit != "bytes":
        cells.append(f"{row['coro_cpu']:.2f} x")
    return cells


def _verdict(row: Record, compared: bool) -> str:
    if "rival" in row:
        missed = row["rival_speed"] < row["wanted"]
        return f"{row['rival_speed']:.2f} ≥ {row['wanted']:.2f} x" + MISSED * missed
    if compared and "wanted" in row:
        missed = row["coro_speed"] < row["wanted"]
        return f"≥ {row['wanted']:.2f} x" + MISSED * missed
    if "most" in row:
        return f"≤ {row['most']:,.0f}" + MISSED * (row["value"] > row["most"])
    return ""


def _number(unit: Unit, value: float) -> str:
    return f"{value:,.{2 if unit in FACTORS else 0}f}"


def _curve(points: list[Record]) -> Grid:
    """A row for each subject, a column for each point; where one figure is to be the same
    everywhere, also how much it grows."""
    unit = points[0]["unit"]
    headers = ["subject", *(f"{point['at']:,}" for point in points)]
    if unit in PLAIN:
        headers.append("growth")
    rows = []
    for across in zip(*(point["rows"] for point in points), strict=True):
        values = [on_curve(unit, row) for row in across]
        shown = ["failed" if value is None else _number(unit, value) for value in values]
        if unit in PLAIN:
            at = dict(zip((point["at"] for point in points), values, strict=True))
            shown.append(_growth(across[0]["subject"], at.get(FEW), at.get(MANY)))
        rows.append([across[0]["subject"], *shown])
    what = f"CPU {unit}" if unit in PLAIN else unit
    return Grid(f"{points[0]['case']}: {points[0]['title']}, {what}", headers, rows)


def _growth(subject: str, few: float | None, many: float | None) -> str:
    """What an operation costs beside many, where it costs 1 beside few."""
    if few is None or many is None:
        return ""
    growth = many / few
    if subject != "coro":
        return f"{growth:.2f} x"
    return f"{growth:.2f} ≤ {MOST_GROWTH:.2f} x" + MISSED * (growth > MOST_GROWTH)


def on_curve(unit: Unit, row: Record) -> float | None:
    """What a curve shows of a row: CPU time, which no other end of a connection is part of."""
    if "problem" in row:
        return None
    return float(row["cpu_us"] if unit in PLAIN else row["value"])


def problems(records: Iterable[Record]) -> list[str]:
    """Why rows have no figures: a line for each reason."""
    names: dict[str, list[str]] = {}
    for case in records:
        for row in case["rows"]:
            if "problem" in row:
                named = names.setdefault(row["problem"], [])
                if row["subject"] not in named:
                    named.append(row["subject"])
    return [f"{', '.join(named)}: {problem}" for problem, named in names.items()]


def on_terminal(grid: Grid) -> Table:
    """A table in colours."""
    result = Table(title=grid.title, title_justify="left", title_style="bold")
    for number, header in enumerate(grid.headers):
        result.add_column(header, justify="right" if number else "left", no_wrap=True)
    for row in grid.rows:
        cells = [f"[red]{cell}" if cell.endswith((MISSED, "failed")) else cell for cell in row]
        result.add_row(*cells, style="bold" if row[0] == "coro" else None)
    return result


def on_page(grid: Grid) -> str:
    """A table in Markdown, under a heading."""
    lines = [f"### {grid.title}", "", _line(grid.headers)]
    lines.append("|---" + "|---:" * (len(grid.headers) - 1) + "|")
    for row in grid.rows:
        cells = [f"**{cell}**" if cell.endswith((MISSED, "failed")) else cell for cell in row]
        if cells[0] == "coro":
            cells[0] = "**coro**"
        lines.append(_line(cells + [""] * (len(grid.headers) - len(cells))))
    return "\n".join([*lines, ""])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
