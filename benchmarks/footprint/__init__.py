"""Footprint: what things cost that only stand there, and what it takes to load a library.

``coroutine``  the memory of a coroutine that is suspended, each on a future of its own
``timer``      the memory of a timer that waits
``import``     the time of the first ``import``, without the start of the interpreter

A suspended native coroutine that nobody made a task of cannot be held or cancelled: the row of bare
generators is the floor, the peers' rows have a task for each.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..model import Case, Measure, Subject, Suite
from ..processes import SUBJECT_CORE, measured, python

FLOOR = Subject("bare generators", f"{__name__}.generators")
CORO = Subject("coro", f"{__name__}.on_coro", (), ("coro",))
ASYNCIO = Subject("asyncio", f"{__name__}.on_asyncio")
UVLOOP = Subject("uvloop", ASYNCIO.module, ("--loop", "uvloop"), ("uvloop",))
TORNADO = Subject("Tornado", f"{__name__}.on_tornado", (), ("tornado",))
TWISTED = Subject("Twisted", f"{__name__}.on_twisted", (), ("twisted",))
TRIO = Subject("trio", f"{__name__}.on_trio", (), ("trio",))


def importing(name: str, *modules: str) -> Subject:
    """A row of the case ``import``."""
    needs = tuple(module.partition(".")[0] for module in modules)
    return Subject(name, f"{__name__}.importing", modules, needs)


CASES = (
    Case(
        "coroutine",
        "memory of a suspended coroutine",
        "bytes",
        (FLOOR, replace(CORO, most=1536), ASYNCIO, UVLOOP, TORNADO, TWISTED, TRIO),
    ),
    Case("timer", "memory of a waiting timer", "bytes", (CORO, ASYNCIO, UVLOOP, TWISTED)),
    Case(
        "import",
        "the first import",
        "ms",
        (
            importing("coro", "coro"),
            replace(importing("asyncio and ssl", "asyncio", "ssl"), wanted=1 / 1.5),
            importing("coro.http", "coro.http"),
            importing("tornado.httpclient", "tornado.httpclient"),
            importing("aiohttp", "aiohttp"),
            importing("httpx", "httpx"),
            importing("trio", "trio"),
        ),
    ),
)


@contextmanager
def prepare(case: Case, seconds: float) -> Iterator[Measure]:
    """Nothing to set up, and nothing that depends on time."""
    named = () if case.name == "import" else (case.name,)
    yield lambda subject: measured(python(subject.module, *named, *subject.arguments), SUBJECT_CORE)


SUITE = Suite("footprint", CASES, prepare)
