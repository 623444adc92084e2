"""Switching between coroutines, with no input or output.

``yield``  100 tasks, each of which yields to the loop again and again; one operation is one yield
``child``  a task that yields one child after another; each child returns at once
``chain``  a chain of 10 coroutines, each waiting for the next; the innermost suspends once
``wake``   two tasks that wake each other by turns, by settling the future the other waits for
``queue``  one task hands items to another by a queue that holds one
``lock``   10 tasks compete for a lock, which each holds for a turn of the loop
``call_soon`` 100 callbacks, each of which asks the loop to call it again
``timers`` 100,000 timers are added, and all cancelled; one operation is one timer

Each subject is written with the means that its own documentation shows.  A native ``await`` of a
coroutine makes no task, so nobody can hold, cancel or wait for that call separately: such a row is
a second floor.  The rows named "task per call" make one, as the ``yield`` frameworks do.  Twisted
wakes waiters inline, inside ``callback()``: its ``wake`` never passes through the reactor.

The subjects repeat one another's shape on purpose: each is to be read, and blamed, by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..model import Case, Measure, Subject, Suite
from ..processes import SUBJECT_CORE, measured, python

FLOOR = Subject("bare generators", f"{__name__}.generators")
CORO = Subject("coro", f"{__name__}.on_coro", (), ("coro",))
GUESTS = (
    Subject("coro inside asyncio", CORO.module, ("--loop", "asyncio"), ("coro",)),
    Subject("coro inside uvloop", CORO.module, ("--loop", "uvloop"), ("coro", "uvloop")),
)
ASYNCIO = Subject("asyncio", f"{__name__}.on_asyncio")
UVLOOP = Subject("uvloop", ASYNCIO.module, ("--loop", "uvloop"), ("uvloop",))
TORNADO = Subject("Tornado", f"{__name__}.on_tornado", (), ("tornado",))
TWISTED = Subject("Twisted", f"{__name__}.on_twisted", (), ("twisted",))
TRIO = Subject("trio", f"{__name__}.on_trio", (), ("trio",))

ON_CORO = Subject(
    "asyncio on coro's loop",
    ASYNCIO.module,
    ("--loop", "coro"),
    ("coro",),
    wanted=1.0,
    rival=ASYNCIO.name,
)
ASYNCIO_AWAIT = replace(ASYNCIO, name="asyncio, await")
TRIO_AWAIT = replace(TRIO, name="trio, await")
TASK_PER_CALL = tuple(
    replace(subject, name=f"{subject.name}, task per call", module=f"{__name__}.on_asyncio_tasks")
    for subject in (ASYNCIO, UVLOOP)
)

CASES = (
    Case(
        "yield",
        "yield to the loop, 100 tasks",
        "us/op",
        (
            FLOOR,
            CORO,
            *GUESTS,
            replace(ASYNCIO, wanted=4.0),
            ON_CORO,
            replace(UVLOOP, wanted=2.5),
            replace(TORNADO, wanted=8.0),
            TWISTED,
            TRIO,
        ),
    ),
    Case(
        "child",
        "yield of a child that returns at once",
        "us/op",
        (
            FLOOR,
            CORO,
            ASYNCIO_AWAIT,
            *TASK_PER_CALL,
            replace(TORNADO, wanted=2.7),
            TWISTED,
        ),
    ),
    Case(
        "chain",
        "chain of 10 that suspends once at the bottom",
        "us/op",
        (
            FLOOR,
            CORO,
            ASYNCIO_AWAIT,
            TRIO_AWAIT,
            *TASK_PER_CALL,
            replace(TORNADO, wanted=6.5),
            TWISTED,
        ),
    ),
    Case(
        "wake",
        "wake a task through a future",
        "us/op",
        (FLOOR, CORO, ASYNCIO, replace(UVLOOP, wanted=1.1), TORNADO, TWISTED, TRIO),
    ),
    Case(
        "queue",
        "hand an item over by a queue of 1",
        "us/op",
        (CORO, replace(ASYNCIO, wanted=2.0), UVLOOP, TORNADO),
    ),
    Case(
        "lock",
        "hand a lock round among 10 tasks",
        "us/op",
        (CORO, replace(ASYNCIO, wanted=2.0), UVLOOP, TORNADO),
    ),
    Case(
        "call_soon",
        "have the loop call a function, 100 waiting",
        "us/op",
        (CORO, ASYNCIO, ON_CORO, UVLOOP),
    ),
    Case(
        "timers",
        "add and cancel a timer, 100,000 waiting",
        "us/op",
        (CORO, ASYNCIO, ON_CORO, UVLOOP),
    ),
)


@contextmanager
def prepare(case: Case, seconds: float) -> Iterator[Measure]:
    """Nothing to set up: a subject is one process."""
    yield lambda subject: measured(
        python(subject.module, case.name, *subject.arguments, "--seconds", seconds), SUBJECT_CORE
    )


SUITE = Suite("switching", CASES, prepare)
