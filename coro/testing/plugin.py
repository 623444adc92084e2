"""The pytest plugin: tests that are coroutines, simulated worlds, and what tests leave behind.

It is active where it is installed, and touches only its own: tests that are ``@coroutine``
functions, ``async def`` tests that are marked ``coro`` or use its fixtures, and with
``coro_mode = auto`` all ``async def`` tests that no other plugin is asked to run.

Each such test runs on a fresh loop, within a time limit, and fails if it leaves tasks, timers,
descriptors, or errors that nobody looked at. The checks stand in the fixtures ``coro_loop`` and
``coro_world``, of which each test of ours has one. They are the first that are made for a test, and
so the last that end: what its other fixtures give back is not left.

Every pytest of an environment in which coro is installed loads this module, so it imports no
simulation before a test asks for one.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import logging
import os
import socket
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from coro import testing
from coro.errors import CancelledError, TimeoutError
from coro.future import UNRETRIEVED, slot
from coro.gen import coroutine, current_task, is_coroutine_function, moment
from coro.loop import IOLoop
from coro.main import run_on
from coro.resolver import LOOKUP_SECONDS, wait_for_threads
from coro.stuck import format_dump
from coro.testing.leftovers import NotingLoop

__all__: list[str] = []

KINDS = ("task", "timer", "descriptor", "error")

MARKER = """\
coro(timeout=seconds, allow_leaks=(kind, ...), network=None, faults=None): run the test on a loop \
of coro's. timeout: in a simulated world these are virtual seconds; None: no limit. \
allow_leaks: what it may leave behind: "task", "timer", "descriptor", "error". \
network, faults: of its simulated world, as for coro.testing.World."""

DEFAULT_TIMEOUT = 60.0
DEFAULT_SEEDS = 10

# Turns in which that may end which has only to notice that it is over.
GRACE = 10

# Whether the test failed: what it leaves is then a consequence.
_failed = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("coro", "coro: coroutines and simulated worlds")
    group.addoption(
        "--coro-seeds",
        type=int,
        default=DEFAULT_SEEDS,
        metavar="N",
        help="run each test in N simulated worlds, of the seeds 0 to N - 1 (default: %(default)s)",
    )
    group.addoption(
        "--coro-seed",
        type=int,
        metavar="SEED",
        help="run each test in the simulated world of this seed only, to replay a failure",
    )
    parser.addini(
        "coro_mode",
        "strict (default): run what is marked; auto: run all async def tests",
        default="strict",
    )
    parser.addini(
        "coro_timeout",
        f"seconds that a test may take (default: {DEFAULT_TIMEOUT:g}; 0: no limit)",
        default=str(DEFAULT_TIMEOUT),
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and check the options."""
    config.addinivalue_line("markers", MARKER)
    if config.getini("coro_mode") not in ("strict", "auto"):
        raise pytest.UsageError("coro_mode is strict or auto")
    if config.getoption("coro_seeds") < 1:
        raise pytest.UsageError("--coro-seeds is at least 1")
    try:
        float(config.getini("coro_timeout"))
    except ValueError as error:
        raise pytest.UsageError(f"coro_timeout is a number of seconds: {error}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each seed, unless it chooses its seeds itself."""
    chosen = {
        name.strip()
        for mark in metafunc.definition.iter_markers("parametrize")
        for name in (mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0])
    }
    if "coro_world" in metafunc.fixturenames and "coro_world" not in chosen:
        one = metafunc.config.getoption("coro_seed")
        seeds = range(metafunc.config.getoption("coro_seeds")) if one is None else [one]
        ids = [f"seed{seed}" for seed in seeds]
        metafunc.parametrize("coro_world", seeds, indirect=True, ids=ids)


# --- which tests are ours ----------------------------------------------------------------------


