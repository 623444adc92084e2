"""Profiles one subject of a case: ``python -m benchmarks.profile CASE [--by callgrind]``.

py-spy samples where time is spent, and draws a flame graph.  Where timing is too noisy for the
question, callgrind counts instructions of the processor: it lists the C functions that take them,
and tells how many one operation takes, from one run and another with twice as many operations.
That figure hardly moves between runs, so that it shows what a small change does.

What is profiled is the subject: of a client the client, of a server the server.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click

from .__main__ import SUITES
from .model import Case, Subject, SubjectError, Suite, UnavailableError
from .processes import ROOT
from .profiled import PROFILERS
from .rounds import missing
from .trial import FIXED

CASES = {(case.name, case.at): (suite, case) for suite in SUITES for case in suite.cases}
NAMES = list(dict.fromkeys(name for name, _ in CASES))
OUTPUT = ROOT / "build" / "profiles"
OPERATIONS = 20_000
"""How many operations callgrind sees the first time."""
SHOWN = 25
"""How many C functions are listed."""

HOW_TO_GET = {"py-spy": "pip install py-spy", "valgrind": "apt-get install valgrind"}


@click.command()
@click.argument("name", metavar="CASE", type=click.Choice(NAMES))
@click.option("--at", type=int, help="How many there are, where the case is a curve.")
@click.option("--subject", default="coro", show_default=True, help="Whose profile.")
@click.option("--by", type=click.Choice(list(PROFILERS)), default="py-spy", show_default=True)
@click.option(
    "--seconds", default=3.0, show_default=True, type=click.FloatRange(0.1, 30), help="For py-spy."
)
def main(name: str, at: int | None, subject: str, by: str, seconds: float) -> None:
    """Profile CASE, write what was found to a file, and say where."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that children are ended
    program = "valgrind" if by == "callgrind" else by
    # The environment's own programs first.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    if shutil.which(program) is None:
        raise click.ClickException(f"{program} is not installed: {HOW_TO_GET[program]}")
    if (name, at) not in CASES:
        points = ", ".join(str(point) for case, point in CASES if case == name)
        raise click.BadParameter(f"{name} is measured at {points}", param_hint="--at")
    suite, case = CASES[name, at]
    chosen = next((each for each in case.subjects if each.name == subject), None)
    if chosen is None:
        names = ", ".join(repr(each.name) for each in case.subjects)
        raise click.BadParameter(f"{name} has no {subject!r}, only {names}", param_hint="--subject")
    if problem := missing(chosen.needs):
        raise click.ClickException(problem)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    what = name if at is None else f"{name} {at}"
    stem = re.sub(r"\W+", "-", f"{what} {subject}") + f"-{version}"
    try:
        if by == "callgrind":
            count_instructions(suite, case, chosen, stem)
        else:
            draw(suite, case, chosen, seconds, OUTPUT / f"{stem}.svg")
    except (SubjectError, UnavailableError) as error:
        raise click.ClickException(str(error)) from None


def draw(suite: Suite, case: Case, subject: Subject, seconds: float, file: Path) -> None:
    """Write a flame graph."""
    run(suite, case, subject, seconds, "py-spy", file)
    if not file.exists():
        raise click.ClickException("py-spy wrote nothing; may it look at processes here?")
    click.echo(f"flame graph, to be opened in a browser: {file}")


def count_instructions(suite: Suite, case: Case, subject: Subject, stem: str) -> None:
    """Count twice; list where the instructions of the longer run went."""
    os.environ["PYTHONHASHSEED"] = "0"  # or two runs differ in more than the operations
    counts = []
    for times in (1, 2):
        file = OUTPUT / f"{stem}-{times}.callgrind"
        os.environ[FIXED] = str(times * OPERATIONS)
        run(suite, case, subject, 1.0, "callgrind", file)
        found = re.search(r"^(?:summary|totals): (\d+)", file.read_text(), re.MULTILINE)
        if found is None:
            raise click.ClickException(f"{file} has no total")
        counts.append(int(found[1]))
    listed = subprocess.run(
        ["callgrind_annotate", file], check=True, capture_output=True, text=True
    ).stdout
    (OUTPUT / f"{stem}.txt").write_text(listed)
    for line in listed.partition("file:function")[2].splitlines()[2 : 2 + SHOWN]:
        click.echo(re.sub(r" \[.*", "", line))
    if suite.name != "server":  # where wrk decides how many there are
        each = (counts[1] - counts[0]) / OPERATIONS
        click.echo(f"{each:,.0f} instructions an operation")
    click.echo(f"all functions: {OUTPUT / stem}.txt; for kcachegrind: {file}")


def run(suite: Suite, case: Case, subject: Subject, seconds: float, by: str, file: Path) -> None:
    """Do the work of a case once, with its subject under a profiler."""
    own = ("--by", by, "--file", str(file), "--module", subject.module)
    arguments = (*subject.arguments, *own)
    profiled = replace(subject, module=f"{__package__}.profiled", arguments=arguments)
    with suite.prepare(case, seconds) as measure:
        measure(profiled)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.profile")
