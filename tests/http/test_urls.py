"""URLs: what a fetch takes from them, and what is refused."""

from __future__ import annotations

import pytest

from coro.http.urls import join, parse

TAKEN_APART = {
    "http://example.com": ("http", "example.com", 80, "example.com", "/"),
    "https://example.com": ("https", "example.com", 443, "example.com", "/"),
    "http://example.com:80/": ("http", "example.com", 80, "example.com", "/"),
    "https://example.com:443/": ("https", "example.com", 443, "example.com", "/"),
    "http://example.com:443/x": ("http", "example.com", 443, "example.com:443", "/x"),
    "HTTP://EXAMPLE.com:8080/A": ("http", "example.com", 8080, "example.com:8080", "/A"),
    "http://127.0.0.1:99/x?y": ("http", "127.0.0.1", 99, "127.0.0.1:99", "/x?y"),
    "http://0x7f.1/": ("http", "127.0.0.1", 80, "127.0.0.1", "/"),
    "http://[::1]/": ("http", "::1", 80, "[::1]", "/"),
    "http://[::1]:81/x": ("http", "::1", 81, "[::1]:81", "/x"),
    "http://[0:0::1]:81/x": ("http", "::1", 81, "[::1]:81", "/x"),
    "http://example.com?query": ("http", "example.com", 80, "example.com", "/?query"),
    "http://example.com#part": ("http", "example.com", 80, "example.com", "/"),
    "http://example.com/a#part?no": ("http", "example.com", 80, "example.com", "/a"),
    "http://example.com/a/../b/./c": ("http", "example.com", 80, "example.com", "/b/c"),
    "http://example.com/a b?c d": ("http", "example.com", 80, "example.com", "/a%20b?c%20d"),
    "http://example.com/ü?ö": ("http", "example.com", 80, "example.com", "/%C3%BC?%C3%B6"),
    "http://example.com/%41%2f": ("http", "example.com", 80, "example.com", "/%41%2f"),
    "http://example.com/@:/?@:": ("http", "example.com", 80, "example.com", "/@:/?@:"),
    "http://bücher.example/": ("http", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", "/"),
    "  http://example.com/x \n": ("http", "example.com", 80, "example.com", "/x"),
    "http://u:p@example.com:81/x": ("http", "example.com", 81, "example.com:81", "/x"),
    "http://u@[::1]/": ("http", "::1", 80, "[::1]", "/"),
    "http://faß.example/": ("http", "xn--fa-hia.example", 80, "xn--fa-hia.example", "/"),
    "http://☃.example./": ("http", "xn--n3h.example.", 80, "xn--n3h.example.", "/"),
    "http://１２７.１/": ("http", "127.0.0.1", 80, "127.0.0.1", "/"),
    "http://%65x.example/": ("http", "ex.example", 80, "ex.example", "/"),
    "http://[::ffff:1.2.3.4]/": ("http", "::ffff:102:304", 80, "[::ffff:102:304]", "/"),
    "http://[FE80::0:1]/": ("http", "fe80::1", 80, "[fe80::1]", "/"),
    "http:\\\\example.com\\x": ("http", "example.com", 80, "example.com", "/x"),
}


@pytest.mark.parametrize("url", TAKEN_APART)
def test_parts(url: str) -> None:
    target = parse(url)
    assert target[:5] == TAKEN_APART[url]
    assert target.origin == (target.scheme, target.host, target.port)
    assert "#" not in target.url
    assert parse(target.url) == target


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("user:secret@", ("user", "secret")),
        ("user@", ("user", "")),
        ("user:@", ("user", "")),
        (":secret@", ("", "secret")),
        ("u%40x:p%3A%2F@", ("u@x", "p:/")),
        ("u@x:p@", ("u@x", "p")),
        ("ü:ö@", ("ü", "ö")),
        ("a:b:c@", ("a", "b:c")),
        ("", ("", "")),
    ],
)
def test_credentials(place: str, expected: tuple[str, str]) -> None:
    target = parse(f"http://{place}example.com/x")
    assert (target.username, target.password) == expected
    assert target.host == target.authority == "example.com"


