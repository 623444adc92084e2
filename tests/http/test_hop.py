"""What goes along with a fetch for its user's sake, seen by servers, proxies and the caller."""

from __future__ import annotations

import functools
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coro.errors import (
    ConnectTimeoutError,
    HTTPError,
    HTTPTLSError,
    ProxyError,
)
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient
from coro.http.auth import Basic, Bearer, Digest
from coro.http.cookies import CookieJar
from coro.http.hop import Hop
from coro.http.proxy import Proxy
from coro.loop import IOLoop
from coro.resolver import Resolver
from tests.http.proxies import GRANTED, FakeProxy, FakeSocks, proxied
from tests.http.serving import LoopServer, body_of, fields_of, redirect, response
from tests.support.authority import Authority
from tests.support.leaks import count_fds

Serve = Callable[[Any], LoopServer]
URL = "http://origin.test/page?x=1"
TLS_URL = "https://origin.test/page?x=1"


@pytest.fixture
def origin(ca: Authority) -> ssl.SSLContext:
    """The server's side of TLS for origin.test."""
    return ca.server_context("origin.test", "other.test")


# --- credentials for servers ---------------------------------------------------------------


def test_basic_and_bearer(fetch: Any, answering: Any):
    server = answering(response())
    fetch(server.url(), auth=("u", "pä"))
    fetch(server.url(), auth=Basic("u", "pä"))
    fetch(server.url(), auth_username="u", auth_password="pä")
    fetch(server.url().replace("//", "//u:p%C3%A4@"))
    fetch(server.url(), auth=Bearer("tok"))
    values = [fields_of(request)["Authorization"] for request in server.requests]
    assert values == ["Basic dTpww6Q="] * 4 + ["Bearer tok"]


@pytest.mark.parametrize(
    "options",
    [
        {"auth": ("u\r\n", "p")},
        {"auth": ("u:v", "p")},
        {"auth_username": "u", "auth_password": "p\0"},
        {"auth_username": "u", "auth_mode": "ntlm"},
    ],
)
def test_credentials_that_cannot_be_sent(fetch: Any, answering: Any, options: Any):
    server = answering(response())
    with pytest.raises(ValueError, match=r"control|colon|auth_mode"):
        fetch(server.url(), **options)
    assert server.connections == 0


def test_credentials_that_are_none(fetch: Any, answering: Any):
    with pytest.raises(TypeError, match="auth is a Basic"):
        fetch(answering(response()).url(), auth="u:p")


def test_netrc(fetch: Any, answering: Any, tmp_path: Path):
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login u password p\n")
    server = answering(redirect("http://localhost:1/"), response())
    other = answering(response())
    server.answers[0] = redirect(other.url())
    fetch(server.url(), netrc=file)
    assert fields_of(server.requests[0])["Authorization"] == "Basic dTpw"
    # Another port of the same host is another origin.
    assert "Authorization" not in fields_of(other.requests[0])
    server.answers[:] = [response()]
    fetch(server.url(), netrc=False)
    assert "Authorization" not in fields_of(server.requests[-1])


def challenge(nonce: str, *fields: str) -> bytes:
    field = f'WWW-Authenticate: Digest realm="r", nonce="{nonce}", qop="auth", algorithm=SHA-256'
    return response(b"no", field, *fields, status="401 Unauthorized")


def nonces(requests: list[bytes]) -> list[str | None]:
    """Return nonce and count of each request."""
    found = [re.search(rb'nonce="(\w+)".*nc=0*(\d+)', request) for request in requests]
    return [f"{m[1].decode()} {m[2].decode()}" if m else None for m in found]


@pytest.mark.parametrize(
    "options",
    [
        {"auth": Digest("u", "p")},
        {"auth_username": "u", "auth_password": "p", "auth_mode": "digest"},
    ],
)
def test_digest(fetch: Any, answering: Any, options: Any):
    server = answering(challenge("a"), response())
    pieces: list[bytes] = []
    got = fetch(server.url("/x?y"), streaming_callback=pieces.append, **options)
    assert (got.code, b"".join(pieces)) == (200, b"hello")
    assert nonces(server.requests) == [None, "a 1"]
    assert 'uri="/x?y"' in fields_of(server.requests[1])["Authorization"]
    assert server.connections == 1
    fetch(server.url(), **options)
    assert nonces(server.requests[2:]) == ["a 2"]


