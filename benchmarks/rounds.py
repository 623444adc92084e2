"""Interleaved rounds: every subject once, then every subject again (A B C A B C ...)."""

from collections.abc import Callable
from importlib.util import find_spec

from .model import Case, Row, SubjectError, Suite, UnavailableError

DISTRIBUTIONS = {"coro": "coro-loop"}
"""Where the name to install differs from the name to import."""


def run_case(
    suite: Suite, case: Case, rounds: int, seconds: float, progress: Callable[[str], None]
) -> list[Row]:
    """Measure each subject of ``case`` ``rounds`` times; a row that cannot go on tells why."""
    rows = [Row(subject, [], missing(subject.needs)) for subject in case.subjects]
    try:
        with suite.prepare(case, seconds) as measure:
            for number in range(rounds):
                for row in rows:
                    if row.problem is None:
                        progress(f"{case.name}: {row.subject.name}, round {number + 1}")
                        try:
                            row.rounds.append(measure(row.subject))
                        except SubjectError as error:
                            row.problem, row.failed = str(error), True
    except UnavailableError as error:
        for row in rows:
            row.problem = str(error)
    return rows


def missing(modules: tuple[str, ...]) -> str | None:
    """The reason to skip a subject that needs ``modules``, if one of them is not installed."""
    for module in modules:
        if find_spec(module) is None:
            distribution = DISTRIBUTIONS.get(module, module)
            return f"{distribution} is not installed (pip install {distribution})"
    return None
