"""Which proxy a request goes through: URLs, options, the environment."""

from __future__ import annotations

import pytest

from coro.http.auth import Basic, Digest
from coro.http.proxy import Proxy, environment_proxy, parse_proxy, proxy_for
from coro.http.urls import parse

# --- URLs of proxies -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy.test:3128", Proxy("http", "proxy.test", 3128)),
        ("http://proxy.test:3128/", Proxy("http", "proxy.test", 3128)),
        ("proxy.test:3128", Proxy("http", "proxy.test", 3128)),
        ("proxy.test", Proxy("http", "proxy.test", 80)),
        ("HTTP://Proxy.Test", Proxy("http", "proxy.test", 80)),
        ("https://proxy.test", Proxy("https", "proxy.test", 443)),
        ("https://proxy.test:80", Proxy("https", "proxy.test", 80)),
        ("https://proxy.test:443", Proxy("https", "proxy.test", 443)),
        ("socks5://proxy.test", Proxy("socks5", "proxy.test", 1080)),
        ("socks5h://proxy.test:80", Proxy("socks5h", "proxy.test", 80)),
        ("socks5h://proxy.test:443", Proxy("socks5h", "proxy.test", 443)),
        ("socks4a://[::1]:9050", Proxy("socks4a", "::1", 9050)),
        ("socks5://pröxy.test", Proxy("socks5", "xn--prxy-6qa.test", 1080)),
        ("http://u:p@h:1", Proxy("http", "h", 1, Basic("u", "p"))),
        ("http://u@h:1", Proxy("http", "h", 1, Basic("u", ""))),
        ("u:p@h:1", Proxy("http", "h", 1, Basic("u", "p"))),
        ("http://a%40b:p%3a%2f%C3%A4@h:1", Proxy("http", "h", 1, Basic("a@b", "p:/ä"))),
        ("socks4://user@h", Proxy("socks4", "h", 1080, Basic("user"))),
    ],
)
def test_urls(url, expected):
    assert parse_proxy(url) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not the URL of a proxy"),
        ("http://", "not the URL of a proxy"),
        ("http://h:99999", "not the URL of a proxy"),
        ("http://h/path", "not the URL of a proxy"),
        ("http://h?x", "not the URL of a proxy"),
        ("http://h#x", "not the URL of a proxy"),
        ("http://h:0", "port 0"),
        ("u:geheim://x@h", "not the URL of a proxy"),
        ("ftp://h", "unknown kind of proxy 'ftp'"),
        ("http://h\r\nX: y", "control character"),
        ("http://h\n", "control character"),
        ("http://a\0b@h", "control character"),
        ("http:// h", "control character"),
        ("http://u:geheim%0d%0a@h", "password has a control character"),
        ("http://u%00:geheim@h", "username has a control character"),
        ("http://u%3a:geheim@h", "colon"),
        ("socks4://u:geheim@h", "takes a username, and no password"),
        (f"socks5://u:{'geheim' * 43}@h", "255 bytes"),
        (f"socks5h://{'u' * 256}:geheim@h", "255 bytes"),
    ],
)
def test_what_is_no_url_of_a_proxy(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_proxy(url)
    assert "geheim" not in str(caught.value)


def test_socks_takes_up_to_255_bytes():
    assert parse_proxy(f"socks5://{'u' * 255}:{'p' * 255}@h").auth == Basic("u" * 255, "p" * 255)


def test_digest_is_for_http():
    assert parse_proxy("http://u:p@h", "digest").auth == Digest("u", "p")
    with pytest.raises(ValueError, match="knows no Digest"):
        parse_proxy("socks5://u:p@h", "digest")


def test_a_proxy_shows_no_password():
    proxy = parse_proxy("http://alice:geheim@[::1]:3128")
    assert "geheim" not in repr(proxy)
    assert str(proxy) == "http://[::1]:3128"


def test_proxies_that_are_told_apart():
    urls = ("http://h", "http://u@h", "http://u:p@h", "http://u:q@h", "https://h", "socks5://h")
    assert len({parse_proxy(url) for url in urls}) == len(urls)
    assert parse_proxy("http://h") == parse_proxy("h:80")


def test_what_is_tunnelled():
    http, socks = parse_proxy("http://h"), parse_proxy("socks5://h")
    assert not http.tunnels("http")
    assert http.tunnels("https")
    assert socks.tunnels("http")
    assert socks.tunnels("https")


# --- options -------------------------------------------------------------------------------

TARGET = parse("http://origin.test/")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"proxy": None}, None),
        ({"proxy": False}, None),
        ({"proxy": "h:1"}, Proxy("http", "h", 1)),
        ({"proxy": Proxy("https", "h", 1)}, Proxy("https", "h", 1)),
        ({"proxy": "u:p@h", "proxy_auth_mode": "digest"}, Proxy("http", "h", 80, Digest("u", "p"))),
        ({"proxy_host": "h", "proxy_port": 3128}, Proxy("http", "h", 3128)),
        ({"proxy_host": "::1", "proxy_port": 1}, Proxy("http", "::1", 1)),
        (
            {"proxy_host": "h", "proxy_port": 1, "proxy_username": "u", "proxy_password": "p"},
            Proxy("http", "h", 1, Basic("u", "p")),
        ),
        (
            {
                "proxy_host": "h",
                "proxy_port": 1,
                "proxy_username": "u",
                "proxy_password": "p",
                "proxy_auth_mode": "digest",
            },
            Proxy("http", "h", 1, Digest("u", "p")),
        ),
        # A password alone is the lineage's default, and means nothing.
        ({"proxy_host": "h", "proxy_port": 1, "proxy_password": ""}, Proxy("http", "h", 1)),
        # A proxy that is given is preferred to the lineage's names, and these to the environment.
        ({"proxy": "a:1", "proxy_host": "b", "proxy_port": 1}, Proxy("http", "a", 1)),
        ({"proxy": False, "proxy_host": "b", "proxy_port": 1}, None),
        ({"proxy": False, "trust_env": True}, None),
        ({"proxy_host": "h", "proxy_port": 1, "trust_env": True}, Proxy("http", "h", 1)),
        ({"trust_env": True}, Proxy("http", "of-env", 8080)),
        ({"trust_env": False}, None),
    ],
)
def test_options(monkeypatch, options, expected):
    monkeypatch.setenv("http_proxy", "http://of-env:8080")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert proxy_for(TARGET, options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proxy_host": "h"}, "needs a proxy_port"),
        ({"proxy_host": "u:p@h", "proxy_port": 1}, "not the URL|a name alone"),
        ({"proxy_host": "u@h", "proxy_port": 1}, "a name alone"),
        ({"proxy_host": "h/x", "proxy_port": 1}, "not the URL"),
        ({"proxy_host": "h\r\n", "proxy_port": 1}, "control character"),
        (
            {"proxy_host": "h", "proxy_port": 1, "proxy_username": "a\r\nb"},
            "username has a control",
        ),
        (
            {"proxy_host": "h", "proxy_port": 1, "proxy_username": "a", "proxy_password": "\0"},
            "password has a control",
        ),
        (
            {"proxy_host": "h", "proxy_port": 1, "proxy_username": "a", "proxy_auth_mode": "ntlm"},
            "unsupported auth_mode",
        ),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        proxy_for(TARGET, options)


def test_the_type_of_the_option():
    with pytest.raises(TypeError, match="not bytes"):
        proxy_for(TARGET, {"proxy": b"http://h"})


def test_an_error_names_the_environment(monkeypatch):
    monkeypatch.setenv("http_proxy", "ftp://geheim@h")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ValueError, match="environment's proxy for http: unknown kind") as caught:
        proxy_for(TARGET, {"trust_env": True})
    assert "geheim" not in str(caught.value)


