"""Fetches from a real nginx, plain and TLS."""

from __future__ import annotations

import functools
import re
import resource
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from coro.errors import (
    BodyTooLargeError,
    HTTPClosedError,
    HTTPError,
    HTTPTLSError,
    TotalTimeoutError,
)
from coro.gen import coroutine
from coro.http import AsyncHTTPClient, HTTPClient, HTTPResponse
from coro.loop import IOLoop
from tests.support.authority import Authority
from tests.support.hosting import new_loop
from tests.support.nginx import BIG_SIZE, SMALL, Nginx


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = new_loop()
    yield loop
    loop.close()
    IOLoop.clear_current()


@pytest.fixture
def client(loop: IOLoop, ca: Authority) -> Iterator[AsyncHTTPClient]:
    made = AsyncHTTPClient(force_instance=True, max_clients=50, defaults={"ca_certs": str(ca.pem)})
    yield made
    made.close()


@pytest.fixture
def fetch(loop: IOLoop, client: AsyncHTTPClient) -> Callable[..., HTTPResponse]:
    def run(*args: Any, **kwargs: Any) -> HTTPResponse:
        got: HTTPResponse = loop.run_sync(functools.partial(client.fetch, *args, **kwargs))
        return got

    return run


both = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@both
def test_methods(fetch: Any, nginx: Nginx, tls: bool) -> None:
    for method in ("GET", "OPTIONS", "DELETE"):
        got = fetch(nginx.url("/method", tls=tls), method=method)
        assert got.body.decode() == f"{method}\n"
    for method in ("POST", "PUT", "PATCH"):
        got = fetch(nginx.url("/method", tls=tls), method=method, body=b"x" * 1000)
        assert got.body.decode() == f"{method}\n"
    got = fetch(nginx.url(tls=tls), method="HEAD", decompress_response=False)
    assert (got.headers["Content-Length"], got.body) == (str(len(SMALL)), b"")


@both
def test_one_connection_for_a_thousand_fetches(
    loop: IOLoop, client: AsyncHTTPClient, nginx: Nginx, tls: bool
) -> None:
    # nginx may write of the requests of another test later than that has ended.
    path = f"/1k.txt?{uuid4()}"
    url = nginx.url(path, tls=tls)

    @coroutine
    def main() -> Any:
        for _ in range(1000):
            got = yield client.fetch(url)
            assert got.body == SMALL

    loop.run_sync(main)
    lines = [line.split() for line in nginx.access_log.read_text().splitlines()]
    numbers = {line[0] for line in lines if line[2:3] == [path]}
    assert len(numbers) == 1
    assert client.statistics()["opened"] == 1


@both
def test_fifty_at_once(loop: IOLoop, client: AsyncHTTPClient, nginx: Nginx, tls: bool) -> None:
    got: Any = loop.run_sync(lambda: [client.fetch(nginx.url(tls=tls)) for _ in range(500)])
    assert [each.body for each in got] == [SMALL] * 500
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 50, "opened": 50}


@both
def test_a_large_file(fetch: Any, nginx: Nginx, tls: bool) -> None:
    """Taken piece by piece: what the process occupies does not grow with it."""
    size = 0

    def take(piece: bytes) -> None:
        nonlocal size
        size += len(piece)

    fetch(nginx.url(tls=tls), streaming_callback=take)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 0
    got = fetch(nginx.url("/big.bin", tls=tls), streaming_callback=take, request_timeout=None)
    assert (got.code, size) == (200, BIG_SIZE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_000  # KB


@both
def test_a_large_file_at_once(fetch: Any, nginx: Nginx, tls: bool) -> None:
    got = fetch(nginx.url("/big.bin", tls=tls), request_timeout=None)
    assert got.body == (nginx.root / "big.bin").read_bytes()


def test_a_file_that_is_too_large(loop: IOLoop, nginx: Nginx) -> None:
    client = AsyncHTTPClient(force_instance=True, max_body_size=BIG_SIZE - 1)
    with pytest.raises(BodyTooLargeError):
        loop.run_sync(functools.partial(client.fetch, nginx.url("/big.bin")))
    client.close()


@both
def test_compression(fetch: Any, nginx: Nginx, tls: bool) -> None:
    page = (nginx.root / "page.html").read_bytes()
    got = fetch(nginx.url("/page.html", tls=tls))
    assert got.body == page
    assert got.headers["X-Consumed-Content-Encoding"] == "gzip"
    got = fetch(nginx.url("/page.html", tls=tls), decompress_response=False)
    assert got.body == page
    assert "X-Consumed-Content-Encoding" not in got.headers


@both
def test_a_redirect(fetch: Any, client: AsyncHTTPClient, nginx: Nginx, tls: bool) -> None:
    got = fetch(nginx.url("/moved", tls=tls))
    assert got.body == SMALL
    assert got.effective_url == nginx.url("/1k.txt", tls=tls)
    assert client.statistics()["opened"] == 1
    with pytest.raises(HTTPError, match="302"):
        fetch(nginx.url("/moved", tls=tls), follow_redirects=False)


def test_not_found(fetch: Any, nginx: Nginx) -> None:
    with pytest.raises(HTTPError, match="404: Not Found") as info:
        fetch(nginx.url("/no/such/file"))
    assert b"nginx" in info.value.response.body


def test_not_modified(fetch: Any, nginx: Nginx) -> None:
    seen = fetch(nginx.url()).headers["Last-Modified"]
    got = fetch(nginx.url(), headers={"If-Modified-Since": seen}, raise_error=False)
    assert (got.code, got.body) == (304, b"")


def test_what_nginx_refuses(fetch: Any, nginx: Nginx) -> None:
    """A plain request on the TLS port, and a field that is too long: both end the connection."""
    got = fetch(f"http://127.0.0.1:{nginx.tls_port}/", raise_error=False)
    assert got.code == 400
    got = fetch(nginx.url(), headers={"X-Long": "x" * 40_000}, raise_error=False)
    assert got.code == 400 or isinstance(got.error, HTTPClosedError)


def test_its_certificate(loop: IOLoop, nginx: Nginx, ca: Authority) -> None:
    client = AsyncHTTPClient(force_instance=True)
    with pytest.raises(HTTPTLSError, match="is not trusted"):
        loop.run_sync(functools.partial(client.fetch, nginx.url(tls=True)))
    got = loop.run_sync(
        functools.partial(client.fetch, nginx.url(tls=True), ssl_options=ca.client_context())
    )
    assert got.body == SMALL
    client.close()


def test_a_slow_body(fetch: Any, nginx: Nginx) -> None:
    """A hundred bytes a second: never silent for long, but not done in time either."""
    taken: list[bytes] = []
    with pytest.raises(TotalTimeoutError, match="Timeout during request"):
        fetch(
            nginx.url("/drip/1k.txt"),
            request_timeout=0.3,
            inactivity_timeout=5,
            decompress_response=False,
            streaming_callback=taken.append,
        )
    assert len(b"".join(taken)) < len(SMALL)


def test_the_blocking_client(nginx: Nginx, ca: Authority) -> None:
    with HTTPClient() as client:
        got = client.fetch(nginx.url(tls=True), ca_certs=str(ca.pem))
        assert got.body == SMALL
        assert re.match("nginx", got.headers["Server"])
