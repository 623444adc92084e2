"""Fetch: GET of 1 KB from an nginx on the other core, over keep-alive connections.

``fetch1``   one request after another
``fetch50``  50 workers, each with one request after another
``get_tls``  likewise, over TLS
``post``     likewise, each request with a body of 64 KB
``stream``   one long body, read piece by piece; who keeps it in memory fails

Every subject checks the status and the length of every response.  Tornado's simple client keeps no
connection: its rows include a connect for each request, as its users have it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from ..certificate import certificate
from ..model import Case, Measure, Subject, Suite
from ..processes import SUBJECT_CORE, measured, python
from .nginx import running_nginx

BARE = Subject("bare epoll", f"{__name__}.bare")
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
AIOHTTP_CORO = Subject(
    "aiohttp on coro's loop",
    AIOHTTP.module,
    ("--loop", "coro"),
    AIOHTTP.needs,
    wanted=1.0,
    rival=AIOHTTP.name,
)
HTTPX = Subject("httpx", f"{__name__}.on_httpx", (), ("httpx",))
TORNADO = Subject("Tornado, simple client", f"{__name__}.on_tornado", (), ("tornado",))
TORNADO_CURL = Subject(
    "Tornado, curl client", TORNADO.module, ("--client", "curl"), ("tornado", "pycurl")
)

PEERS = (CORO, *GUESTS, PYCURL, AIOHTTP, AIOHTTP_UVLOOP, HTTPX)
"""Who does all that there is to do."""

CASES = (
    Case(
        "fetch1",
        "fetch of 1 KB, 1 at a time",
        "requests/s",
        (
            replace(BARE, wanted=0.7),
            CORO,
            *GUESTS,
            replace(PYCURL, wanted=1.0),
            AIOHTTP,
            AIOHTTP_UVLOOP,
            HTTPX,
            TORNADO,
            TORNADO_CURL,
        ),
    ),
    Case(
        "fetch50",
        "fetch of 1 KB, 50 at a time",
        "requests/s",
        (
            replace(BARE, wanted=0.65),
            CORO,
            GUESTS[0],
            replace(GUESTS[1], wanted=2.5, rival=AIOHTTP_UVLOOP.name),
            replace(PYCURL, wanted=0.65),
            replace(AIOHTTP, wanted=4.0),
            replace(AIOHTTP_UVLOOP, wanted=2.8),
            AIOHTTP_CORO,
            HTTPX,
            replace(TORNADO, wanted=18.0),
            TORNADO_CURL,
        ),
    ),
    Case("get_tls", "fetch of 1 KB over TLS, 50 at a time", "requests/s", PEERS),
    Case("post", "POST of 64 KB, 50 at a time", "requests/s", PEERS),
    Case("stream", "a body read piece by piece, 1 at a time", "MB/s", PEERS),
)
OPTIONS: dict[str, tuple[str | int, ...]] = {
    "fetch1": ("--workers", 1),
    "post": ("--post", 65536),
    "stream": ("--stream", "--workers", 1),
}
PATHS = {"post": "/take", "stream": "/huge.bin"}


@contextmanager
def prepare(case: Case, seconds: float) -> Iterator[Measure]:
    """Keep an nginx running while the case runs."""
    with ExitStack() as stack:
        pem = stack.enter_context(certificate()) if case.name == "get_tls" else None
        url = stack.enter_context(running_nginx(pem)) + PATHS.get(case.name, "/1k.txt")
        load = (*OPTIONS.get(case.name, ()), "--seconds", seconds)
        yield lambda subject: measured(
            python(subject.module, url, *subject.arguments, *load), SUBJECT_CORE
        )


SUITE = Suite("fetch", CASES, prepare)
