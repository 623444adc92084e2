"""The pytest plugin: tests that are coroutines, simulated worlds, and what tests leave behind.

It is active where it is installed, and touches only its own: tests that are ``@coroutine``
functions, ``async def`` tests that are marked ``coro`` or use its fixtures, and with
``coro_mode = auto`` all ``async def`` tests that no other plugin is asked to run.

Each such test runs on a fresh loop, within a time limit, and fails if it leaves tasks, timers,
descriptors, or errors that nobody looked at.
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

from coro.errors import CancelledError, TimeoutError
from coro.future import UNRETRIEVED
from coro.gen import coroutine, current_task, is_coroutine_function
from coro.loop import IOLoop
from coro.main import run_on
from coro.stuck import format_dump
from coro.testing.leftovers import NotingLoop
from coro.testing.simulation import World

__all__: list[str] = []

KINDS = ("task", "timer", "descriptor", "error")

MARKER = """\
coro(timeout=seconds, allow_leaks=(kind, ...)): run the test on a loop of coro's. \
timeout: in a simulated world these are virtual seconds; None: no limit. \
allow_leaks: what it may leave behind: "task", "timer", "descriptor", "error"."""

DEFAULT_TIMEOUT = 60.0
DEFAULT_SEEDS = 10

_world_key = pytest.StashKey[World]()


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
    """Run a test once for each seed."""
    if "coro_world" in metafunc.fixturenames:
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
    return [_ours(each) if _is_ours(each) else each for each in found]


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
    return made


# --- running them ------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test of ours."""
    if not isinstance(pyfuncitem, CoroFunction):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    call = functools.partial(pyfuncitem.obj, **arguments)
    seconds, allowed = _options(pyfuncitem)
    world = pyfuncitem.stash.get(_world_key, None)
    with _complaints(allowed) as found:
        if world is None:
            loop: Any = arguments.get("coro_loop") or NotingLoop(make_current=False)
            _run(loop, call, seconds)
            found += loop.left
        else:
            marker = pyfuncitem.get_closest_marker("coro")
            limit = None if marker is None else marker.kwargs.get("timeout")
            _run_in(world, pyfuncitem, call, limit)
            found += world.left
    return True


def _options(item: pytest.Function) -> tuple[float | None, tuple[str, ...]]:
    """Return the time limit of a test, and what it may leave behind."""
    marker = item.get_closest_marker("coro")
    options = {} if marker is None else marker.kwargs
    unknown = set(options) - {"timeout", "allow_leaks"}
    if unknown or (marker is not None and marker.args):
        raise pytest.UsageError(f"the marker coro takes timeout and allow_leaks: {marker}")
    seconds = float(item.config.getini("coro_timeout")) or None
    allowed = options.get("allow_leaks", ())
    allowed = (allowed,) if isinstance(allowed, str) else tuple(allowed)
    if not set(allowed) <= set(KINDS):
        raise pytest.UsageError(f"allow_leaks is some of {KINDS}, not {allowed!r}")
    return options.get("timeout", seconds), allowed


def _run(loop: IOLoop, call: Callable[[], Any], seconds: float | None) -> None:
    """Run a test to its end, on a loop that is closed then."""
    dumps: list[str] = []

    @coroutine
    def main() -> Generator[Any, Any, None]:
        cancel = current_task().cancel  # type: ignore[union-attr]

        def expire() -> None:
            dumps.append(format_dump())
            cancel()

        timer = None if seconds is None else loop.call_later(seconds, expire)
        try:
            result = call()
            if result is not None:
                yield result
        finally:
            if timer is not None:
                loop.remove_timeout(timer)

    try:
        run_on(loop, main)
    except CancelledError:
        if not dumps:
            raise
        raise TimeoutError(
            f"the test took more than {seconds:g} s; so it stood then:\n{dumps[0]}"
        ) from None


def _run_in(
    world: World, item: pytest.Function, call: Callable[[], Any], limit: float | None
) -> None:
    """Run a test in a simulated world."""
    try:
        world.run(call, timeout=limit)
    except Exception as error:
        # The note of ``World.run`` shows a call of simulate(), which is not how a test begins.
        del error.__notes__[-1:]
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
def _complaints(allowed: tuple[str, ...]) -> Iterator[list[str]]:
    """Fail, after the block, for what was left behind: the lines that it collected, and ours."""
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
    if found:
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
        now = _descriptors()
    fresh = {fd: what for fd, what in now.items() if before.get(fd) != what}
    # Something may have closed one and opened another, as logging does: only the number counts.
    return fresh if len(now) > len(before) else {}


# --- fixtures ----------------------------------------------------------------------------------

_FIXTURES = {"coro_loop", "coro_world", "coro_socket"}


@pytest.fixture
def coro_loop() -> Iterator[IOLoop]:
    """The fresh loop on which the test runs; of a plain function, the current loop."""
    loop = NotingLoop()
    yield loop
    if not loop._closed:
        loop.close()
    IOLoop.clear_current()


@pytest.fixture
def coro_world(request: pytest.FixtureRequest) -> World:
    """A simulated world, in which the test runs, for each seed (``--coro-seeds=N``) once.

    A plain function gets one in which nothing runs yet: ``coro_world.run(main)``.
    """
    world = World(request.param)
    request.node.stash[_world_key] = world
    return world


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
