"""Echo: 50 connections, each with one message under way, back and forth.

``accept``   messages of 1 KB, each on a connection of its own
``echo``     messages of 1 KB
``echo64``   messages of 64 KB
``tls``      messages of 1 KB over TLS
``tls64``    messages of 64 KB over TLS

The servers take turns under the same load generator, a loop over bare epoll on the other core.
That generator does as much for a message as the bare server does, so the fastest servers are
measured at its own pace; there, look at the CPU column, which counts the server alone.

asyncio's own transports ask for 256 KiB in every ``recv``.  glibc maps fresh memory for a piece of
that size each time, which is most of what its rows show; that is how asyncio comes.  On coro's loop
it does not: ``coro.aio`` sees to that.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ..certificate import certificate
from ..model import Case, Measure, Measurement, Subject, SubjectError, Suite
from ..processes import OTHER_CORE, SUBJECT_CORE, child, measured, python
from ..trial import LONGEST

BARE = Subject("bare epoll", f"{__name__}.bare")
CORO = Subject("coro", f"{__name__}.on_coro", (), ("coro",))
STREAMS = Subject("asyncio, streams", f"{__name__}.streams")
UV_STREAMS = replace(
    STREAMS, name="uvloop, streams", arguments=("--loop", "uvloop"), needs=("uvloop",)
)
PROTOCOLS = Subject("asyncio, protocols", f"{__name__}.protocols")
UV_PROTOCOLS = replace(
    PROTOCOLS, name="uvloop, protocols", arguments=("--loop", "uvloop"), needs=("uvloop",)
)
ON_CORO = {
    subject: replace(
        subject,
        name=f"{subject.name}, on coro's loop",
        arguments=("--loop", "coro"),
        needs=("coro",),
        wanted=1.0,
        rival=subject.name,
    )
    for subject in (STREAMS, PROTOCOLS)
}
TORNADO = Subject("Tornado", f"{__name__}.on_tornado", (), ("tornado",))

CASES = (
    Case(
        "accept",
        "connect, echo of 1 KB and close, 50 at a time",
        "connections/s",
        (BARE, CORO, STREAMS, PROTOCOLS, UV_STREAMS, UV_PROTOCOLS, TORNADO),
    ),
    Case(
        "echo",
        "echo of 1 KB, 50 connections",
        "messages/s",
        (
            replace(BARE, wanted=0.72),
            CORO,
            STREAMS,
            PROTOCOLS,
            *ON_CORO.values(),
            replace(UV_STREAMS, wanted=1.2),
            UV_PROTOCOLS,
            TORNADO,
        ),
    ),
    Case(
        "echo64",
        "echo of 64 KB, 50 connections",
        "messages/s",
        (CORO, replace(STREAMS, wanted=1.0), UV_STREAMS, TORNADO),
    ),
    Case(
        "tls",
        "echo of 1 KB over TLS, 50 connections",
        "messages/s",
        (BARE, CORO, replace(STREAMS, wanted=1.2), UV_STREAMS, TORNADO),
    ),
    Case(
        "tls64",
        "echo of 64 KB over TLS, 50 connections",
        "messages/s",
        (CORO, replace(STREAMS, wanted=1.0), UV_STREAMS, TORNADO),
    ),
)


@contextmanager
def prepare(case: Case, seconds: float) -> Iterator[Measure]:
    """Only a certificate is shared: each measurement starts its own server and its own load."""
    size = 65536 if case.name.endswith("64") else 1024

    def measure(subject: Subject, tls: Sequence[str] = ()) -> Measurement:
        command = python(subject.module, *subject.arguments, "--life", LONGEST, *tls)
        with child(command, SUBJECT_CORE) as server:
            port = server.first_line()
            options = ("--seconds", seconds, "--size", size, *(["--tls"] if tls else []))
            generator = "knocking" if case.name == "accept" else "load"
            load = python(f"{__name__}.{generator}", port, server.process.pid, *options)
            try:
                return measured(load, OTHER_CORE)
            except SubjectError as error:
                raise SubjectError(server.last_words() or str(error)) from None

    if case.name.startswith("tls"):
        with certificate() as pem:
            yield lambda subject: measure(subject, ("--tls", pem))
    else:
        yield measure


SUITE = Suite("echo", CASES, prepare)
