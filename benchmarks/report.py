"""The results as a table for people and as JSON for later."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from .model import Case, Row, Unit, ratio

LEGEND = """\
spread: slowest minus fastest round, as a share of the median; where it is large, something
else ran on the machine, and the CPU columns tell more; CPU us: CPU time of one operation;
coro's speed: operations that coro does while the row's subject does one, and the least wanted;
coro's CPU: CPU time that coro takes where the subject takes 1; of memory: bytes that the process
grew by for each, coro holds: how many it has in the memory of one of the row's subject"""

PLAIN: frozenset[Unit] = frozenset({"us/op", "bytes"})
"""Units that count what one operation costs; the others count operations in a second."""


def table(case: Case, rows: list[Row]) -> Table:
    """One case: a row for each subject, and how coro compares with it (see ``LEGEND``)."""
    result = Table(title=f"{case.name}: {case.title}", title_justify="left", title_style="bold")
    result.add_column("subject", no_wrap=True)
    columns = [case.unit, "spread", "CPU us", "coro's speed", "wanted", "coro's CPU"]
    if case.unit == "bytes":
        columns = [case.unit, "spread", "coro holds", "wanted"]
    for header in columns:
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
    if unit in PLAIN:
        return row.cost * (1e6 if unit == "us/op" else 1)
    return 1 / row.cost


def _cells(unit: Unit, row: Row, coro: Row | None) -> list[str]:
    if row.problem is not None:
        return [row.subject.name, "[red]failed" if row.failed else "[yellow]skipped"]
    value = _value(unit, row)
    times = [] if unit == "bytes" else [f"{row.cpu * 1e6:.2f}"]
    cells = [
        row.subject.name,
        f"{value:,.{2 if unit == 'us/op' else 0}f}",
        f"{row.spread:.0%}" if len(row.rounds) > 1 else "",
        *times,
    ]
    most, wanted = row.subject.most, row.subject.wanted
    verdict = "" if most is None else _verdict(value <= most, f"≤ {most:,.0f}")
    if coro is None or coro is row:
        return [*cells, "", verdict]
    speed = ratio(row.costs, coro.costs)
    if wanted is not None:
        verdict = _verdict(speed >= wanted, f"≥ {wanted:.2f} x")
    if times:
        times = [f"{ratio(coro.cpus, row.cpus):.2f} x"]
    return [*cells, f"{speed:.2f} x", verdict, *times]


def _verdict(reached: bool, mark: str) -> str:
    return f"[{'green' if reached else 'red'}]{mark}"


def _record_row(unit: Unit, row: Row, coro: Row | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"subject": row.subject.name}
    if row.problem is not None:
        return {**facts, "problem": row.problem, "failed": row.failed}
    facts |= {"value": _value(unit, row), "spread": row.spread}
    if unit != "bytes":
        facts["cpu_us"] = row.cpu * 1e6
    if coro is not None:
        facts["coro_speed"] = ratio(row.costs, coro.costs)
        if unit != "bytes":
            facts["coro_cpu"] = ratio(coro.cpus, row.cpus)
    for mark in ("wanted", "most"):
        if (value := getattr(row.subject, mark)) is not None:
            facts[mark] = value
    return {**facts, "rounds": [asdict(round) for round in row.rounds]}
