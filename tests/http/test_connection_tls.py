"""Connections with TLS: whom they trust, and which of them may be shared."""

from __future__ import annotations

import functools
import socket
import ssl
from typing import Any

import pytest

from coro.errors import (
    HTTPError,
    HTTPTLSError,
    IncompleteBodyError,
    TotalTimeoutError,
)
from coro.gen import coroutine, moment
from coro.http import AsyncHTTPClient
from coro.http.outgoing import tls_context
from coro.loop import IOLoop
from tests.conftest import RawServerFactory
from tests.http.serving import fields_of, response
from tests.support.authority import Authority
from tests.support.hosting import new_loop
from tests.support.leaks import count_fds
from tests.support.raw_server import read_request, stay_silent


@pytest.fixture
def real_loop() -> Any:
    """A loop in real time, for servers in threads."""
    loop = new_loop()
    yield loop
    loop.close()
    IOLoop.clear_current()


@pytest.fixture
def tls_client(real_loop: IOLoop) -> Any:
    client = AsyncHTTPClient(force_instance=True)
    yield client
    client.close()


def many(peer_response: bytes) -> Any:
    def script(conn: socket.socket) -> None:
        while True:
            read_request(conn)
            conn.sendall(peer_response)

    return script


def test_tls(
    real_loop: IOLoop, tls_client: Any, raw_server: RawServerFactory, ca: Authority
) -> None:
    server = raw_server(many(response()), tls=ca.server_context())
    for _ in range(3):
        got = real_loop.run_sync(lambda: tls_client.fetch(server.url(), ca_certs=str(ca.pem)))
        assert got.body == b"hello"
    assert server.connections == 1
    assert got.time_info["tls"] == 0


def test_the_time_of_the_handshake(
    real_loop: IOLoop, tls_client: Any, raw_server: RawServerFactory, ca: Authority
) -> None:
    server = raw_server(many(response()), tls=ca.server_context())
    got = real_loop.run_sync(lambda: tls_client.fetch(server.url(), ca_certs=str(ca.pem)))
    times = got.time_info
    assert times["tls"] > 0
    assert min(times.values()) >= 0
    assert sum(times.values()) - times["total"] <= times["total"]


def test_other_tls_options_other_connections(
    real_loop: IOLoop, tls_client: Any, raw_server: RawServerFactory, ca: Authority
) -> None:
    server = raw_server(many(response()), tls=ca.server_context())
    context = ca.client_context()
    own = ca.issue("client.example")
    options: list[dict[str, Any]] = [
        {"ca_certs": str(ca.pem)},
        {"validate_cert": False},
        {"ssl_options": context},
        {"ssl_options": ca.client_context()},
        {"ssl_options": {"ca_certs": str(ca.pem)}},
        {"ca_certs": str(ca.pem), "client_cert": str(own), "client_key": str(own)},
    ]
    for number, given in enumerate(options, 1):
        for _ in range(2):
            real_loop.run_sync(functools.partial(tls_client.fetch, server.url(), **given))
        assert server.connections == number, given


def test_a_host_that_is_to_be_found_elsewhere(
    real_loop: IOLoop, tls_client: Any, raw_server: RawServerFactory, ca: Authority
) -> None:
    """TLS and HTTP speak of the host that was asked for; two of them share no connection."""
    context = ca.server_context("one.test", "two.test")
    named = []
    heads = []
    context.sni_callback = lambda _conn, name, _context: named.append(name)

    def script(conn: socket.socket) -> None:
        while True:
            heads.append(read_request(conn))
            conn.sendall(response())

    server = raw_server(script, tls=context)
    for name in ("one.test", "two.test", "one.test"):
        url = f"https://{name}:{server.port}/"
        real_loop.run_sync(
            functools.partial(
                tls_client.fetch,
                url,
                ca_certs=str(ca.pem),
                overrides={"one.test": "127.0.0.1", "two.test": "127.0.0.1"},
            )
        )
    assert named == ["one.test", "two.test"]
    assert [fields_of(head)["Host"].partition(":")[0] for head in heads] == [*named, "one.test"]


