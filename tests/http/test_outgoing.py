"""What goes onto the wire for a request, and what decides which connection may carry it."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest

from coro.http.auth import Digest, DigestMemory
from coro.http.client import _DEFAULTS
from coro.http.headers import HTTPHeaders
from coro.http.hop import hop_for
from coro.http.messages import HTTPRequest
from coro.http.outgoing import (
    IDEMPOTENT,
    Outgoing,
    connection_key,
    encode,
    encode_usual,
    redirected,
    tls_context,
)
from coro.http.proxy import Proxy
from coro.http.urls import parse
from coro.resolver import OverrideResolver, Resolver
from tests.http.serving import body_of, fields_of
from tests.support.authority import Authority

URL = "http://example.com/x"


def out(url: str = URL, method: str = "GET", **options: Any) -> Outgoing:
    defaults = {**_DEFAULTS, **options.pop("defaults", {})}
    request = HTTPRequest(url, method, **options)
    given = request.with_defaults(defaults)
    hop = hop_for(parse(url), given, DigestMemory(), replayable=True)
    return encode(request, parse(url), given, hop)


def key(url: str, **options: Any) -> Any:
    given = HTTPRequest(url, **options).with_defaults(_DEFAULTS)
    target = parse(url)
    hop = hop_for(target, given, DigestMemory(), True)
    if hop is not None:
        hop.add_fields("GET", HTTPHeaders(options.get("headers") or {}))
    return connection_key(target, given, hop)


# --- encoding --------------------------------------------------------------------------------


def usual(url: str = URL, method: str = "GET", user_agent: str | None = "x") -> Any:
    return encode_usual(method, url, user_agent, True, True)


def test_equal_usual_requests_are_encoded_once() -> None:
    first = usual()
    assert usual() is first
    assert usual(method="HEAD") is not first
    assert usual(user_agent="y")[2].head != first[2].head


@pytest.mark.parametrize("url", [URL, "https://example.com:8443/a?b#c"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
def test_a_usual_request_is_what_it_is_by_the_long_way(url: str, method: str) -> None:
    target, its_key, made = usual(url, method)
    general = out(url, method, user_agent="x")
    assert (target, its_key) == (parse(url), key(url))
    for name in Outgoing.__slots__:
        assert getattr(made, name) == getattr(general, name)


@pytest.mark.parametrize(
    ("url", "method"), [("http://user@example.com/", "GET"), (URL, "POST"), (URL, "TRACE")]
)
def test_more_than_usual(url: str, method: str) -> None:
    assert usual(url, method) is None


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("POST", {"body": b"abc"}, ("3", None)),
        ("PUT", {"body": ""}, ("0", None)),
        ("POST", {"allow_nonstandard_methods": True}, ("0", None)),
        ("GET", {}, (None, None)),
        ("GET", {"body": b"x", "allow_nonstandard_methods": True}, ("1", None)),
        ("POST", {"body": b"x", "headers": {"Content-Length": "9"}}, ("1", None)),
        ("POST", {"body": b"x", "headers": {"Transfer-Encoding": "chunked"}}, ("1", None)),
        ("PUT", {"body_producer": print}, (None, "chunked")),
        ("PUT", {"body_producer": print, "headers": {"Content-Length": "9"}}, ("9", None)),
        ("PUT", {"body_producer": print, "headers": {"Transfer-Encoding": "x"}}, (None, "chunked")),
    ],
)
def test_framing(method: str, options: dict[str, Any], expected: tuple[Any, Any]) -> None:
    made = out(method=method, **options)
    fields = fields_of(made.head)
    assert (fields.get("Content-Length"), fields.get("Transfer-Encoding")) == expected
    body = options.get("body")
    assert body_of(made.head) == (body.encode() if isinstance(body, str) else body or b"")


@pytest.mark.parametrize(
    ("value", "closes"),
    [
        (None, False),
        ("close", True),
        ("Close", True),
        ("TE, close", True),
        ("close,TE", True),
        ("keep-alive", False),
        ("closed", False),
        ("not-close", False),
    ],
)
def test_the_last_request_of_a_connection(value: str | None, closes: bool) -> None:
    headers = {} if value is None else {"Connection": value}
    assert out(headers=headers).close is closes


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"])
def test_what_may_be_sent_again(method: str) -> None:
    """RFC 9110 section 9.2.2; a producer cannot be asked to begin anew."""
    assert method in IDEMPOTENT
    assert out(method=method, allow_nonstandard_methods=True).replayable
    assert not out(method=method, allow_nonstandard_methods=True, body_producer=print).replayable


@pytest.mark.parametrize("method", ["POST", "PATCH", "PURGE", "CONNECT"])
def test_what_may_not_be_sent_again(method: str) -> None:
    assert not out(method=method, body=b"x", allow_nonstandard_methods=True).replayable


def test_defaults_that_are_not_plain() -> None:
    made = out(defaults={"auth_username": "u", "auth_password": "p"})
    assert fields_of(made.head)["Authorization"] == "Basic dTpw"
    made = out(defaults={"user_agent": "mine", "decompress_response": False})
    assert fields_of(made.head) == {"Host": "example.com", "User-Agent": "mine"}


# --- redirected ------------------------------------------------------------------------------


def test_a_redirected_request_is_another_one() -> None:
    request = HTTPRequest(URL, "POST", {"Cookie": "c", "X": "1"}, b"x", auth_username="u")
    following = redirected(request, 302, "http://other.example/", False)
    assert (following.url, following.method, following.body) == (
        "http://other.example/",
        "GET",
        None,
    )
    assert dict(following.headers.get_all()) == {"X": "1"}
    assert (request.url, request.method, request.body) == (URL, "POST", b"x")
    assert dict(request.headers.get_all()) == {"Cookie": "c", "X": "1"}
    assert request.auth_username == "u"


PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")

# --- keys ------------------------------------------------------------------------------------


def test_equal_keys() -> None:
    assert key("http://a/x") == key("http://a:80/y?z", headers={"X": "1"}, request_timeout=1)
    assert key("https://a/x") == key("HTTPS://A:443/")
    assert key("http://u:p@a/") == key("http://a/")
    # TLS options say nothing about a connection without TLS.
    assert key("http://a/", validate_cert=False) == key("http://a/")
    options = {"ssl_options": {"ca_certs": "x", "ciphers": "y"}}
    turned = {"ssl_options": {"ciphers": "y", "ca_certs": "x"}}
    assert key("https://a/", **options) == key("https://a/", **turned)


def test_each_difference_makes_another_key() -> None:
    context = ssl.create_default_context()
    keys = [
        key("http://a/"),
        key("http://b/"),
        key("http://a:81/"),
        key("http://a/", network_interface="127.0.0.1"),
        key("http://a/", network_interface="127.0.0.2"),
        key("https://a/"),
        key("https://a/", network_interface="127.0.0.1"),
        key("https://a/", validate_cert=False),
        key("https://a/", ca_certs="x"),
        key("https://a/", ca_certs="y"),
        key("https://a/", client_cert="x"),
        key("https://a/", client_key="x"),
        key("https://a/", ssl_options=context),
        key("https://a/", ssl_options=ssl.create_default_context()),
        key("https://a/", ssl_options={"ca_certs": "x"}),
        key("https://a/", ssl_options={"alpn_protocols": ["http/1.1"]}),
        key("https://a/", ssl_options={"alpn_protocols": ["x"]}),
        *(key("http://a/", af=family) for family in (socket.AF_INET, socket.AF_INET6)),
        *(key("http://a/", unix_socket=path) for path in ("/run/a", "/run/b", "\0a")),
        key("https://a/", unix_socket="/run/a"),
        *(key("http://a/", resolver=OverrideResolver(Resolver(), {})) for _ in range(2)),
        *(key("http://a/", overrides={"a": where}) for where in ("127.0.0.1", "127.0.0.2")),
        key("http://a/", overrides={("a", 80): "127.0.0.1"}),
        *(key("http://a/", socket_options=[(1, 9, value)]) for value in (0, 1)),
        key("http://a/", socket_options=[[1, 9, 1], [1, 2, 1]]),
        *(key("http://a/", proxy=f"{scheme}://p:1") for scheme in PROXY_SCHEMES),
        *(key("https://a/", proxy=f"{scheme}://p:1") for scheme in PROXY_SCHEMES),
        key("http://b/", proxy="http://p:1"),
        key("http://a/", proxy="http://p:2"),
        key("http://a/", proxy="http://q:1"),
        key("http://a/", proxy="http://u@p:1"),
        key("http://a/", proxy="http://u:x@p:1"),
        key("http://a/", proxy=Proxy("http", "p", 1, Digest("u", "x"))),
        key("http://a/", proxy="socks5://u:x@p:1"),
        key("http://a/", proxy="https://p:1", proxy_ssl_options={"ca_certs": "x"}),
        key("http://a/", proxy="http://p:1", network_interface="127.0.0.1"),
        key("https://a/", proxy="http://p:1", validate_cert=False),
        *(
            key("https://a/", proxy="http://p:1", headers={"Proxy-Authorization": value})
            for value in ("Basic x", "Basic y")
        ),
    ]
    assert len(set(keys)) == len(keys)


# --- TLS contexts ----------------------------------------------------------------------------


def context_of(**options: Any) -> ssl.SSLContext:
    return tls_context(HTTPRequest("https://a/", **options).with_defaults(_DEFAULTS))


def test_contexts(ca: Authority) -> None:
    default = context_of()
    assert default.verify_mode is ssl.CERT_REQUIRED
    assert default.check_hostname
    assert context_of() is default, "made once: that takes milliseconds"
    trusting = context_of(validate_cert=False)
    assert trusting.verify_mode is ssl.CERT_NONE
    assert not trusting.check_hostname
    private = context_of(ca_certs=str(ca.pem))
    assert len(private.get_ca_certs()) == 1
    given = ssl.create_default_context()
    assert context_of(ssl_options=given) is given
    assert context_of(ssl_options={"cert_reqs": ssl.CERT_NONE}).verify_mode is ssl.CERT_NONE
