"""Fetches through proxies that nobody here wrote: squid, microsocks."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro.errors import HTTPConnectError, ProxyError
from coro.gen import coroutine
from coro.http import AsyncHTTPClient
from coro.loop import IOLoop
from coro.resolver import OverrideResolver, ThreadedResolver
from tests.support.authority import Authority
from tests.support.command import run
from tests.support.hosting import new_loop
from tests.support.needs import needs_command
from tests.support.nginx import BIG_SIZE, SMALL, Nginx
from tests.support.proxies import PASSWORD, USER, Squid, running_socks, running_squid

QUOTED = "squidward:clarinet%20%c3%a4@"


@pytest.fixture(scope="module")
def squid(ca: Authority) -> Iterator[Squid]:
    with running_squid(needs_command("squid", "apt-get install squid-openssl"), ca, "basic") as it:
        yield it


@pytest.fixture(scope="module")
def digest_squid(ca: Authority) -> Iterator[Squid]:
    with running_squid(needs_command("squid", "apt-get install squid-openssl"), ca, "digest") as it:
        yield it


@pytest.fixture(scope="module")
def socks() -> Iterator[int]:
    with running_socks(needs_command("microsocks", "apt-get install microsocks")) as port:
        yield port


@pytest.fixture(scope="module")
def guarded_socks() -> Iterator[int]:
    command = needs_command("microsocks", "apt-get install microsocks")
    with running_socks(command, "-u", USER, "-P", PASSWORD) as port:
        yield port


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = new_loop()
    yield loop
    loop.close()
    IOLoop.clear_current()


@pytest.fixture
def client(loop: IOLoop) -> Iterator[AsyncHTTPClient]:
    made = AsyncHTTPClient(force_instance=True)
    yield made
    made.close()


@pytest.fixture
def fetch(client: AsyncHTTPClient, ca: Authority) -> Callable[..., Any]:
    options = {"ca_certs": str(ca.pem), "proxy_ssl_options": {"ca_certs": str(ca.pem)}}
    return lambda url, **more: client.io_loop.run_sync(
        functools.partial(client.fetch, url, **{**options, **more})
    )


def logged(squid: Squid) -> list[list[str]]:
    entries = [line.split() for line in squid.access_log.read_text().splitlines()]
    return [entry for entry in entries if entry[1] != "-"]  # a connection without a request


@pytest.mark.parametrize("proxy_tls", [False, True], ids=["http proxy", "https proxy"])
@pytest.mark.parametrize("tls", [False, True], ids=["http origin", "https origin"])
def test_four_ways(
    fetch: Any, client: AsyncHTTPClient, nginx: Nginx, squid: Squid, tls: bool, proxy_tls: bool
) -> None:
    port = squid.tls_port if proxy_tls else squid.port
    proxy = f"http{'s' if proxy_tls else ''}://localhost:{port}"
    url = nginx.url(tls=tls)
    before = len(logged(squid))
    for _ in range(3):
        got = fetch(url, proxy=proxy)
        assert (got.code, got.body, got.effective_url) == (200, SMALL, url)
    assert client.statistics()["opened"] == 1
    fetch(nginx.url("/method", tls=tls), proxy=proxy, method="POST", body=b"x" * 100_000)
    client.close()
    # A tunnel is told when it ends.
    told = _wait(lambda: logged(squid)[before:], 1 if tls else 4)
    assert {entry[0] for entry in told} == {str(port)}
    assert told[0][1] == ("CONNECT" if tls else "GET")


def _wait(look: Callable[[], list[Any]], count: int) -> list[Any]:
    """Look until there is so much to be seen; the test's own limit ends that."""
    while len(seen := look()) < count:
        pass
    return seen


@pytest.mark.parametrize("way", ["http", "https", "socks5h"])
def test_fifty_megabytes(fetch: Any, nginx: Nginx, squid: Squid, socks: int, way: str) -> None:
    port = {"http": squid.port, "https": squid.tls_port, "socks5h": socks}[way]
    size = 0

    def take(piece: bytes) -> None:
        nonlocal size
        size += len(piece)

    fetch(
        nginx.url("/big.bin", tls=True),
        proxy=f"{way}://localhost:{port}",
        streaming_callback=take,
        request_timeout=50,
    )
    assert size == BIG_SIZE


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_basic(fetch: Any, nginx: Nginx, squid: Squid, tls: bool) -> None:
    url = nginx.url(tls=tls)
    assert fetch(url, proxy=f"http://{QUOTED}localhost:{squid.guarded}").body == SMALL
    names = {
        "proxy_host": "localhost",
        "proxy_port": squid.guarded,
        "proxy_username": USER,
    }
    assert fetch(url, **names, proxy_password=PASSWORD).body == SMALL
    for wrong in ({**names, "proxy_password": "x"}, {"proxy": f"localhost:{squid.guarded}"}):
        with pytest.raises(ProxyError) as caught:
            fetch(url, **wrong)
        assert caught.value.status == 407
        assert "Basic" in caught.value.headers["Proxy-Authenticate"]


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_digest(fetch: Any, nginx: Nginx, digest_squid: Squid, tls: bool) -> None:
    """Its nonces last for three requests each."""
    url = nginx.url(tls=tls)
    close = {"Connection": "close"}  # so that each needs a tunnel of its own
    proxy = f"http://{QUOTED}localhost:{digest_squid.guarded}"
    for _ in range(8):
        assert fetch(url, proxy=proxy, proxy_auth_mode="digest", headers=close).body == SMALL
    with pytest.raises(ProxyError) as caught:
        fetch(url, proxy=proxy.replace("clarinet", "x"), proxy_auth_mode="digest")
    assert caught.value.status == 407


