"""Server: answers over 50 keep-alive connections, under the load of wrk on the other core.

``hello``  a line of text; the requests of a connection are all alike, as wrk sends them
``heads``  likewise, but each request has a query of its own; the fields are alike
``json``   a small object, made and encoded for each request
``idle``   the memory of a connection that had one request and is kept

Nobody writes an access log. ASGI servers run an application without a framework; Tornado has none
apart from its own, which also makes an ``Etag``. granian serves from a process beside its own: both
are counted.
"""

import http.client
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..model import Case, Measure, Measurement, Subject, SubjectError, Suite, UnavailableError
from ..processes import OTHER_CORE, SUBJECT_CORE, Child, child, measured, python
from ..trial import LONGEST

BARE = Subject("bare epoll", f"{__name__}.bare")
CORO = Subject("coro", f"{__name__}.on_coro", (), ("coro",))
CORO_ASYNC = replace(CORO, name="coro, async def", arguments=("--handler", "async"))
CORO_ASGI = replace(CORO, name="coro, ASGI", arguments=("--handler", "asgi"))
UVICORN = Subject("uvicorn", f"{__name__}.on_uvicorn", (), ("uvicorn", "uvloop", "httptools"))
UVICORN_CORO = replace(UVICORN, name="uvicorn on coro's loop", arguments=("--loop", "coro"))
HYPERCORN = Subject("hypercorn", f"{__name__}.on_hypercorn", (), ("hypercorn", "uvloop"))
TORNADO = Subject("Tornado", f"{__name__}.on_tornado", (), ("tornado",))
AIOHTTP = Subject("aiohttp on uvloop", f"{__name__}.on_aiohttp", (), ("aiohttp", "uvloop"))
GRANIAN = Subject("granian, ASGI", f"{__name__}.on_granian", (), ("granian", "uvloop"))
GRANIAN_RSGI = replace(GRANIAN, name="granian, RSGI", arguments=("--interface", "rsgi"))

SUBJECTS = (
    BARE,
    CORO,
    CORO_ASYNC,
    CORO_ASGI,
    replace(UVICORN, wanted=1.6),
    UVICORN_CORO,
    HYPERCORN,
    replace(TORNADO, wanted=8.0),
    replace(AIOHTTP, wanted=1.8),
    replace(GRANIAN, wanted=1.0),
    GRANIAN_RSGI,
)

DIFFERING = {UVICORN.name: 1.3, TORNADO.name: 6.0}
"""What is wanted where requests are not all alike."""

CASES = (
    Case("hello", "a line of text, 50 connections", "requests/s", SUBJECTS),
    Case(
        "heads",
        "a line of text, each request with a query of its own, 50 connections",
        "requests/s",
        [replace(subject, wanted=DIFFERING.get(subject.name)) for subject in SUBJECTS],
    ),
    Case("json", "a small object as JSON, 50 connections", "requests/s", SUBJECTS),
    Case(
        "idle",
        "an idle keep-alive connection of a server",
        "bytes",
        (BARE, replace(CORO, most=6144), CORO_ASGI, UVICORN, HYPERCORN, TORNADO, AIOHTTP, GRANIAN),
    ),
)
PATHS = {"hello": "/", "heads": "/", "json": "/json"}
SCRIPTS = {"heads": Path(__file__).with_name("paths.lua")}
START = 10.0
"""Seconds that a server has to begin to answer."""


@contextmanager
def prepare(case: Case, seconds: float) -> Iterator[Measure]:
    """Nothing is shared: each measurement starts its own server and its own load."""
    if case.name in PATHS and shutil.which("wrk") is None:
        raise UnavailableError("needs wrk: apt-get install wrk")

    def measure(subject: Subject) -> Measurement:
        command = python(subject.module, *subject.arguments, "--life", LONGEST)
        with child(command, SUBJECT_CORE) as server:
            port = int(server.first_line())
            pid = server.process.pid
            check(port, server)
            if case.name in PATHS:
                url = f"http://127.0.0.1:{port}{PATHS[case.name]}"
                script = ("--script", SCRIPTS[case.name]) if case.name in SCRIPTS else ()
                load = python(f"{__name__}.wrk", url, pid, "--seconds", seconds, *script)
            else:
                load = python(f"{__name__}.idle", port, pid)
            try:
                return measured(load, OTHER_CORE)
            except SubjectError as error:
                raise SubjectError(server.last_words() or str(error)) from None

    yield measure


def check(port: int, server: Child) -> None:
    """Return when the server answers, or raise if it answers something else."""
    deadline = time.monotonic() + START
    for path, expected in (("/", b"Hello, World!\n"), ("/json", b'"name"')):
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START)
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                body = response.read()
                break
            except ConnectionError:
                if server.process.poll() is not None or time.monotonic() > deadline:
                    raise SubjectError(server.last_words() or "did not start") from None
                time.sleep(0.02)
            except (OSError, http.client.HTTPException) as error:
                raise SubjectError(server.last_words() or repr(error)) from None
            finally:
                connection.close()
        if response.status != 200 or expected not in body:
            raise SubjectError(f"unexpected response: status {response.status}, {body[:50]!r}")


SUITE = Suite("server", CASES, prepare)
