"""The hot paths make no system call that a raw loop would not make, and cost no more than recorded.

These tests measure no time. See ``tests/budgets`` for what is counted, and how.
"""

import pytest

from tests.budgets import VERSION, recorded
from tests.budgets.counting import count, count_system_calls
from tests.budgets.paths import PATHS
from tests.support.needs import needs_command

BUDGETS = recorded()

ALLOWED = 1.02, 0.5
"""A count may be so many times what was recorded, and so much more: micro versions of Python differ
a little."""

EXCHANGE = {"sendto": 1.0, "recvfrom": 1.0, "epoll_wait": 1.0}
"""The system calls of one exchange on one connection; several share the wait."""

SYSTEM_CALLS = {
    # 100 tasks share a turn.
    "yield": {"epoll_wait": 0.01},
    "child": {},
    "chain": {"epoll_wait": 1.0},
    # Every sixteenth turn, while the clock stands still.
    "wake": {"epoll_wait": 1 / 16},
    "echo": EXCHANGE,
    "fetch": EXCHANGE,
    "server": EXCHANGE,
}

OVER_BUDGET = """\
{path}: {counted:.2f} {kind} an operation, {budget:.2f} are recorded for Python {version}.
To see where they are spent: make profile CASE={case}
If it is on purpose: make budgets PYTHON=..., for each Python, and say why in the commit."""

CASES = {"fetch": "fetch1", "server": "hello"}
"""The benchmark of a path, where that has another name."""


@pytest.mark.parametrize("path", PATHS)
def test_system_calls_are_those_of_a_raw_loop(path: str) -> None:
    strace = needs_command("strace", "apt-get install strace")
    made = count_system_calls(path, strace)
    # To a tenth; so an arena that the allocator maps once in all counts for nothing.
    assert _to_a_tenth(made) == _to_a_tenth(SYSTEM_CALLS[path])


def _to_a_tenth(calls: dict[str, float]) -> dict[str, float]:
    return {name: share for name, each in calls.items() if (share := round(each, 1))}


@pytest.mark.parametrize("path", PATHS)
def test_counts_are_within_their_budgets(path: str) -> None:
    if path not in BUDGETS:
        pytest.skip(f"nothing is recorded for Python {VERSION}: make budgets PYTHON=...")
    counted = count(path, needs_command("cc", "apt-get install gcc libc6-dev"))
    times, more = ALLOWED
    over = [
        OVER_BUDGET.format(
            path=path,
            counted=counted[kind],
            kind=kind,
            budget=budget,
            version=VERSION,
            case=CASES.get(path, path),
        )
        for kind, budget in BUDGETS[path].items()
        if counted[kind] > budget * times + more
    ]
    if over:
        pytest.fail("\n".join(over), pytrace=False)


def test_a_call_more_is_noticed() -> None:
    """The counting itself works: what costs a call more in each operation is over the budget."""
    from tests.budgets import counting

    def work(times: int) -> None:
        for _ in range(times):
            len("")

    def longer(times: int) -> None:
        for _ in range(times):
            len("")
            len("")

    for kind in (counting.calls, counting.instructions):
        assert kind(lambda: longer(100)) - kind(lambda: longer(50)) >= 50 + (
            kind(lambda: work(100)) - kind(lambda: work(50))
        )
