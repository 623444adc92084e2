"""Fetch: GET of 1 KB from an nginx on the other core, over keep-alive connections.

``fetch1``   one request after another
``fetch50``  50 workers, each with one request after another

Every subject checks the status and the length of every response.  Tornado's simple client keeps no
connection: its rows include a connect for each request, as its users have it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..model import Case, Measure, Subject, Suite
from ..processes import SUBJECT_CORE, measured, python
from .nginx import running_nginx

BARE = Subject("bare epoll", f"{__name__}.bare", wanted=0.6)
CORO = Subject("coro", f"{__name__}.on_coro", (), ("coro",))
GUESTS = (
    Subject("coro inside asyncio", CORO.module, ("--loop", "asyncio"), ("coro",)),
    Subject("coro inside uvloop", CORO.module, ("--loop", "uvloop"), ("coro", "uvloop")),
)
PYCURL = Subject("pycurl multi", f"{__name__}.on_pycurl", (), ("pycurl",))
AIOHTTP = Subject("aiohttp", f"{__name__}.on_aiohttp", (), ("aiohttp",))
AIOHTTP_UVLOOP = Subject(
    "aiohttp on uvloop", AIOHTTP.module, ("--loop", "uvloop"), ("aiohttp", "uvloop")
)
AIOHTTP_CORO = Subject("aiohttp on coro's loop", AIOHTTP.module, ("--loop", "coro"), AIOHTTP.needs)
HTTPX = Subject("httpx", f"{__name__}.on_httpx", (), ("httpx",))
TORNADO = Subject("Tornado, simple client", f"{__name__}.on_tornado", (), ("tornado",))
TORNADO_CURL = Subject(
    "Tornado, curl client", TORNADO.module, ("--client", "curl"), ("tornado", "pycurl")
)

CASES = (
    Case(
        "fetch1",
        "fetch of 1 KB, 1 at a time",
        "requests/s",
        (BARE, CORO, *GUESTS, PYCURL, AIOHTTP, AIOHTTP_UVLOOP, HTTPX, TORNADO, TORNADO_CURL),
    ),
    Case(
        "fetch50",
        "fetch of 1 KB, 50 at a time",
        "requests/s",
        (
            BARE,
            CORO,
            *GUESTS,
            PYCURL,
            replace(AIOHTTP, wanted=3.5),
            AIOHTTP_UVLOOP,
            AIOHTTP_CORO,
            HTTPX,
            TORNADO,
            TORNADO_CURL,
        ),
    ),
)
WORKERS = {"fetch1": 1, "fetch50": 50}


@contextmanager
def prepare(case: Case, seconds: float) -> Iterator[Measure]:
    """Keep an nginx running while the case runs."""
    with running_nginx() as url:
        load = ("--workers", WORKERS[case.name], "--seconds", seconds)
        yield lambda subject: measured(
            python(subject.module, url, *subject.arguments, *load), SUBJECT_CORE
        )


SUITE = Suite("fetch", CASES, prepare)