def test_a_server_that_refuses(fetch: Any, squid: Squid, socks: int, refused_port: int) -> None:
    url = f"https://127.0.0.1:{refused_port}/"
    with pytest.raises(ProxyError, match="will not connect") as caught:
        fetch(url, proxy=f"http://localhost:{squid.port}")
    assert caught.value.status == 503
    assert "X-Squid-Error" in caught.value.headers
    with pytest.raises(HTTPConnectError, match=r"refused|unreachable"):
        fetch(url, proxy=f"socks5://localhost:{socks}")


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_socks(fetch: Any, client: AsyncHTTPClient, nginx: Nginx, socks: int, scheme, tls) -> None:
    for _ in range(3):
        got = fetch(nginx.url(tls=tls), proxy=f"{scheme}://localhost:{socks}")
        assert got.body == SMALL
    assert client.statistics()["opened"] == 1


def test_who_looks_hosts_up(loop: IOLoop, nginx: Nginx, socks: int, ca: Authority) -> None:
    """A name that only this side knows can be reached by socks5, and not by socks5h."""
    resolver = OverrideResolver(ThreadedResolver(), {"only-here.test": "127.0.0.1"})
    client = AsyncHTTPClient(force_instance=True, resolver=resolver)
    url = f"http://only-here.test:{nginx.port}/1k.txt"

    @coroutine
    def both() -> Any:
        got = yield client.fetch(url, proxy=f"socks5://127.0.0.1:{socks}")
        assert got.body == SMALL
        with pytest.raises((ProxyError, HTTPConnectError)):
            yield client.fetch(url, proxy=f"socks5h://127.0.0.1:{socks}")

    loop.run_sync(both)
    client.close()


def test_socks_credentials(fetch: Any, nginx: Nginx, guarded_socks: int) -> None:
    url = nginx.url(tls=True)
    assert fetch(url, proxy=f"socks5h://{QUOTED}localhost:{guarded_socks}").body == SMALL
    with pytest.raises(ProxyError, match="refuses the username or the password"):
        fetch(url, proxy=f"socks5h://{USER}:x@localhost:{guarded_socks}")
    with pytest.raises(ProxyError, match="wants a username"):
        fetch(url, proxy=f"socks5h://localhost:{guarded_socks}")


def test_a_socks_proxy_that_is_none(fetch: Any, nginx: Nginx) -> None:
    with pytest.raises(ProxyError, match=r"not SOCKS|closed"):
        fetch("http://h/", proxy=f"socks5h://127.0.0.1:{nginx.port}")
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(TimeoutError, match="by the proxy"),
    ):
        proxy = f"socks5h://127.0.0.1:{silent.getsockname()[1]}"
        fetch("http://h/", proxy=proxy, connect_timeout=0.3)


# --- the command ---------------------------------------------------------------------------


def test_the_command(nginx: Nginx, squid: Squid, socks: int, ca: Authority) -> None:
    url = nginx.url(tls=True)
    for proxy in (
        f"{QUOTED}localhost:{squid.guarded}",
        f"https://localhost:{squid.tls_port}",
        f"socks5h://localhost:{socks}",
    ):
        ran = run("fetch", "--ca", ca.pem, "--proxy", proxy, url)
        assert (ran.status, ran.lines[0]["bytes"]) == (0, 1024), ran
    ran = run("fetch", "--ca", ca.pem, "--proxy", f"localhost:{squid.guarded}", url)
    assert (ran.status, ran.lines[0]["phase"]) == (1, "proxy")
    assert "407" in ran.stderr
    assert "clarinet" not in ran.stderr


def test_the_command_s_environment(nginx: Nginx, squid: Squid) -> None:
    before = len(logged(squid))
    proxy = {"http_proxy": f"http://localhost:{squid.port}"}
    assert run("fetch", nginx.url("/1k.txt?env"), env=proxy).status == 0
    assert len(logged(squid)) == before + 1
    assert run("fetch", nginx.url(), env=proxy | {"no_proxy": "127.0.0.1"}).status == 0
    assert run("fetch", "--proxy", "", nginx.url(), env=proxy).status == 0
    assert len(logged(squid)) == before + 1