def test_certificates_are_checked(
    real_loop: IOLoop, tls_client: Any, raw_server: RawServerFactory, ca: Authority
) -> None:
    trusted = raw_server(many(response()), tls=ca.server_context())
    misnamed = raw_server(many(response()), tls=ca.server_context("other.example"))
    for server, options, text in (
        (trusted, {}, "is not trusted"),
        (misnamed, {"ca_certs": str(ca.pem)}, "is not trusted"),
    ):
        with pytest.raises(HTTPTLSError, match=text) as info:
            real_loop.run_sync(functools.partial(tls_client.fetch, server.url(), **options))
        error = info.value
        assert isinstance(error, ssl.SSLError)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
        assert (error.code, error.phase, error.attempts) == (599, "tls", 0)
        assert error.safe_to_retry
        got = real_loop.run_sync(
            functools.partial(tls_client.fetch, server.url(), validate_cert=False)
        )
        assert got.code == 200


def test_no_tls_at_all(real_loop: IOLoop, tls_client: Any, raw_server: RawServerFactory) -> None:
    def script(conn: socket.socket) -> None:
        conn.recv(100)
        conn.sendall(response(status="400 Bad Request"))

    server = raw_server(script)
    url = server.url().replace("http:", "https:")
    with pytest.raises(HTTPTLSError, match=r"TLS with 127\.0\.0\.1:\d+ failed"):
        real_loop.run_sync(functools.partial(tls_client.fetch, url))


def test_a_handshake_cut_short(
    real_loop: IOLoop, tls_client: Any, raw_server: RawServerFactory
) -> None:
    server = raw_server(lambda conn: conn.recv(10))
    url = server.url().replace("http:", "https:")
    with pytest.raises(HTTPTLSError, match=r"TLS with 127\.0\.0\.1:\d+ failed"):
        real_loop.run_sync(functools.partial(tls_client.fetch, url))


def test_a_handshake_without_an_answer(fetch: Any, serve: Any, loop: IOLoop) -> None:
    server = serve(lambda peer: peer.silence())
    begun = loop.time()
    with pytest.raises(TimeoutError) as info:
        fetch(server.url().replace("http:", "https:"), connect_timeout=5)
    place = f"127.0.0.1:{server.port}"
    assert str(info.value) == f"Timeout during TLS handshake with {place}"
    assert info.value.phase == "tls"  # type: ignore[attr-defined]
    assert loop.time() - begun == pytest.approx(5)


