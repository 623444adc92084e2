"""CPython's own tests of asyncio on coro's loop: ``python -m tests.cpython_asyncio``.

They are run twice, each module in a process of its own: with asyncio's loop of selectors, and with
``coro.aio.EventLoop`` in its place. What fails on coro's loop alone is told, and makes the exit
status 1.

Left out are other systems' loops (``windows_*``, ``proactor_events``), and what has no loop at all
(``protocols``, ``transports``); of the other modules all tests are run.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import NamedTuple

import click

MODULES = (
    "base_events",
    "buffered_proto",
    "context",
    "eager_task_factory",
    "events",
    "futures",
    "futures2",
    "locks",
    "pep492",
    "queues",
    "runners",
    "selector_events",
    "sendfile",
    "server",
    "sock_lowlevel",
    "ssl",
    "sslproto",
    "staggered",
    "streams",
    "subprocess",
    "taskgroups",
    "tasks",
    "threads",
    "timeouts",
    "unix_events",
    "waitfor",
)

LONGEST = 300
"""Seconds that one module may take."""

PROGRAM = """
import asyncio, signal, sys, unittest
# A shell has what it runs in the background ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[1] == "coro":
    import coro.aio
    class Loop(coro.aio.EventLoop):
        # The tests hand a selector over, to have each kind tried.
        def __init__(self, selector=None):
            if selector is not None:
                selector.close()
            super().__init__()
    asyncio.SelectorEventLoop = asyncio.unix_events.SelectorEventLoop = Loop
    asyncio.unix_events._UnixSelectorEventLoop = Loop
    asyncio.unix_events._UnixDefaultEventLoopPolicy._loop_factory = Loop
    if hasattr(asyncio, "EventLoop"):
        asyncio.EventLoop = Loop
    if hasattr(asyncio.unix_events, "EventLoop"):
        asyncio.unix_events.EventLoop = Loop
name = "test.test_asyncio.test_" + sys.argv[2]
try:
    __import__(name)
except ImportError as error:
    print("NO MODULE", error)
    sys.exit()
unittest.main(name, argv=["x", "-v"])
"""


class Outcome(NamedTuple):
    """How a module's tests ended."""

    ran: int
    failed: set[str]


def run(loop: str, module: str) -> Outcome:
    """Run a module's tests."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, loop, module],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        begun = re.findall(r"^(test_\w+ \([\w.]+\))", str(error.stdout), re.MULTILINE)
        return Outcome(len(begun), {f"{begun[-1] if begun else module}: ran out of time"})
    if "NO MODULE" in done.stdout:
        return Outcome(0, set())
    ran = re.search(r"^Ran (\d+) tests?", done.stdout, re.MULTILINE)
    if ran is None:
        return Outcome(0, {f"{module}: {done.stdout[-500:]}"})
    failed = re.findall(r"^(?:ERROR|FAIL): (.+)$", done.stdout, re.MULTILINE)
    return Outcome(int(ran[1]), set(failed))


@click.command()
@click.option("--only", type=click.Choice(MODULES), multiple=True)
def main(only: tuple[str, ...]) -> None:
    """Run CPython's tests of asyncio on coro's loop."""
    total = 0
    worse = []
    for module in only or MODULES:
        asyncios, coros = run("asyncio", module), run("coro", module)
        total += coros.ran
        alone = sorted(coros.failed - asyncios.failed)
        worse += [f"{module}: {name}" for name in alone]
        click.echo(
            f"{module:20} {coros.ran:5} tests, {len(coros.failed)} failed, "
            f"{len(asyncios.failed)} on asyncio's loop, {len(alone)} on coro's alone"
        )
    for line in worse:
        click.echo(line)
    click.echo(f"{total} tests, {len(worse)} worse than on asyncio's own loop")
    sys.exit(1 if worse or not total else 0)


if __name__ == "__main__":
    main()
