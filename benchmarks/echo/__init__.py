"""Echo: 50 connections, each with one message of 1 KB under way, back and forth.

The servers take turns under the same load generator, a loop over bare epoll on the other core.
That generator does as much for a message as the bare server does, so the fastest servers are
measured at its own pace; there, look at the CPU column, which counts the server alone.

asyncio's own transports ask for 256 KiB in every ``recv``.  glibc maps fresh memory for a piece of
that size each time, which is most of what its rows show; that is how asyncio comes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ..model import Case, Measure, Measurement, Subject, SubjectError, Suite
from ..processes import OTHER_CORE, SUBJECT_CORE, child, measured, python
from ..trial import LONGEST

CASES = (
    Case(
        "echo",
        "echo of 1 KB, 50 connections",
        "messages/s",
        (
            Subject("bare epoll", f"{__name__}.bare", wanted=0.7),
            Subject("coro", f"{__name__}.on_coro", (), ("coro",)),
            Subject("asyncio, streams", f"{__name__}.streams"),
            Subject("asyncio, protocols", f"{__name__}.protocols"),
            Subject("uvloop, streams", f"{__name__}.streams", ("--loop", "uvloop"), ("uvloop",)),
            Subject(
                "uvloop, protocols", f"{__name__}.protocols", ("--loop", "uvloop"), ("uvloop",)
            ),
            Subject("Tornado", f"{__name__}.on_tornado", (), ("tornado",)),
        ),
    ),
)


@contextmanager
def prepare(case: Case, seconds: float) -> Iterator[Measure]:
    """Nothing is shared: each measurement starts its own server and its own load."""

    def measure(subject: Subject) -> Measurement:
        command = python(subject.module, *subject.arguments, "--life", LONGEST)
        with child(command, SUBJECT_CORE) as server:
            port = server.first_line()
            load = python(f"{__name__}.load", port, server.process.pid, "--seconds", seconds)
            try:
                return measured(load, OTHER_CORE)
            except SubjectError as error:
                raise SubjectError(server.last_words() or str(error)) from None

    yield measure


SUITE = Suite("echo", CASES, prepare)