def test_digest_with_a_body(fetch: Any, answering: Any):
    server = answering(challenge("a"), response())
    fetch(server.url(), method="POST", body=b"data", auth=Digest("u", "p"))
    assert [body_of(request) for request in server.requests] == [b"data", b"data"]


def test_a_body_that_cannot_be_repeated(fetch: Any, answering: Any):
    server = answering(challenge("a"), response())

    @coroutine
    def produce(write: Any) -> Any:
        yield write(b"data")

    request = {"method": "POST", "headers": {"Content-Length": "4"}, "body_producer": produce}
    got = fetch(server.url(), raise_error=False, auth=Digest("u", "p"), **request)
    assert (got.code, got.body) == (401, b"no")
    assert len(server.requests) == 1


def test_digest_is_answered_once(fetch: Any, answering: Any):
    server = answering(challenge("a"), challenge("b"), response())
    with pytest.raises(HTTPError) as caught:
        fetch(server.url(), auth=Digest("u", "wrong"))
    assert caught.value.code == 401
    assert caught.value.response.body == b"no"
    assert nonces(server.requests) == [None, "a 1"]


def test_a_nonce_that_has_become_stale(fetch: Any, answering: Any):
    server = answering(challenge("a"), response(), challenge("b"), response())
    for _ in range(2):
        assert fetch(server.url(), auth=Digest("u", "p")).code == 200
    assert nonces(server.requests) == [None, "a 1", "a 2", "b 1"]


def test_the_next_nonce(fetch: Any, answering: Any):
    info = 'Authentication-Info: nextnonce="b"'
    server = answering(challenge("a"), response(b"x", info), response())
    for _ in range(2):
        fetch(server.url(), auth=Digest("u", "p"))
    assert nonces(server.requests) == [None, "a 1", "b 1"]


@pytest.mark.parametrize("what", ["Basic realm=x", "Digest realm=x", ""])
def test_what_digest_cannot_answer(fetch: Any, answering: Any, what: str):
    server = answering(response(b"no", f"WWW-Authenticate: {what}", status="401 Unauthorized"))
    got = fetch(server.url(), raise_error=False, auth=Digest("u", "p"))
    assert (got.code, got.body, len(server.requests)) == (401, b"no", 1)


def test_digest_goes_to_no_other_origin(fetch: Any, answering: Any):
    other = answering(challenge("b"))
    server = answering(challenge("a"), redirect(other.url()))
    got = fetch(server.url(), raise_error=False, auth=Digest("u", "p"))
    assert got.code == 401
    assert nonces(server.requests) == [None, "a 1"]
    assert nonces(other.requests) == [None]
    assert all(b"Authorization" not in request for request in other.requests)


def test_digest_on_the_way_of_a_redirect(fetch: Any, answering: Any):
    server = answering(challenge("a"), redirect("/there"), response())
    assert fetch(server.url(), auth=Digest("u", "p"), max_redirects=1).code == 200
    assert nonces(server.requests) == [None, "a 1", "a 2"]
    assert 'uri="/there"' in fields_of(server.requests[2])["Authorization"]


# --- cookies -------------------------------------------------------------------------------


def test_cookies(fetch: Any, answering: Any):
    jar = CookieJar()
    server = answering(response(b"", "Set-Cookie: a=1", "Set-Cookie: b=2; Path=/x"), response())
    fetch(server.url(), cookie_jar=jar)
    fetch(server.url(), cookie_jar=jar)
    fetch(server.url("/x"), cookie_jar=jar)
    fetch(server.url("/x"))
    got = [fields_of(request).get("Cookie") for request in server.requests]
    assert got == [None, "a=1", "b=2; a=1", None]


def test_cookies_of_redirects_and_refusals(fetch: Any, answering: Any):
    jar = CookieJar()
    other = answering(response())
    server = answering(
        challenge("a", "Set-Cookie: s=0; Path=/"),
        redirect("/there").replace(b"\r\n", b"\r\nSet-Cookie: s=1; Path=/\r\n", 1),
        redirect(other.url().replace("127.0.0.1", "localhost")),
    )
    resolver = Here()
    client = AsyncHTTPClient(force_instance=True, resolver=resolver)
    loop = client.io_loop
    loop.run_sync(
        functools.partial(client.fetch, server.url(), cookie_jar=jar, auth=Digest("u", "p"))
    )
    client.close()
    got = [fields_of(request).get("Cookie") for request in server.requests]
    assert got == [None, "s=0", "s=1"]
    assert "Cookie" not in fields_of(other.requests[0])