# --- the environment -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "http", "https"),
    [
        ({}, None, None),
        ({"http_proxy": "a"}, "a", None),
        ({"https_proxy": "b"}, None, "b"),
        ({"all_proxy": "c"}, "c", "c"),
        ({"ALL_PROXY": "c"}, "c", "c"),
        ({"http_proxy": "a", "all_proxy": "c"}, "a", "c"),
        ({"http_proxy": "", "all_proxy": "c"}, "c", "c"),
        ({"HTTPS_PROXY": "b", "HTTP_PROXY": "a"}, "a", "b"),
        ({"https_proxy": "b", "HTTPS_PROXY": "B"}, None, "b"),
        ({"HTTP_PROXY": "evil", "HTTPS_PROXY": "b", "REQUEST_METHOD": "GET"}, None, "b"),
        ({"http_proxy": "a", "HTTP_PROXY": "evil", "REQUEST_METHOD": "GET"}, "a", None),
    ],
)
def test_variables(environ, http, https):
    assert environment_proxy("http", "h.test", environ) == http
    assert environment_proxy("https", "h.test", environ) == https


@pytest.mark.parametrize(
    ("exempt", "host", "direct"),
    [
        ("*", "any.test", True),
        (" * ", "any.test", True),
        ("a.test", "a.test", True),
        ("A.Test", "a.test", True),
        ("a.test", "www.a.test", True),
        (".a.test", "a.test", True),
        (".a.test", "www.a.test", True),
        ("a.test.", "a.test", True),
        ("a.test", "a.test.", True),
        ("a.test", "ba.test", False),
        ("a.test", "test", False),
        ("www.a.test", "a.test", False),
        ("b.test, a.test", "a.test", True),
        ("b.test a.test", "a.test", True),
        (",,", "a.test", False),
        ("*.a.test", "www.a.test", False),
        ("localhost", "localhost", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.0/8", "127.1.2.3", True),
        ("127.0.0.0/8", "128.0.0.1", False),
        ("192.168.1.7/24", "192.168.1.200", True),
        ("0.0.1", "127.0.0.1", False),
        ("::1", "::1", True),
        ("[::1]", "::1", True),
        ("fd00::/8", "fd12::1", True),
        ("fd00::/8", "fe80::1", False),
        ("127.0.0.1", "::1", False),
    ],
)
def test_no_proxy(exempt, host, direct):
    for name in ("no_proxy", "NO_PROXY"):
        got = environment_proxy("http", host, {"http_proxy": "p", name: exempt})
        assert got == (None if direct else "p")
