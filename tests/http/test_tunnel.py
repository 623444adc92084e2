"""The way through a proxy: what is said to it, what is taken from it, what is left of it."""

from __future__ import annotations

import contextlib
import gc
import re
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from coro.errors import (
    CancelledError,
    ConnectError,
    HTTPConnectError,
    HTTPInputError,
    HTTPResolveError,
    HTTPTLSError,
    ProxyError,
    ResolveError,
    StreamClosedError,
)
from coro.gen import Task, coroutine
from coro.http import tunnel as room
from coro.http.auth import DigestMemory
from coro.http.connection import Progress
from coro.http.proxy import parse_proxy
from coro.http.tunnel import Passage
from coro.http.urls import parse
from coro.loop import IOLoop
from coro.resolver import Resolver
from coro.stream import IOStream
from tests.http.proxies import GRANTED, FakeProxy, FakeSocks, proxied
from tests.http.serving import LoopServer, fields_of
from tests.support.authority import Authority
from tests.support.leaks import count_fds
from tests.support.virtual import turns

Serve = Callable[[Any], LoopServer]


@pytest.fixture
def origin(ca: Authority) -> ssl.SSLContext:
    """The server's side of TLS for origin.test."""
    return ca.server_context("origin.test", "192.0.2.1")


class Ways:
    """``go(proxy_url, url)`` opens a way and returns the stream.

    Attributes:
        progress, passage: the last one's.
        memory: for Digest.
    """

    def __init__(self, loop: IOLoop, ca: Authority) -> None:
        self._loop = loop
        self._ca = ca
        self.memory = DigestMemory()
        self.progress: Any = None
        self.passage: Passage | None = None

    def begin(self, proxy: str, url: str = "https://origin.test/", **options: Any) -> Task[Any]:
        target = parse(url)
        tls = self._ca.client_context()
        self.progress = Progress(self._loop.time())
        self.passage = Passage(
            parse_proxy(proxy, options.pop("auth_mode", None)),
            target,
            proxy_context=tls if proxy.startswith("https") else None,
            context=tls if target.scheme == "https" else None,
            progress=self.progress,
            memory=self.memory,
            max_header_bytes=options.pop("max_header_bytes", 65536),
            details={"attempts": 0, "safe_to_retry": True},
            **options,
        )
        return opened(self.passage)

    def __call__(self, proxy: str, url: str = "https://origin.test/", **options: Any) -> IOStream:
        def work() -> Task[Any]:
            return self.begin(proxy, url, **options)

        stream: IOStream = self._loop.run_sync(work)
        return stream


@pytest.fixture
def go(loop: IOLoop, ca: Authority) -> Ways:
    return Ways(loop, ca)


@coroutine
def opened(passage: Passage) -> Any:
    return (yield from passage.open())


@coroutine
def ask(stream: IOStream) -> Any:
    """Ask the server over the way."""
    yield stream.write(b"GET / HTTP/1.1\r\n\r\n")
    answer = yield stream.read_until(b"hello")
    stream.close()
    return answer


@pytest.fixture
def nothing_left(loop: IOLoop) -> Callable[[], None]:
    """Call it when all is done: what is open is what was open before, but for the servers."""
    before = count_fds()

    def check() -> None:
        for _ in range(50):
            turns(loop)
        assert count_fds() == before

    return check


# --- CONNECT -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_tunnel(serve: Serve, go: Any, loop: IOLoop, ca: Authority, origin: Any, kind: str):
    proxy = FakeProxy(tls=ca.server_context() if kind == "https" else None, origin=origin)
    server = serve(proxy)
    stream = go(proxied(server.port, kind), user_agent="me/1")
    assert stream.getpeercert()["subjectAltName"][0] == ("DNS", "origin.test")
    assert loop.run_sync(lambda: ask(stream)).endswith(b"hello")
    assert proxy.asked == [
        b"CONNECT origin.test:443 HTTP/1.1\r\nHost: origin.test:443\r\nUser-Agent: me/1\r\n\r\n"
    ]
    progress = go.progress
    assert progress.phase == "tls"
    assert progress.resolved <= progress.connected <= progress.secured


def test_an_http_url_takes_the_connection_itself(serve: Serve, go: Any, loop: IOLoop):
    proxy = FakeProxy()
    server = serve(proxy)
    stream = go(proxied(server.port), "http://origin.test/")
    assert loop.run_sync(lambda: ask(stream)).endswith(b"hello")
    assert not proxy.asked
    assert go.progress.secured is None


