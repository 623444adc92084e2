"""The fixtures that all tests share."""

import asyncio
import contextlib
import gc
import os
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
import uvloop

import coro.aio
from coro.loop import IOLoop
from tests.support.authority import Authority, new_authority
from tests.support.hosting import HOSTS, hosting
from tests.support.leaks import no_fds_left
from tests.support.needs import REQUIRE_ALL, needs_command
from tests.support.nginx import Nginx, running_nginx
from tests.support.raw_server import RawServer, Script

# The tests of these modules run on native loops, and once more inside asyncio and inside uvloop.
_ON_ALL_LOOPS = re.compile(
    r"tests\.(test_(asgi|connector|stream\w*|tcp|tcpserver|tls_events|tls_stream|transfer)"
    r"|http\.test_(client\w*|compressors|connection\w*|events|fault_matrix|files|hop|lifetimes|pool)"
    r"|http\.test_(server\w*|tunnel|websocket\w*)"
    r"|interop\.test_(nginx_fetch|openssl|websockets))"
)
# Of these, the tests that ask for ``loop``.
_WITH_A_LOOP = re.compile(
    r"tests\.(test_pipes|http\.test_hostile_\w+"
    r"|interop\.test_(fetch_servers|httpbin|proxies|sockets))"
)


# The tests of these modules run in simulation as well, each under so many seeds that a suite has
# more than a thousand runs; but not those that have sockets of the system. ``tests/soak.py`` asks
# for other seeds: CORO_SEEDS="100:150".
_SIMULATED = {
    r"tests\.http\.test_client(?!_cancellation)\w*": 4,
    r"tests\.http\.test_(connection|pool)": 2,
    r"tests\.http\.test_(server|websocket|events|files|compressors)": 3,
    r"tests\.test_asgi": 3,
    r"tests\.test_(connector|tcp)": 18,
    r"tests\.test_stream_conformance": 4,
    r"tests\.test_(stream|stream_corners|transfer)": 2,
}
# These count turns, in which the clock stands still: bytes arrive in the turn after they are sent.
_AT_ONCE = re.compile(
    r"tests\.(http\.test_(connection|events|files|pool|server|websocket)"
    r"|test_(asgi|stream|stream_corners|transfer))"
)
_OF_THE_SYSTEM = {"deaf_port", "raw_server", "nginx"}


def _seeds(usual: int) -> range:
    asked = os.environ.get("CORO_SEEDS")
    return range(*map(int, asked.split(":"))) if asked else range(usual)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on all kinds of loops where its module asks for that."""
    module = metafunc.module.__name__
    kinds: dict[str, str | int | None] = {}
    if _ON_ALL_LOOPS.fullmatch(module) or (
        _WITH_A_LOOP.fullmatch(module) and "loop" in metafunc.fixturenames
    ):
        kinds |= {"native": None, **{host: host for host in HOSTS}}
    for pattern, seeds in _SIMULATED.items():
        if re.fullmatch(pattern, module) and not (
            _OF_THE_SYSTEM & {*metafunc.fixturenames}
            or hasattr(metafunc.function, "of_the_system")
            or hasattr(metafunc.cls, "of_the_system")
        ):
            kinds |= {f"seed{seed}": seed for seed in _seeds(seeds)}
    if kinds:
        metafunc.parametrize("_hosted_by", kinds.values(), indirect=True, ids=kinds)


def _is_misplaced(item: pytest.Item) -> bool:
    """Whether it is simulated with a parameter that needs the system's network."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return isinstance(parameters.get("_hosted_by"), int) and any(
        hasattr(value, "of_the_system") for value in parameters.values()
    )


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """Run each test that is marked with ``asyncio`` on all kinds of asyncio loops."""
    return {
        "asyncio": asyncio.new_event_loop,
        "uvloop": uvloop.new_event_loop,
        "coro": coro.aio.new_event_loop,
        "native": lambda: IOLoop(make_current=False).asyncio_loop,
    }


@pytest.fixture(autouse=True)
def _hosted_by(request: pytest.FixtureRequest) -> Iterator[None]:
    kind = getattr(request, "param", None)
    if isinstance(kind, int):
        hosting.seed = kind
        if _AT_ONCE.fullmatch(request.module.__name__):
            hosting.delay = (0.0, 0.0)
    else:
        hosting.host = kind
    yield
    hosting.host = hosting.seed = None
    hosting.delay = hosting.DELAY


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Every test closes what it opened."""
    with no_fds_left():
        yield


@pytest.fixture(autouse=True, scope="module")
def _small_heap() -> None:
    """Let the collector pass over what is there: the tests, and what pytest keeps of each.

    Thousands of collections show that nothing is left. They took a quarter of the suite's time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """With the collector off; a test asserts that ``gc.collect()`` finds nothing."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority: ``ca.pem``, ``ca.server_context()``, ``ca.client_context()``."""
    return new_authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory, ca: Authority) -> Iterator[Nginx]:
    """A private nginx, plain and TLS: ``nginx.url("/1k.txt", tls=True)``."""
    command = needs_command("nginx", "apt-get install nginx-light")
    with running_nginx(command, tmp_path_factory.mktemp("nginx"), ca) as server:
        yield server


class RawServerFactory(Protocol):
    """The type of the fixture ``raw_server``, for tests that are typed."""

    def __call__(
        self, script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> RawServer: ...


@pytest.fixture
def raw_server() -> Iterator[RawServerFactory]:
    """``raw_server(script)`` starts a server that plays ``script(conn)`` for each connection."""
    with contextlib.ExitStack() as stack:

        def start(
            script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
        ) -> RawServer:
            server = RawServer(script, tls=tls, host=host)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def refused_port() -> Iterator[int]:
    """A loopback port that refuses: bound, so that nobody takes it, but not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A loopback port that neither takes nor refuses a connection: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # Linux queues one more than asked; connecting is not waited for
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what makes no sense; skip the packaging tests unless they are asked for."""
    items[:] = [item for item in items if not _is_misplaced(item)]
    if REQUIRE_ALL or "packaging" in config.option.markexpr:
        return
    reason = "builds from the package index: python -m pytest -m packaging"
    for item in items:
        if item.get_closest_marker("packaging"):
            item.add_marker(pytest.mark.skip(reason=reason))