class Here(Resolver):
    """Every host is this machine."""

    @coroutine
    def resolve(self, host: str, port: int, family: int = 0) -> Any:
        return [(2, ("127.0.0.1", port))]
        yield


def test_a_cookie_of_the_request_s_own(fetch: Any, answering: Any):
    jar = CookieJar()
    server = answering(response(b"", "Set-Cookie: a=1"), response())
    fetch(server.url(), cookie_jar=jar)
    fetch(server.url(), cookie_jar=jar, headers={"Cookie": "mine=1"})
    assert fields_of(server.requests[1])["Cookie"] == "mine=1"


def test_a_client_s_jar(loop: IOLoop, answering: Any):
    client = AsyncHTTPClient(force_instance=True, defaults={"cookie_jar": CookieJar()})
    server = answering(response(b"", "Set-Cookie: a=1"), response())
    for _ in range(2):
        loop.run_sync(functools.partial(client.fetch, server.url()))
    client.close()
    assert fields_of(server.requests[1])["Cookie"] == "a=1"


# --- proxies that take requests ------------------------------------------------------------


def test_an_absolute_url(serve: Serve, fetch: Any):
    proxy = FakeProxy()
    server = serve(proxy)
    got = fetch(URL, proxy=proxied(server.port, credentials="u:p@"))
    assert (got.body, got.effective_url) == (b"hello", URL)
    (request,) = proxy.requests
    assert request.startswith(b"GET http://origin.test/page?x=1 HTTP/1.1\r\nHost: origin.test\r\n")
    assert fields_of(request)["Proxy-Authorization"] == "Basic dTpw"


def test_the_lineage_s_names(serve: Serve, fetch: Any):
    proxy = FakeProxy()
    server = serve(proxy)
    options = {"proxy_host": "127.0.0.1", "proxy_port": server.port}
    fetch(URL, **options, proxy_username="u", proxy_password="p")
    assert fields_of(proxy.requests[0])["Proxy-Authorization"] == "Basic dTpw"


def test_the_environment(serve: Serve, fetch: Any, answering: Any, monkeypatch: Any):
    proxy = FakeProxy()
    port = serve(proxy).port
    monkeypatch.setenv("http_proxy", proxied(port))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(URL, trust_env=True)
    direct = answering(response())
    fetch(direct.url(), trust_env=True)
    monkeypatch.delenv("no_proxy")
    fetch(direct.url())
    assert (len(proxy.requests), len(direct.requests)) == (1, 2)


def test_connections_are_kept_by_proxy_and_credentials(serve: Serve, fetch: Any):
    proxy = FakeProxy()
    server = serve(proxy)
    plain = proxied(server.port)
    for url in (plain, plain, proxied(server.port, credentials="u@"), plain):
        fetch(URL, proxy=url)
    fetch(server.url())
    # Directly, by the proxy, and by it under a name.
    assert server.connections == 3


def test_a_refusal(serve: Serve, fetch: Any, client: AsyncHTTPClient):
    refused = response(b"go away", "X-Why: x", status="407 Proxy Authentication Required")
    server = serve(FakeProxy(answers=[refused]))
    url = proxied(server.port, credentials="u:geheim@")
    with pytest.raises(ProxyError, match="407 Proxy Authentication Required") as caught:
        fetch(URL, proxy=url)
    error = caught.value
    assert (error.code, error.status, error.headers["X-Why"]) == (599, 407, "x")
    assert error.phase == "proxy"
    assert error.attempts == 1
    assert "geheim" not in f"{error!r} {error}"
    got = fetch(URL, proxy=url, raise_error=False)
    assert isinstance(got.error, ProxyError)
    # Its response was whole, and so the connection serves again.
    assert (client.statistics()["active"], server.connections) == (0, 1)


def test_a_407_of_a_server_is_an_ordinary_response(fetch: Any, answering: Any):
    server = answering(response(b"x", status="407 Odd"))
    assert fetch(server.url(), raise_error=False, auth=("u", "p")).code == 407


PROXY_CHALLENGE = response(
    b"", 'Proxy-Authenticate: Digest realm="p", nonce="a", qop="auth"', status="407 Who"
)


def test_a_proxy_s_digest(serve: Serve, fetch: Any):
    proxy = FakeProxy(answers=[PROXY_CHALLENGE, response()])
    url = proxied(serve(proxy).port, credentials="u:p@")
    assert fetch(URL, proxy=url, proxy_auth_mode="digest").body == b"hello"
    assert nonces(proxy.requests) == [None, "a 1"]
    assert f'uri="{URL}"' in fields_of(proxy.requests[1])["Proxy-Authorization"]


