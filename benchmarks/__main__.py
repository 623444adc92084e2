"""The command: ``python -m benchmarks [--only NAME] [--rounds N] [--output DIR] [--quick]``."""

import signal
import sys
import time
from datetime import date
from itertools import groupby
from pathlib import Path

import click
from rich.console import Console

from . import echo, fetch, footprint, machine, pages, report, scaling, server, switching
from .processes import OTHER_CORE, SUBJECT_CORE
from .rounds import run_case

SUITES = (
    switching.SUITE,
    echo.SUITE,
    fetch.SUITE,
    server.SUITE,
    footprint.SUITE,
    scaling.SUITE,
)
NAMES = list(
    dict.fromkeys(name for suite in SUITES for name in (suite.name, *(c.name for c in suite.cases)))
)
WIDTH = 130
"""Characters in a line where the output is no terminal."""
LONGEST_PROBLEM = 300
"""Characters shown of the reason why a row has no figures."""


@click.command()
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    type=click.Choice(NAMES),
    help=f"Run only this suite or case; may be repeated. One of: {', '.join(NAMES)}.",
)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds.")
@click.option(
    "--seconds",
    default=0.4,
    show_default=True,
    type=click.FloatRange(0.01, 30),
    help="Measured time of one subject in one round.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write figures (JSON), tables and charts to this directory as well.",
)
@click.option("--quick", is_flag=True, help="One short round: shows that all runs, proves nothing.")
def main(
    only: tuple[str, ...], rounds: int, seconds: float, output: Path | None, quick: bool
) -> None:
    """Measure coro beside its floors and peers, and print the ratios."""
    if quick:
        rounds, seconds = 1, 0.1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that children are ended
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    facts = machine.describe()
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), highlight=False)
    if SUBJECT_CORE == OTHER_CORE:
        console.print("[yellow]One core only: both ends of each connection share it.")
    records: list[report.Record] = []
    began = time.monotonic()
    for suite in SUITES:
        for name, cases in groupby(suite.cases, lambda case: case.name):
            if only and suite.name not in only and name not in only:
                continue
            points = []
            with console.status("", refresh_per_second=1) as status:
                for case in cases:
                    times = min(rounds, suite.rounds or rounds)
                    rows = run_case(suite, case, times, seconds, status.update)
                    points.append({"suite": suite.name, **report.record(case, rows)})
            for grid in report.grids(points):
                console.print(report.on_terminal(grid))
            for problem in report.problems(points):
                console.print(problem[:LONGEST_PROBLEM], markup=False, highlight=False)
            records += points
    console.print(report.LEGEND, highlight=False)
    if output is not None:
        taken = {
            "date": date.today().isoformat(),
            "minutes": round((time.monotonic() - began) / 60),
        }
        pages.write(output, {**taken, "rounds": rounds, "machine": facts, "cases": records})
        console.print(f"written to {output}", highlight=False)
    if any(row.get("failed") for case in records for row in case["rows"]):
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