def test_an_end_without_goodbye_is_no_end(
    real_loop: IOLoop, tls_client: Any, raw_server: RawServerFactory, ca: Authority
) -> None:
    """A body that ends with the connection: an attacker can end a TCP connection, not TLS."""
    data = b"HTTP/1.1 200 OK\r\n\r\nsome of it"

    def without(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(data)

    def with_goodbye(conn: Any) -> None:
        read_request(conn)
        conn.sendall(data)
        conn.unwrap()

    trust = str(ca.pem)
    server = raw_server(without, tls=ca.server_context())
    with pytest.raises(IncompleteBodyError) as info:
        real_loop.run_sync(lambda: tls_client.fetch(server.url(), ca_certs=trust))
    assert info.value.partial == b"some of it"
    server = raw_server(with_goodbye, tls=ca.server_context())
    got = real_loop.run_sync(lambda: tls_client.fetch(server.url(), ca_certs=trust))
    assert got.body == b"some of it"


def test_a_client_certificate(
    real_loop: IOLoop, tls_client: Any, raw_server: RawServerFactory, ca: Authority
) -> None:
    context = ca.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(str(ca.pem))
    server = raw_server(many(response()), tls=context)
    own = str(ca.issue("client.example"))
    got = real_loop.run_sync(
        lambda: tls_client.fetch(server.url(), ca_certs=str(ca.pem), client_cert=own)
    )
    assert got.code == 200
    with pytest.raises(HTTPError) as info:
        real_loop.run_sync(lambda: tls_client.fetch(server.url(), ca_certs=str(ca.pem)))
    assert info.value.code == 599


def test_from_https_to_http_no_secret_goes_along(
    real_loop: IOLoop, tls_client: Any, raw_server: RawServerFactory, ca: Authority
) -> None:
    seen = []

    def plain(conn: socket.socket) -> None:
        seen.append(read_request(conn))
        conn.sendall(response(b"arrived"))

    target = raw_server(plain)
    location = f"Location: {target.url('/x')}"
    moved = response(b"", location, status="307 Moved")
    server = raw_server(many(moved), tls=ca.server_context())
    got = real_loop.run_sync(
        lambda: tls_client.fetch(
            server.url(),
            ca_certs=str(ca.pem),
            headers={"Cookie": "secret"},
            auth_username="user",
            auth_password="secret",
        )
    )
    assert got.body == b"arrived"
    fields = fields_of(seen[0])
    assert not {"Cookie", "Authorization"} & fields.keys()


def test_silence_after_the_handshake(
    real_loop: IOLoop, tls_client: Any, raw_server: RawServerFactory, ca: Authority
) -> None:
    server = raw_server(stay_silent, tls=ca.server_context())
    with pytest.raises(TotalTimeoutError, match="Timeout during request"):
        real_loop.run_sync(
            lambda: tls_client.fetch(server.url(), ca_certs=str(ca.pem), request_timeout=0.2)
        )


def test_nobody_waits_for_a_goodbye(
    real_loop: IOLoop, raw_server: RawServerFactory, ca: Authority
) -> None:
    """The server never answers ``close_notify``; and to close takes no turn of the loop."""
    heard = []

    def script(conn: Any) -> None:
        read_request(conn)
        conn.sendall(response())
        heard.append(conn.recv(100))
        # Not unwrap(), which would answer.
        socket.socket.recv(conn, 100)

    server = raw_server(script, tls=ca.server_context())
    before = count_fds()
    client = AsyncHTTPClient(force_instance=True)
    real_loop.run_sync(lambda: client.fetch(server.url(), ca_certs=str(ca.pem)))
    (connection,) = client._pool._open
    client.close()
    assert connection.stream.socket.fileno() == -1
    server.settle()
    assert count_fds() == before
    assert heard == [b""], "it was told"
    assert server.hangups == []


def test_the_rest_of_a_large_body_is_not_waited_for(
    real_loop: IOLoop, raw_server: RawServerFactory, ca: Authority
) -> None:
    sent = 0

    def script(conn: socket.socket) -> None:
        nonlocal sent
        read_request(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            conn.sendall(bytes(100_000))
            sent += 100_000

    server = raw_server(script, tls=ca.server_context())
    client = AsyncHTTPClient(force_instance=True)

    @coroutine
    def main() -> Any:
        got: Any = yield client.fetch(server.url(), stream=True, ca_certs=str(ca.pem))
        with got:
            assert (yield got.read())
        yield moment

    before = count_fds()
    real_loop.run_sync(main)
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 1}
    server.settle()
    assert count_fds() == before
    assert len(server.hangups) == 1
    assert sent < 50_000_000
    client.close()


def test_one_context_for_all_who_ask_for_nothing_else(
    real_loop: IOLoop, raw_server: RawServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To load the system's certificates takes longer than all the rest of a client."""
    server = raw_server(many(response()))
    made: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(ssl, "create_default_context", lambda *_, **__: made.append("context"))
        for _ in range(3):
            client = AsyncHTTPClient(force_instance=True)
            assert real_loop.run_sync(functools.partial(client.fetch, server.url())).code == 200
            client.close()
    assert made == []
    first = tls_context({"validate_cert": True})
    assert tls_context({"validate_cert": True, "request_timeout": 1}) is first