def test_digest_of_both(serve: Serve, fetch: Any):
    proxy = FakeProxy(answers=[PROXY_CHALLENGE, challenge("b"), response()])
    url = proxied(serve(proxy).port, credentials="u:p@")
    got = fetch(URL, proxy=url, proxy_auth_mode="digest", auth=Digest("me", "mine"))
    assert got.body == b"hello"
    last = fields_of(proxy.requests[-1])
    assert 'username="me"' in last["Authorization"]
    assert 'username="u"' in last["Proxy-Authorization"]


# --- tunnels -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_tunnel(serve: Serve, fetch: Any, ca: Authority, origin: Any, kind: str):
    proxy = FakeProxy(tls=ca.server_context() if kind == "https" else None, origin=origin)
    server = serve(proxy)
    options = {
        "proxy": proxied(server.port, kind, "u:p@"),
        "proxy_ssl_options": ca.client_context(),
        "ca_certs": str(ca.pem),
    }
    for _ in range(2):
        got = fetch(TLS_URL, **options)
        assert got.body == b"hello"
    assert server.connections == 1
    (asked,), request = proxy.asked, proxy.requests[0]
    assert asked.startswith(b"CONNECT origin.test:443 ")
    assert fields_of(asked)["Proxy-Authorization"] == "Basic dTpw"
    assert request.startswith(b"GET /page?x=1 HTTP/1.1\r\nHost: origin.test\r\n")
    assert "Proxy-Authorization" not in fields_of(request)


def test_tls_options_of_the_proxy_tell_connections_apart(
    serve: Serve, fetch: Any, ca: Authority, origin: Any
):
    proxy = FakeProxy(tls=ca.server_context())
    server = serve(proxy)
    one = {"ca_certs": str(ca.pem), "alpn_protocols": ["http/1.1"]}
    for options in (one, dict(one), {**one, "alpn_protocols": []}, ca.client_context(), one):
        fetch(URL, proxy=proxied(server.port, "https"), proxy_ssl_options=options)
    assert server.connections == 3


def test_a_field_for_the_proxy_does_not_reach_the_server(
    serve: Serve, fetch: Any, ca: Authority, origin: Any
):
    proxy = FakeProxy(origin=origin)
    url = proxied(serve(proxy).port)
    mine = {"Proxy-Authorization": "Mine x"}
    fetch(TLS_URL, proxy=url, headers=mine, ca_certs=str(ca.pem))
    assert fields_of(proxy.asked[0])["Proxy-Authorization"] == "Mine x"
    assert "Proxy-Authorization" not in fields_of(proxy.requests[0])
    # A tunnel that was dug with other credentials is another tunnel.
    fetch(TLS_URL, proxy=url, ca_certs=str(ca.pem))
    assert "Proxy-Authorization" not in fields_of(proxy.asked[1])
    fetch(URL, proxy=url, headers=mine)
    assert fields_of(proxy.requests[-1])["Proxy-Authorization"] == "Mine x"


def test_a_field_for_a_proxy_that_is_not_used(fetch: Any, answering: Any, monkeypatch: Any):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "*")
    server = answering(response())
    fetch(server.url(), trust_env=True, headers={"Proxy-Authorization": "Mine x"})
    assert "Proxy-Authorization" not in fields_of(server.requests[0])


def test_a_field_that_socks_has_no_room_for(fetch: Any):
    with pytest.raises(ValueError, match="SOCKS proxy takes no"):
        fetch(URL, proxy="socks5h://127.0.0.1:1", headers={"Proxy-Authorization": "x"})


def test_a_redirect_to_another_proxy(
    serve: Serve, fetch: Any, ca: Authority, origin: Any, monkeypatch: Any
):
    """The environment has one for each scheme, and each has its own credentials, or none."""
    plain, tls = FakeProxy(answers=[redirect(TLS_URL)]), FakeProxy(origin=origin)
    monkeypatch.setenv("http_proxy", proxied(serve(plain).port, credentials="u:p@"))
    monkeypatch.setenv("https_proxy", proxied(serve(tls).port))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    got = fetch(URL, trust_env=True, ca_certs=str(ca.pem))
    assert got.body == b"hello"
    assert fields_of(plain.requests[0])["Proxy-Authorization"] == "Basic dTpw"
    for request in (*tls.asked, *tls.requests):
        assert "Proxy-Authorization" not in fields_of(request)