@pytest.mark.parametrize("zone", ["%25eth0", "%eth0"])
def test_the_zone_of_an_address(zone: str) -> None:
    target = parse(f"http://u:p@[FE80::0:1{zone}]:81/a%25b")
    assert target[:5] == ("http", "fe80::1%eth0", 81, "[fe80::1]:81", "/a%25b")
    assert target.origin == ("http", "fe80::1%eth0", 81)
    assert target.url == "http://u:p@[fe80::1]:81/a%25b"
    base = f"http://[fe80::1{zone}]:81/a/b#f"
    assert join(base, "c") == "http://[fe80::1%25eth0]:81/a/c#f"
    assert join(base, "http://[FE80:0::1]/c") == "http://[fe80::1%25eth0]/c#f"
    assert join(base, "http://[fe80::2]/c") == "http://[fe80::2]/c#f"
    assert join(base, f"http://[fe80::2{zone}]/c") == "http://[fe80::2%25eth0]/c#f"
    assert join("http://a/", f"http://[fe80::1{zone}]/c") == "http://[fe80::1%25eth0]/c"


REFUSED = {
    "": "not a URL",
    "/path": "not a URL",
    "example.com": "not a URL",
    "//example.com": "not a URL",
    "http://": "not a URL",
    "http://exa mple.com/": "not a URL",
    "http://example.com:99999/": "not a URL",
    "http://example.com:x/": "not a URL",
    "http://[::1/": "not a URL",
    "http://[::1%25lo]/": "not a URL",
    "http://[fe80::1%25]/": "not a URL",
    "http://[fe80::1%25a/b]/": "not a URL",
    "http://256.1.1.1/": "not a URL",
    "http://a%00b/": "not a URL",
    "http://a%2fb/": "not a URL",
    "http://\u202e.example/": "not a URL",
    "http://a\0b/": "not a URL",
    "http://a/\ud800": "not a URL",
    "ftp://example.com/": "the scheme 'ftp' is neither",
    "file:///etc/passwd": "the scheme 'file' is neither",
    "mailto:you@example.com": "the scheme 'mailto' is neither",
    "javascript:alert(1)": "the scheme 'javascript' is neither",
    "localhost:80/": "the scheme 'localhost' is neither",
    "ws://example.com/": "the scheme 'ws' is neither",
}


@pytest.mark.parametrize("url", REFUSED)
def test_refused(url: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[url]) as info:
        parse(url)
    assert repr(url) in str(info.value)


@pytest.mark.parametrize("char", [*map(chr, range(0x21)), "\x7f", "\x85", "\u2028", "é"])
def test_nothing_but_plain_ascii_goes_out(char: str) -> None:
    target = parse(f"http://example.com/a{char}b?c{char}d")
    for text in (target.path, target.authority):
        assert all("\x21" <= each <= "\x7e" for each in text)


JOINED = [
    ("http://a/b/c?d", "e", "http://a/b/e"),
    ("http://a/b/c?d", "/e", "http://a/e"),
    ("http://a/b/c?d", "?e", "http://a/b/c?e"),
    ("http://a/b/c?d", "//e/f", "http://e/f"),
    ("https://a/b", "//e/f", "https://e/f"),
    ("http://a/b", "https://e:8/f", "https://e:8/f"),
    ("http://a/b/c/d", "../../../../e", "http://a/e"),
    ("http://a:81/b", "/c", "http://a:81/c"),
    ("http://u:p@a/b", "/c", "http://u:p@a/c"),
    ("http://u:p@a/b", "http://a/c", "http://a/c"),
    ("http://a/b#f", "/c", "http://a/c#f"),
    ("http://a/b#f", "/c#g", "http://a/c#g"),
    ("http://a/b", "/c#g", "http://a/c#g"),
    ("http://a/b", "/c d", "http://a/c%20d"),
]


@pytest.mark.parametrize(("base", "location", "expected"), JOINED)
def test_join(base: str, location: str, expected: str) -> None:
    assert join(base, location) == expected


@pytest.mark.parametrize("location", ["http://", "http://[", "http://a:99999/"])
def test_join_refuses(location: str) -> None:
    with pytest.raises(ValueError, match="is not a URL"):
        join("http://a/", location)