class CoroFunction(pytest.Function):
    """A test that runs on a loop of coro's."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> Generator[None, Any, Any]:
    """Take those that are ours, also from plugins that take every ``async def``."""
    found = yield
    if not isinstance(found, list):
        return found
    made = [_ours(each) if _is_ours(each) else each for each in found]
    for each in made:
        if isinstance(each, pytest.Function):
            _order_fixtures(each)
    return made


def _is_ours(item: Any) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    function = item.function
    if is_coroutine_function(function):
        return True
    if not inspect.iscoroutinefunction(function):
        return False
    if item.get_closest_marker("coro") is not None or _FIXTURES & set(item.fixturenames):
        return True
    return item.config.getini("coro_mode") == "auto" and not any(
        item.get_closest_marker(other) for other in ("asyncio", "anyio", "trio")
    )


def _ours(item: pytest.Function) -> CoroFunction:
    """Return the same test as one of ours, without what other plugins have made of it."""
    made: CoroFunction = CoroFunction.from_parent(
        item.parent,
        name=item.name,
        callspec=getattr(item, "callspec", None),
        fixtureinfo=item._fixtureinfo,
        originalname=item.originalname,
    )
    if not _LOOPS & set(made.fixturenames):
        made.fixturenames.append("coro_loop")
    return made


def _order_fixtures(item: pytest.Function) -> None:
    """Make the fixture with the checks the first of those that are made for one test."""
    names = item.fixturenames
    for name in sorted(_LOOPS & set(names)):
        names.remove(name)
        known = item._fixtureinfo.name2fixturedefs
        wide = [each for each in names if each in known and known[each][-1].scope != "function"]
        names.insert(max((names.index(each) + 1 for each in wide), default=0), name)


# --- running them ------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test of ours."""
    if not isinstance(pyfuncitem, CoroFunction):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    call = functools.partial(pyfuncitem.obj, **arguments)
    world: Any = pyfuncitem.funcargs.get("coro_world")
    loop: Any = pyfuncitem.funcargs.get("coro_loop")
    options = _options(pyfuncitem)
    if world is None:
        _run(loop.run_sync, call, options["timeout"])
    else:
        marker = pyfuncitem.get_closest_marker("coro")
        limit = None if marker is None else marker.kwargs.get("timeout")
        _run_in(world, pyfuncitem, call, limit)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note whether a test failed."""
    try:
        return (yield)
    except BaseException:
        item.stash[_failed] = True
        raise


def _options(item: pytest.Item) -> dict[str, Any]:
    """Return what the marker of a test says."""
    found: dict[str, Any] = {
        "timeout": float(item.config.getini("coro_timeout")) or None,
        "allow_leaks": (),
        "network": None,
        "faults": None,
    }
    marker = item.get_closest_marker("coro")
    given = {} if marker is None else marker.kwargs
    if not set(given) <= set(found) or (marker is not None and marker.args):
        pytest.fail(f"the marker coro takes {', '.join(found)}: {marker}", pytrace=False)
    found |= given
    if isinstance(found["allow_leaks"], str):
        found["allow_leaks"] = (found["allow_leaks"],)
    if not set(found["allow_leaks"]) <= set(KINDS):
        pytest.fail(f"allow_leaks is some of {KINDS}, not {found['allow_leaks']!r}", pytrace=False)
    return found


def _run(
    run: Callable[[Callable[[], Any]], Any], call: Callable[[], Any], seconds: float | None
) -> None:
    """Run a test to its end."""
    dumps: list[str] = []

    @coroutine
    def main() -> Generator[Any, Any, None]:
        loop = IOLoop.current()
        cancel = current_task().cancel  # type: ignore[union-attr]

        def expire() -> None:
            dumps.append(format_dump(loop))
            cancel()

        timer = None if seconds is None else loop.call_later(seconds, expire)
        try:
            result = call()
            if result is not None:
                yield result
        finally:
            if timer is not None:
                loop.remove_timeout(timer)
        yield _settle()

    try:
        run(main)
    except CancelledError:
        if not dumps:
            raise
    if dumps:
        raise TimeoutError(f"the test took more than {seconds:g} s; so it stood then:\n{dumps[0]}")


@coroutine
def _settle() -> Generator[Any, Any, None]:
    """Let that end which has only to notice that it is over."""
    loop = IOLoop.current()
    for _ in range(GRACE):
        if all(task is current_task() for task in loop._live_tasks()):
            return
        yield moment


def _run_in(world: Any, item: pytest.Item, call: Callable[[], Any], limit: float | None) -> None:
    """Run a test in a simulated world."""
    try:
        _run(world.run, call, limit)
    except Exception as error:
        # The note of ``World.run`` shows a call of simulate(), which is not how a test begins.
        notes = getattr(error, "__notes__", [])
        notes[:] = [note for note in notes if not note.startswith("simulated with seed")]
        faults = f"; faults: {list(world.faults)!r}" if world.faults else ""
        error.add_note(
            f"simulated with seed {world.seed}{faults}; to replay it: "
            f"pytest --coro-seed={world.seed} '{item.nodeid}'"
        )
        raise


# --- what they leave ---------------------------------------------------------------------------


class _Errors(logging.Handler):
    """Collects errors that nobody looked at."""

    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == UNRETRIEVED:
            error = record.exc_info[1] if record.exc_info else None
            self._found.append(f"error {error!r}: {record.getMessage()}")


@contextlib.contextmanager
def _complaints(item: pytest.Item) -> Iterator[list[str]]:
    """Fail, after the block, for what was left behind: the lines that it collected, and ours."""
    allowed = _options(item)["allow_leaks"]
    found: list[str] = []
    handler = _Errors(found)
    log = logging.getLogger("coro.application")
    before = _descriptors()
    log.addHandler(handler)
    try:
        yield found
        # Objects that refer to each other may hold an error, or a socket.
        gc.collect(1)
    finally:
        log.removeHandler(handler)
    found += [f"descriptor {fd}: {what}" for fd, what in _more_than(before).items()]
    found = [line for line in found if line.partition(" ")[0] not in allowed]
    if found and not item.stash.get(_failed, False):
        lines = "\n".join(f"  {line}" for line in found)
        pytest.fail(
            f"the test left behind:\n{lines}\n"
            "If that is on purpose, mark it: @pytest.mark.coro(allow_leaks=(...)) with some of "
            + ", ".join(map(repr, KINDS)),
            pytrace=False,
        )


def _descriptors() -> dict[int, str]:
    """Return what is open in this process; nothing where that cannot be told."""
    directory = Path("/proc/self/fd")
    found = {}
    for name in os.listdir(directory) if directory.exists() else ():
        with contextlib.suppress(OSError):  # what listed the directory is closed by now
            found[int(name)] = os.readlink(directory / name)
    return found


def _more_than(before: dict[int, str]) -> dict[int, str]:
    now = _descriptors()
    if len(now) > len(before):
        gc.collect()
        # Of a name's two look-ups the one that is not needed may go on, and has a socket.
        wait_for_threads(LOOKUP_SECONDS)
        now = _descriptors()
    fresh = {fd: what for fd, what in now.items() if before.get(fd) != what}
    # Something may have closed one and opened another, as logging does: only the number counts.
    return fresh if len(now) > len(before) else {}


# --- fixtures ----------------------------------------------------------------------------------

_LOOPS = {"coro_loop", "coro_world"}
_FIXTURES = {*_LOOPS, "coro_socket"}


@pytest.fixture
def coro_loop(request: pytest.FixtureRequest) -> Iterator[IOLoop]:
    """The fresh loop on which the test runs, current from the beginning; a plain function calls
    ``coro_loop.run_sync(main)``.
    """
    previous = slot.current
    with _complaints(request.node) as found:
        loop = NotingLoop()
        yield loop
        if not loop._closed:
            # What earlier runs of the loop left may have ended since.
            loop.note_again()
            run_on(loop, _settle, debug=False)
        found += loop.left
        slot.current = previous


@pytest.fixture
def coro_world(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A simulated world, in which the test runs, for each seed (``--coro-seeds=N``) once.

    A plain function gets one in which nothing runs yet: ``coro_world.run(main)``.
    """
    if "coro_loop" in request.fixturenames:
        pytest.fail("coro_world has a loop of its own: leave out coro_loop", pytrace=False)
    options = _options(request.node)
    with _complaints(request.node) as found:
        world = testing.World(request.param, network=options["network"], faults=options["faults"])
        yield world
        found += world.left


@pytest.fixture
def coro_socket() -> Iterator[Callable[..., socket.socket]]:
    """``coro_socket()`` returns a socket that listens on a free port of the loopback.

    Nobody can take the port between its choice and its use: ``server.add_socket(coro_socket())``.
    ``coro_socket("::1")`` for IPv6. They are closed when the test is over.
    """
    made: list[socket.socket] = []

    def listen(address: str = "127.0.0.1") -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.create_server((address, 0), family=family, backlog=128)
        sock.setblocking(False)
        made.append(sock)
        return sock

    yield listen
    for sock in made:
        sock.close()