def test_proxy_tls_is_not_the_server_s(serve: Serve, fetch: Any, ca: Authority, origin: Any):
    server = serve(FakeProxy(tls=ca.server_context(), origin=origin))
    url = proxied(server.port, "https")
    with pytest.raises(ProxyError, match="not trusted"):
        fetch(TLS_URL, proxy=url, ca_certs=str(ca.pem))
    with pytest.raises(HTTPTLSError, match=r"origin\.test:443 is not trusted"):
        fetch(TLS_URL, proxy=url, proxy_ssl_options={"ca_certs": str(ca.pem)})
    with pytest.raises(ProxyError, match="not trusted"):
        fetch(TLS_URL, proxy=url, validate_cert=False)


NO_AUTH = (3, b"\x05\x00")
DONE = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x12\x34"


@pytest.mark.parametrize(("scheme", "size"), [("socks5", 10), ("socks5h", 18)])
@pytest.mark.parametrize("url", [URL, TLS_URL])
def test_socks(
    serve: Serve, loop: IOLoop, ca: Authority, origin: Any, scheme: str, size: int, url: str
):
    proxy = FakeSocks([NO_AUTH, (size, DONE)], origin if url is TLS_URL else None)
    server = serve(proxy)
    client = AsyncHTTPClient(force_instance=True, resolver=Here())
    options: Any = {"proxy": proxied(server.port, scheme), "ca_certs": str(ca.pem)}
    for _ in range(2):
        got = loop.run_sync(functools.partial(client.fetch, url, **options))
        assert got.body == b"hello"
    client.close()
    assert server.connections == 1
    assert proxy.requests[0].startswith(b"GET /page?x=1 HTTP/1.1\r\nHost: origin.test\r\n")


# --- limits --------------------------------------------------------------------------------


def never(peer: Any) -> Any:
    yield from peer.silence()


def slowly(peer: Any) -> Any:
    yield from peer.request()
    for byte in GRANTED:
        yield sleep(1)
        yield peer.send(bytes([byte]))


@pytest.mark.parametrize("script", [never, slowly])
@pytest.mark.parametrize("scheme", ["http", "https", "socks5h", "socks4a"])
def test_the_connect_limit_holds_for_proxies(
    serve: Serve, fetch: Any, client: AsyncHTTPClient, loop: IOLoop, script: Any, scheme: str
):
    if script is slowly and scheme != "http":
        script = never
    before = count_fds()
    server = serve(script)
    began = loop.time()
    with pytest.raises(ConnectTimeoutError, match=f"by the proxy {scheme}://127") as caught:
        fetch(TLS_URL, proxy=proxied(server.port, scheme), connect_timeout=7, request_timeout=60)
    assert loop.time() - began == pytest.approx(7)
    assert caught.value.phase == "proxy"
    assert client.statistics()["active"] == 0
    server.close()
    loop.run_sync(lambda: sleep(1))
    assert count_fds() == before


def test_the_limit_of_the_head(serve: Serve, loop: IOLoop):
    client = AsyncHTTPClient(force_instance=True, max_header_size=1000)
    server = serve(FakeProxy(connects=[b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000 + b"\r\n\r\n"]))
    with pytest.raises(ProxyError, match="its answer to CONNECT is not HTTP"):
        loop.run_sync(functools.partial(client.fetch, TLS_URL, proxy=proxied(server.port)))
    client.close()


def test_times(serve: Serve, fetch: Any, ca: Authority, origin: Any):
    def script(peer: Any) -> Any:
        yield sleep(2)
        yield from proxy(peer)

    proxy = FakeProxy(origin=origin)
    server = serve(script)
    times = fetch(TLS_URL, proxy=proxied(server.port), ca_certs=str(ca.pem)).time_info
    assert times["connect"] == pytest.approx(2)
    assert times["total"] == pytest.approx(2)
    assert min(times.values()) >= 0


# --- the ordinary request ------------------------------------------------------------------


def test_an_ordinary_request_has_no_hop(fetch: Any, answering: Any, monkeypatch: Any):
    def fail(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Hop, "__init__", fail)
    assert fetch(answering(response()).url(), headers={"X": "y"}).code == 200


def test_a_proxy_object(serve: Serve, fetch: Any):
    proxy = FakeProxy()
    fetch(URL, proxy=Proxy("http", "127.0.0.1", serve(proxy).port, Basic("u", "p")))
    assert fields_of(proxy.requests[0])["Proxy-Authorization"] == "Basic dTpw"