def test_an_ipv6_server(serve: Serve, go: Any, ca: Authority):
    proxy = FakeProxy(origin=ca.server_context("::1"))
    go(proxied(serve(proxy).port), "https://[::1]:8443/").close()
    assert proxy.asked[0].startswith(b"CONNECT [::1]:8443 HTTP/1.1\r\nHost: [::1]:8443\r\n")


def test_basic_credentials(serve: Serve, go: Any, origin: Any):
    proxy = FakeProxy(origin=origin)
    go(proxied(serve(proxy).port, credentials="u:p%C3%A4@")).close()
    assert fields_of(proxy.asked[0])["Proxy-Authorization"] == "Basic dTpww6Q="


def test_other_credentials_instead(serve: Serve, go: Any, origin: Any):
    proxy = FakeProxy(origin=origin)
    go(proxied(serve(proxy).port, credentials="u:p@"), authorization="Custom x").close()
    assert fields_of(proxy.asked[0])["Proxy-Authorization"] == "Custom x"


CHALLENGE = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
    b'Proxy-Authenticate: Digest realm="r", nonce="%b", qop="auth"\r\nContent-Length: 0\r\n\r\n'
)


def test_digest(serve: Serve, go: Any, origin: Any):
    proxy = FakeProxy(origin=origin, connects=[CHALLENGE % b"1", GRANTED])
    url = proxied(serve(proxy).port, credentials="u:p@")
    go(url, auth_mode="digest").close()
    first, second = map(fields_of, proxy.asked)
    assert "Proxy-Authorization" not in first
    assert re.search(r'nonce="1", uri="origin.test:443"', second["Proxy-Authorization"])
    # The next way needs no further challenge.
    go(url, auth_mode="digest").close()
    assert "nc=00000002" in fields_of(proxy.asked[2])["Proxy-Authorization"]


def test_digest_is_tried_once(serve: Serve, go: Any, nothing_left: Any):
    proxy = FakeProxy(connects=[CHALLENGE % b"1", CHALLENGE % b"2"])
    server = serve(proxy)
    with pytest.raises(ProxyError) as caught:
        go(proxied(server.port, credentials="u:p@"), auth_mode="digest")
    assert caught.value.status == 407
    assert len(proxy.asked) == server.connections == 2
    server.close()
    nothing_left()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (CHALLENGE % b"1", 407),
        (b"HTTP/1.1 403 Forbidden\r\nX-Reason: rule 7\r\nContent-Length: 9999\r\n\r\n", 403),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\nno body is waited for", 502),
        (b"HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\n\r\n", 302),
        (b"HTTP/1.1 199 Odd\r\n\r\nHTTP/1.1 503 No\r\n\r\n", 503),
    ],
)
def test_refusals(serve: Serve, go: Any, nothing_left: Any, answer: bytes, status: int):
    server = serve(FakeProxy(connects=[answer]))
    with pytest.raises(
        ProxyError, match=rf"will not connect to origin\.test:443: {status}"
    ) as caught:
        go(proxied(server.port, credentials="u:geheim@"))
    error = caught.value
    assert (error.code, error.status, error.phase) == (599, status, "proxy")
    assert error.safe_to_retry
    assert "geheim" not in str(error)
    if status == 403:
        assert error.headers["X-Reason"] == "rule 7"
    server.close()
    nothing_left()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (GRANTED + b"220 surprise", "more than its answer"),
        (b"SSH-2.0-x\r\n", "not HTTP"),
        (b"HTTP/2 200 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\nX: y\n\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 5000 + b"\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 100 Go on\r\n\r\n" * 100, "not HTTP"),
    ],
)
def test_answers_that_are_none(serve: Serve, go: Any, nothing_left: Any, answer, message):
    server = serve(FakeProxy(connects=[answer]))
    with pytest.raises(ProxyError, match=message) as caught:
        go(proxied(server.port), max_header_bytes=2000)
    if message == "not HTTP":
        assert isinstance(caught.value.__cause__, HTTPInputError)
    server.close()
    nothing_left()


