"""The command: ``python -m benchmarks [--only NAME] [--rounds N] [--json FILE] [--quick]``."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from . import echo, fetch, machine, report, server, switching
from .processes import OTHER_CORE, SUBJECT_CORE
from .rounds import run_case

SUITES = (switching.SUITE, echo.SUITE, fetch.SUITE, server.SUITE)
NAMES = list(
    dict.fromkeys(name for suite in SUITES for name in (suite.name, *(c.name for c in suite.cases)))
)
WIDTH = 110
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
    default=0.5,
    show_default=True,
    type=click.FloatRange(0.01, 30),
    help="Measured time of one subject in one round.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write all figures to this file as well.",
)
@click.option("--quick", is_flag=True, help="One short round: shows that all runs, proves nothing.")
def main(
    only: tuple[str, ...], rounds: int, seconds: float, json_file: Path | None, quick: bool
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
    records, failed = [], False
    for suite in SUITES:
        for case in suite.cases:
            if not only or suite.name in only or case.name in only:
                with console.status("", refresh_per_second=1) as status:
                    rows = run_case(suite, case, rounds, seconds, status.update)
                console.print(report.table(case, rows))
                for problem in report.problems(rows):
                    console.print(problem[:LONGEST_PROBLEM], markup=False, highlight=False)
                records.append(report.record(case, rows))
                failed = failed or any(row.failed for row in rows)
    console.print(report.LEGEND, highlight=False)
    if json_file is not None:
        document: dict[str, Any] = {"machine": facts, "rounds": rounds, "cases": records}
        json_file.write_text(json.dumps(document, indent=2) + "\n")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
