"""Scaling: what an operation costs when there are many of something; a curve for each subject.

``connections``  echo of 1 KB: 10 messages under way, over so many connections in turn
``coroutines``   yield to the loop, so many coroutines doing so in turn
``waiting``      add and cancel a timer, while so many others wait
``bodies``       fetch of so many bytes, one after another

Where an operation costs the same wherever the curve is looked at, the library has no structure that
grows dear.  Caches of the processor show in all of them: what 10 connections need stays in the
nearest one, what 10,000 need does not.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from .. import echo, fetch
from ..fetch.nginx import running_nginx
from ..model import Case, Measure, Measurement, Subject, SubjectError, Suite
from ..processes import OTHER_CORE, SUBJECT_CORE, child, measured, python
from ..trial import LONGEST

CORO = Subject("coro", f"{__name__}.on_coro", (), ("coro",))
ASYNCIO = Subject("asyncio", f"{__name__}.on_asyncio")
UVLOOP = replace(ASYNCIO, name="uvloop", arguments=("--loop", "uvloop"), needs=("uvloop",))

CONNECTIONS = (10, 100, 1000, 10_000)
COROUTINES = (1, 10, 100, 1000, 10_000, 100_000)
TIMERS = (1, 10, 1000, 10_000, 100_000, 1_000_000)
BODIES = (1 << 10, 16 << 10, 256 << 10, 4 << 20, 64 << 20)

CASES = (
    *(
        Case(
            "connections",
            "echo of 1 KB, 10 under way, over so many connections",
            "us/op",
            (echo.BARE, echo.CORO, echo.STREAMS, echo.UV_STREAMS),
            at,
        )
        for at in CONNECTIONS
    ),
    *(
        Case(
            "coroutines",
            "yield to the loop, so many coroutines",
            "us/op",
            (CORO, ASYNCIO, UVLOOP),
            at,
        )
        for at in COROUTINES
    ),
    *(
        Case(
            "waiting",
            "add and cancel a timer, so many waiting",
            "us/op",
            (CORO, ASYNCIO, UVLOOP),
            at,
        )
        for at in TIMERS
    ),
    *(
        Case(
            "bodies",
            "fetch of so many bytes, 1 at a time",
            "requests/s",
            (fetch.CORO, fetch.PYCURL, fetch.AIOHTTP_UVLOOP),
            at,
        )
        for at in BODIES
    ),
)


@contextmanager
def prepare(case: Case, seconds: float) -> Iterator[Measure]:
    """For bodies, keep an nginx running while the case runs."""
    assert case.at is not None
    at = case.at

    def echoes(subject: Subject) -> Measurement:
        command = python(subject.module, *subject.arguments, "--life", LONGEST)
        with child(command, SUBJECT_CORE) as server:
            options = ("--seconds", seconds, "--connections", at)
            port = server.first_line()
            load = python(f"{__name__}.load", port, server.process.pid, *options)
            try:
                return measured(load, OTHER_CORE)
            except SubjectError as error:
                raise SubjectError(server.last_words() or str(error)) from None

    def alone(subject: Subject) -> Measurement:
        options = (case.name, at, *subject.arguments, "--seconds", seconds)
        return measured(python(subject.module, *options), SUBJECT_CORE)

    with ExitStack() as stack:
        if case.name == "connections":
            yield echoes
        elif case.name == "bodies":
            url = f"{stack.enter_context(running_nginx(sizes=BODIES))}/{at}.bin"
            load = ("--workers", 1, "--size", at, "--seconds", seconds)
            yield lambda subject: measured(
                python(subject.module, url, *subject.arguments, *load), SUBJECT_CORE
            )
        else:
            yield alone


SUITE = Suite("scaling", CASES, prepare, rounds=3)