def test_a_length_in_the_answer_means_nothing(serve: Serve, go: Any, origin: Any):
    """RFC 9110 section 9.3.6."""
    proxy = FakeProxy(origin=origin, connects=[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"])
    # The fake takes only "200" for a grant, and so it goes on with TLS.
    go(proxied(serve(proxy).port)).close()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 2"])
def test_a_proxy_that_leaves(serve: Serve, go: Any, nothing_left: Any, sent: bytes):
    def script(peer: Any) -> Any:
        yield from peer.request()
        if sent:
            yield peer.send(sent)

    server = serve(script)
    with pytest.raises(ProxyError, match="closed the connection instead") as caught:
        go(proxied(server.port))
    assert isinstance(caught.value.__cause__, StreamClosedError)
    assert caught.value.status is None
    server.close()
    nothing_left()


# --- who is to blame -----------------------------------------------------------------------


def test_a_proxy_that_refuses_connections(go: Any, refused_port: int):
    with pytest.raises(ProxyError, match="the proxy http://127") as caught:
        go(proxied(refused_port))
    assert isinstance(caught.value.__cause__, ConnectError)


def test_a_proxy_without_an_address(go: Any):
    with pytest.raises(ProxyError, match="cannot resolve") as caught:
        go("http://proxy.invalid:1", resolver=Nowhere())
    assert isinstance(caught.value.__cause__, ResolveError)
    assert caught.value.phase == "proxy"


class Nowhere(Resolver):
    @coroutine
    def resolve(self, host: str, port: int, family: int = 0) -> Any:
        raise ResolveError(-2, "Name or service not known", host)
        yield


def test_a_proxy_that_is_not_trusted(serve: Serve, go: Any, ca: Authority, nothing_left: Any):
    server = serve(FakeProxy(tls=ca.server_context("other.test")))
    with pytest.raises(
        ProxyError, match=r"certificate of https://127\.0\.0\.1:\d+ is not trusted"
    ) as e:
        go(proxied(server.port, "https"))
    assert isinstance(e.value.__cause__, ssl.SSLCertVerificationError)
    server.close()
    nothing_left()


@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_server_that_is_not_trusted(
    serve: Serve, go: Any, ca: Authority, nothing_left: Any, kind: str
):
    server = serve(
        FakeProxy(
            tls=ca.server_context() if kind == "https" else None,
            origin=ca.server_context("other.test"),
        )
    )
    with pytest.raises(
        HTTPTLSError, match=r"origin\.test:443 is not trusted.*by the proxy"
    ) as caught:
        go(proxied(server.port, kind))
    assert caught.value.phase == "tls"
    server.close()
    nothing_left()


# --- SOCKS ---------------------------------------------------------------------------------

NO_AUTH = (3, b"\x05\x00")
DONE = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x12\x34"
BY_NAME = b"\x05\x01\x00\x03\x0borigin.test\x01\xbb"
BY_ADDRESS = b"\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb"


class Known(Resolver):
    """Knows where origin.test is."""

    @coroutine
    def resolve(self, host: str, port: int, family: int = 0) -> Any:
        return [(2, ("192.0.2.1" if host == "origin.test" else host, port))]
        yield


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize(("scheme", "asked"), [("socks5", BY_ADDRESS), ("socks5h", BY_NAME)])
@pytest.mark.parametrize(
    "done",
    [DONE, b"\x05\x00\x00\x03\x04host\x12\x34", b"\x05\x00\x00\x04" + bytes(16) + b"\x12\x34"],
)
def test_socks5(serve: Serve, go: Any, loop: IOLoop, origin: Any, scheme, asked, done, pieces):
    proxy = FakeSocks([NO_AUTH, (len(asked), done)], origin, pieces=pieces)
    stream = go(proxied(serve(proxy).port, scheme), resolver=Known())
    assert loop.run_sync(lambda: ask(stream)).endswith(b"hello")
    assert proxy.taken == [b"\x05\x01\x00", asked]
    assert go.progress.secured is not None


def test_socks_without_tls(serve: Serve, go: Any, loop: IOLoop):
    proxy = FakeSocks([NO_AUTH, (18, DONE)])
    stream = go(proxied(serve(proxy).port, "socks5h"), "http://origin.test/")
    assert loop.run_sync(lambda: ask(stream)).endswith(b"hello")
    assert proxy.taken[1] == b"\x05\x01\x00\x03\x0borigin.test\x00\x50"


def test_socks_credentials(serve: Serve, go: Any):
    asked = b"\x01\x01u\x03p\xc3\xa4"
    proxy = FakeSocks([(4, b"\x05\x02"), (len(asked), b"\x01\x00"), (18, DONE)])
    go(proxied(serve(proxy).port, "socks5h", "u:p%C3%A4@"), "http://origin.test/").close()
    assert proxy.taken[:2] == [b"\x05\x02\x00\x02", asked]


def test_socks_credentials_that_nobody_asks_for(serve: Serve, go: Any):
    proxy = FakeSocks([(4, b"\x05\x00"), (18, DONE)])
    go(proxied(serve(proxy).port, "socks5h", "u:p@"), "http://origin.test/").close()
    assert b"u" not in b"".join(proxy.taken[:1])


SOCKS4_DONE = b"\x00\x5a\x00\x00\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("scheme", "host", "asked"),
    [
        ("socks4", "origin.test", b"\x04\x01\x00\x50\xc0\x00\x02\x01u\x00"),
        ("socks4a", "origin.test", b"\x04\x01\x00\x50\x00\x00\x00\xffu\x00origin.test\x00"),
        ("socks4a", "192.0.2.7", b"\x04\x01\x00\x50\xc0\x00\x02\x07u\x00"),
        ("socks4", "192.0.2.7", b"\x04\x01\x00\x50\xc0\x00\x02\x07u\x00"),
    ],
)
def test_socks4(serve: Serve, go: Any, scheme: str, host: str, asked: bytes):
    proxy = FakeSocks([(len(asked), SOCKS4_DONE)])
    url = proxied(serve(proxy).port, scheme, "u@")
    go(url, f"http://{host}/", resolver=Known()).close()
    assert proxy.taken == [asked]


def test_socks4_without_a_username(serve: Serve, go: Any):
    proxy = FakeSocks([(21, SOCKS4_DONE)])
    go(proxied(serve(proxy).port, "socks4a"), "http://origin.test/").close()
    assert proxy.taken == [b"\x04\x01\x00\x50\x00\x00\x00\xff\x00origin.test\x00"]


@pytest.mark.parametrize(
    ("scheme", "steps", "error", "message"),
    [
        ("socks5h", [(3, b"\x05\xff")], ProxyError, "wants a username and a password"),
        ("socks5h", [(3, b"\x05\x01")], ProxyError, "refuses this client"),
        ("socks5h", [(3, b"\x05\x02")], ProxyError, "refuses this client"),
        ("socks5h", [(3, b"\x05\x80")], ProxyError, "not SOCKS"),
        ("socks5h", [(3, b"\x04\x00")], ProxyError, "not SOCKS: version 4"),
        ("socks5h", [(3, b"HTTP/1.1 400 Bad\r\n\r\n")], ProxyError, "not SOCKS: version 72"),
        ("socks5h", [(3, b"")], ProxyError, "closed the connection instead"),
        ("socks5h", [NO_AUTH, (18, b"")], ProxyError, "closed the connection instead"),
        ("socks5h", [NO_AUTH, (18, b"\x05\x01")], ProxyError, "it failed"),
        ("socks5h", [NO_AUTH, (18, b"\x05\x02" + DONE[2:])], ProxyError, "rules do not allow"),
        ("socks5h", [NO_AUTH, (18, b"\x05\x63" + DONE[2:])], ProxyError, "error 99"),
        ("socks5h", [NO_AUTH, (18, b"\x05\x04" + DONE[2:])], HTTPConnectError, "unreachable"),
        ("socks5h", [NO_AUTH, (18, b"\x05\x05" + DONE[2:])], HTTPConnectError, "refused"),
        ("socks5h", [NO_AUTH, (18, b"\x05\x00\x00\x07" + bytes(9))], ProxyError, "not SOCKS"),
        ("socks5h", [NO_AUTH, (18, b"\x05\x00\x00\x03\x01\xff\0\0")], ProxyError, "not SOCKS"),
        ("socks5h", [NO_AUTH, (18, DONE + b"x")], ProxyError, "more than its answer"),
        ("socks4a", [(21, b"\x00\x5b" + bytes(6))], ProxyError, "refused, or failed"),
        ("socks4a", [(21, b"\x00\x5c" + bytes(6))], ProxyError, "identd"),
        ("socks4a", [(21, b"\x00\x00" + bytes(6))], ProxyError, "not SOCKS"),
        ("socks4a", [(21, b"\x05\x5a" + bytes(6))], ProxyError, "not SOCKS"),
        ("socks4a", [(21, b"")], ProxyError, "closed the connection instead"),
        ("socks4a", [(21, SOCKS4_DONE + b"x")], ProxyError, "more than its answer"),
    ],
)
def test_socks_refusals(
    serve: Serve, go: Any, nothing_left: Any, scheme: str, steps: Any, error: Any, message: str
):
    server = serve(FakeSocks(steps))
    with pytest.raises(error, match=message) as caught:
        go(proxied(server.port, scheme), "http://origin.test/")
    assert caught.value.phase == ("proxy" if error is ProxyError else "connect")
    server.close()
    nothing_left()


def test_socks_credentials_that_are_refused(serve: Serve, go: Any):
    server = serve(FakeSocks([(4, b"\x05\x02"), (9, b"\x01\x01")]))
    with pytest.raises(ProxyError, match="refuses the username or the password") as caught:
        go(proxied(server.port, "socks5", "u:geheim@"), "http://192.0.2.1/")
    assert "geheim" not in str(caught.value)


def test_a_server_that_has_no_address_here(serve: Serve, go: Any):
    server = serve(FakeSocks([NO_AUTH]))
    with pytest.raises(HTTPResolveError, match=r"origin\.test") as caught:
        go(proxied(server.port, "socks5"), resolver=Nowhere())
    assert caught.value.phase == "dns"
    assert server.connections == 0
    with pytest.raises(HTTPResolveError):
        go(proxied(server.port, "socks4"), "http://[::1]/", resolver=Nowhere())


def test_names_that_socks_has_no_room_for(serve: Serve, go: Any):
    server = serve(FakeSocks([NO_AUTH]))
    with pytest.raises(HTTPResolveError, match="too long"):
        go(proxied(server.port, "socks5h"), f"http://{'a' * 256}/")
    with pytest.raises(ProxyError, match="no IPv6"):
        go(proxied(server.port, "socks4a"), "http://[::1]/")
    assert server.connections == 0


def test_socks_needs_its_library(go: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "socksio", None)
    with pytest.raises(ImportError, match=r"pip install 'coro-loop\[socks\]'"):
        go("socks5://localhost:1")


# --- giving up -----------------------------------------------------------------------------

WAYS: dict[str, Any] = {
    "http": lambda ca, origin: FakeProxy(origin=origin),
    "https": lambda ca, origin: FakeProxy(tls=ca.server_context(), origin=origin),
    "digest": lambda ca, origin: FakeProxy(origin=origin, connects=[CHALLENGE % b"1", GRANTED]),
    "socks5": lambda ca, origin: FakeSocks([NO_AUTH, (10, DONE)], origin, pieces=True),
    "socks5h": lambda ca, origin: FakeSocks([NO_AUTH, (18, DONE)], origin, pieces=True),
    "socks4a": lambda ca, origin: FakeSocks([(21, SOCKS4_DONE)], origin, pieces=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_cancelled_at_every_turn(
    serve: Serve, go: Any, loop: IOLoop, ca: Authority, origin: Any, way: str
):
    before = count_fds()
    options: Any = {"resolver": Known()}
    scheme, credentials = way, ""
    if way == "digest":
        scheme, credentials, options["auth_mode"] = "http", "u:p@", "digest"
    for count in range(200):
        go.memory = DigestMemory()
        server = serve(WAYS[way](ca, origin))
        task = go.begin(proxied(server.port, scheme, credentials), **options)
        turns(loop, count)
        ended = task.done()
        task.cancel()
        for _ in range(20):
            turns(loop)
        if ended:
            task.result().close()
        else:
            with pytest.raises(CancelledError):
                task.result()
        server.close()
        for _ in range(5):
            turns(loop)
        assert count_fds() == before, count
        assert not loop._timers.next_deadline(), count
        if ended:
            return
    pytest.fail("it never ended")


def leaves_at_once(peer: Any) -> Any:
    yield peer.stream.read_bytes(1)


FAILURES: dict[str, Any] = {
    "refused": ("http", lambda: FakeProxy(connects=[CHALLENGE % b"1"])),
    "no http": ("http", lambda: FakeProxy(connects=[b"SSH\r\n"])),
    "gone": ("http", lambda: leaves_at_once),
    "no tls": ("https", lambda: leaves_at_once),
    "socks gone": ("socks5h", lambda: FakeSocks([NO_AUTH, (18, b"")])),
    "socks refused": ("socks5h", lambda: FakeSocks([NO_AUTH, (18, b"\x05\x05" + DONE[2:])])),
    "no socks": ("socks4a", lambda: FakeSocks([(21, b"HTTP/1.1")])),
}


@pytest.mark.parametrize("how", FAILURES)
def test_failures_leave_no_cycle(serve: Serve, go: Any, loop: IOLoop, no_collector: None, how: str):
    scheme, make = FAILURES[how]
    server = serve(make())
    url = proxied(server.port, scheme)
    for count in range(3):
        if count == 1:
            gc.collect()  # what the first one had to import, and caches
        with contextlib.suppress(ProxyError, HTTPConnectError):
            go(url)
        go.passage = None
        server.close()
        for _ in range(20):
            turns(loop)
        server = serve(make())
        url = proxied(server.port, scheme)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    left = [each for each in gc.garbage if not isinstance(each, ssl.SSLContext)]
    gc.garbage.clear()
    assert left == []
