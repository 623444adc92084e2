"""The results as a table for people and as JSON for later."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from .model import Case, Row, Unit, ratio

LEGEND = """\
spread: slowest minus fastest round, as a share of the median; where it is large, something
else ran on the machine, and the CPU columns tell more; CPU us: CPU time of one operation;
coro's speed: operations that coro does while the row's subject does one, and the least wanted;
coro's CPU: CPU time that coro takes where the subject takes 1"""


def table(case: Case, rows: list[Row]) -> Table:
    """One case: a row for each subject, and how coro compares with it (see ``LEGEND``)."""
    result = Table(title=f"{case.name}: {case.title}", title_justify="left", title_style="bold")
    result.add_column("subject", no_wrap=True)
    for header in (case.unit, "spread", "CPU us", "coro's speed", "wanted", "coro's CPU"):
        result.add_column(header, justify="right", no_wrap=True)
    coro = _coro(rows)
    for row in rows:
        result.add_row(*_cells(case.unit, row, coro), style="bold" if row is coro else None)
    return result


def problems(rows: list[Row]) -> list[str]:
    """Why rows have no figures: a line for each reason."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if row.problem is not None:
            names.setdefault(row.problem, []).append(row.subject.name)
    return [f"{', '.join(named)}: {problem}" for problem, named in names.items()]


def record(case: Case, rows: list[Row]) -> dict[str, Any]:
    """One case with all its rounds, ready for ``json.dump``."""
    return {
        "case": case.name,
        "title": case.title,
        "unit": case.unit,
        "rows": [_record_row(case.unit, row, _coro(rows)) for row in rows],
    }


def _coro(rows: list[Row]) -> Row | None:
    return next((row for row in rows if row.subject.name == "coro" and not row.problem), None)


def _value(unit: Unit, row: Row) -> float:
    return row.wall * 1e6 if unit == "us/op" else 1 / row.wall


def _cells(unit: Unit, row: Row, coro: Row | None) -> list[str]:
    if row.problem is not None:
        return [row.subject.name, "[red]failed" if row.failed else "[yellow]skipped"]
    cells = [
        row.subject.name,
        f"{_value(unit, row):,.{2 if unit == 'us/op' else 0}f}",
        f"{row.spread:.0%}" if len(row.rounds) > 1 else "",
        f"{row.cpu * 1e6:.2f}",
    ]
    if coro is None or coro is row:
        return cells
    speed, wanted = ratio(row.walls, coro.walls), row.subject.wanted
    verdict = ""
    if wanted is not None:
        verdict = f"[{'green' if speed >= wanted else 'red'}]≥ {wanted:.2f} x"
    return [*cells, f"{speed:.2f} x", verdict, f"{ratio(coro.cpus, row.cpus):.2f} x"]


def _record_row(unit: Unit, row: Row, coro: Row | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"subject": row.subject.name}
    if row.problem is not None:
        return {**facts, "problem": row.problem, "failed": row.failed}
    facts |= {"value": _value(unit, row), "spread": row.spread, "cpu_us": row.cpu * 1e6}
    if coro is not None:
        facts["coro_speed"] = ratio(row.walls, coro.walls)
        facts["coro_cpu"] = ratio(coro.cpus, row.cpus)
    if row.subject.wanted is not None:
        facts["wanted"] = row.subject.wanted
    return {**facts, "rounds": [asdict(round) for round in row.rounds]}
