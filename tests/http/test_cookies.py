"""The jar: who may set what, who gets it, how much is kept, files."""

from __future__ import annotations

import os
import stat
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coro.http import cookies as room
from coro.http.cookies import CookieJar, LoadError


def jar_of(url: str, *lines: str) -> CookieJar:
    jar = CookieJar()
    jar.take(url, lines)
    return jar


def sent(jar: CookieJar, url: str) -> set[str]:
    return set((jar.header(url) or "").split("; ")) - {""}


# --- who gets it ---------------------------------------------------------------------------


def test_a_cookie_goes_to_its_host_alone():
    jar = jar_of("http://a.test/", "x=1")
    assert jar.header("http://a.test/") == "x=1"
    assert jar.header("http://a.test:8080/") == "x=1"
    for other in ("http://www.a.test/", "http://ba.test/", "http://test/", "http://b.test/"):
        assert jar.header(other) is None


def test_a_domain_stands_for_all_below_it():
    jar = jar_of("http://www.a.test/", "x=1; Domain=a.test")
    for host in ("a.test", "www.a.test", "x.y.a.test"):
        assert jar.header(f"http://{host}/") == "x=1"
    for host in ("ba.test", "test", "a.test.b.test"):
        assert jar.header(f"http://{host}/") is None
    assert jar_of("http://a.test/", "x=1; domain=.A.Test").header("http://w.a.test/") == "x=1"


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("a.test", "b.test"),
        ("a.test", "www.a.test"),
        ("a.test", "test"),
        ("a.test", ".test"),
        ("a.test", "a.tes"),
        ("ba.test", "a.test"),
        ("www.a.co.uk", "co.uk"),
        ("me.github.io", "github.io"),
        ("a.b.ck", "b.ck"),  # by the rule "*.ck"
        ("www.a.公司.cn", "xn--55qx5d.cn"),
        ("foo", "local"),
        ("127.0.0.1", "0.0.1"),
        ("127.0.0.1", "1"),
        ("[::1]", "1"),
    ],
)
def test_domains_that_are_refused(host, domain):
    jar = jar_of(f"http://{host}/", f"x=1; Domain={domain}", "y=2")
    assert {cookie.name for cookie in jar} == {"y"}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "github.io", "co.uk"])
def test_a_host_that_cannot_share_may_name_itself(host):
    name = host.strip("[]")
    jar = jar_of(f"http://{host}:8080/", f"x=1; Domain={name}")
    assert jar.header(f"http://{host}/") == "x=1"
    if ":" not in host:
        assert jar.header(f"http://www.{host}/" if host[0] != "1" else "http://127.0.0.2/") is None


def test_exceptions_of_the_list():
    """All below ck are suffixes, but www.ck is not."""
    assert jar_of("http://a.www.ck/", "x=1; Domain=www.ck").header("http://b.www.ck/") == "x=1"


def test_without_the_list_a_rule_of_thumb_serves(monkeypatch):
    monkeypatch.setattr(room, "PublicSuffixList", None)
    jar = jar_of(
        "http://www.a.co.uk/", "x=1; Domain=co.uk", "y=2; Domain=a.co.uk", "z=3; Domain=uk"
    )
    assert {cookie.name for cookie in jar} == {"y"}


@pytest.mark.parametrize(
    ("path", "goes", "stays"),
    [
        ("/a", ["/a", "/a/", "/a/b"], ["/", "/ab"]),
        ("/a/", ["/a/", "/a/b"], ["/a", "/"]),
        ("/", ["/", "/x"], []),
    ],
)
def test_paths(path, goes, stays):
    jar = jar_of("http://a.test/", f"x=1; Path={path}")
    assert [p for p in goes + stays if jar.header(f"http://a.test{p}")] == goes


def test_a_path_is_by_default_the_url_s_directory():
    jar = jar_of("http://a.test/dir/page?q=/", "x=1")
    assert jar.header("http://a.test/dir/other") == "x=1"
    assert jar.header("http://a.test/else") is None


def test_the_longest_path_comes_first():
    jar = jar_of("http://a.test/d/p", "x=1; Path=/", "y=2; Path=/d")
    assert jar.header("http://a.test/d/") == "y=2; x=1"


def test_user_and_password_of_a_url_are_not_its_host():
    jar = jar_of("http://user:pw@a.test/", "x=1")
    assert jar.header("http://other@a.test/") == "x=1"
    assert all("@" not in cookie.domain for cookie in jar)


# --- TLS -----------------------------------------------------------------------------------


def test_secure_cookies_go_by_tls_alone():
    jar = jar_of("https://a.test/", "x=1; Secure", "y=2")
    assert sent(jar, "https://a.test/") == {"x=1", "y=2"}
    assert sent(jar, "http://a.test/") == {"y=2"}


def test_plain_http_sets_no_secure_cookie():
    assert not list(jar_of("http://a.test/", "x=1; Secure"))


@pytest.mark.parametrize(
    "line", ["x=evil", "x=evil; Path=/p", "x=evil; Domain=a.test", "x=; Max-Age=0"]
)
@pytest.mark.parametrize("domain", ["", "; Domain=a.test"])
def test_plain_http_touches_no_secure_cookie(line, domain):
    jar = jar_of("https://a.test/", f"x=1; Secure; Path=/{domain}")
    jar.take("http://a.test/", [line])
    assert jar.header("https://a.test/p") == "x=1"


def test_plain_http_touches_no_secure_cookie_of_a_host_without_a_dot():
    jar = jar_of("https://localhost/", "x=1; Secure")
    jar.take("http://localhost/", ["x=evil"])
    assert jar.header("https://localhost/") == "x=1"


@pytest.mark.parametrize(
    ("line", "fine"),
    [
        ("__Secure-x=1; Secure", True),
        ("__Secure-x=1", False),
        ("__Host-x=1; Secure; Path=/", True),
        ("__Host-x=1; Secure; Path=/a", False),
        ("__Host-x=1; Secure", False),
        ("__Host-x=1; Path=/", False),
        ("__Host-x=1; Secure; Path=/; Domain=a.test", False),
    ],
)
def test_prefixes_promise_something(line, fine):
    assert bool(list(jar_of("https://a.test/", line))) == fine


# --- how long ------------------------------------------------------------------------------


def test_cookies_expire():
    jar = jar_of(
        "http://a.test/", "x=1; Max-Age=1000", "y=2; Expires=Wed, 09 Jun 2100 10:18:14 GMT"
    )
    assert sent(jar, "http://a.test/") == {"x=1", "y=2"}
    for cookie in jar:
        assert (cookie.expires or 0) > time.time()
        cookie.expires = int(time.time()) - 1
    assert jar.header("http://a.test/") is None


def test_a_server_deletes_its_own():
    jar = jar_of("http://a.test/", "x=1", "y=2")
    jar.take("http://a.test/", ["x=; Max-Age=0", "y=; Expires=Thu, 01 Jan 1970 00:00:00 GMT"])
    assert not list(jar)


def test_a_server_deletes_nothing_of_others():
    jar = jar_of("http://a.test/", "x=1", "y=2; Domain=a.test")
    jar.take("http://evil.test/", ["x=; Domain=a.test; Max-Age=0", "y=; Domain=a.test; Max-Age=0"])
    assert sent(jar, "http://a.test/") == {"x=1", "y=2"}


def test_max_age_is_preferred_and_the_last_attribute_counts():
    jar = jar_of("http://a.test/", "x=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=60")
    assert jar.header("http://a.test/") == "x=1"
    jar = jar_of("http://a.test/", "x=1; Path=/a; Path=/b")
    assert jar.header("http://a.test/b") == "x=1"


# --- what is not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["", ";", "=1", "novalue", "; x=1", "x\t=\ty\tz", "x=\x00", "x=a\nb"]
)
def test_what_is_no_cookie(line):
    assert not list(jar_of("http://a.test/", line))


def test_values_go_out_as_they_came():
    jar = jar_of("http://a.test/", 'x="a b, c=d\\"', "y=\xe4")
    assert sent(jar, "http://a.test/") == {'x="a b, c=d\\"', "y=\xe4"}


@pytest.mark.parametrize(
    "attribute",
    [
        "Max-Age=" + "9" * 400,
        "Max-Age=" + "9" * 5000,
        "Expires=Wed, 09 Jun 99999999999999999999 10:18:14 GMT",
        "Expires=" + "1" * 5000,
        "Version=x; Port=y",
        "Comment=\x80",
    ],
)
def test_attributes_that_mean_nothing(attribute):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jar = jar_of("http://a.test/", f"x=1; {attribute}", "y=2")
    assert sent(jar, "http://a.test/") == {"x=1", "y=2"}


@given(st.lists(st.text(alphabet='aZ=;,"\\ -:0129/.\t\xe4\x85', max_size=40), max_size=3))
def test_any_line_is_read(lines):
    jar = CookieJar()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jar.take("https://a.test/", lines)
        jar.take("https://a.test/", [f"x=1; {line}" for line in lines])
    assert "\t" not in (jar.header("https://a.test/") or "")


@given(st.text(alphabet="0123456789 :-,JanFebGMTWed", max_size=50))
def test_any_date_is_read(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jar_of("https://a.test/", f"x=1; Expires={text}")


# --- how much ------------------------------------------------------------------------------


def test_the_size_of_a_cookie_is_limited():
    most = room.MAX_COOKIE_BYTES - 2
    jar = jar_of("http://a.test/", "x=" + "v" * most, "y=" + "v" * (most + 1))
    assert [cookie.name for cookie in jar] == ["x"]


def test_the_number_of_a_domain_s_cookies_is_limited():
    jar = jar_of("http://b.test/", "x=1")
    for start in range(0, 1000, 100):
        jar.take("http://a.test/", [f"c{number}=1" for number in range(start, start + 100)])
    names = sent(jar, "http://a.test/")
    assert len(names) == room.MAX_COOKIES_PER_DOMAIN
    assert "c999=1" in names
    assert jar.header("http://b.test/") == "x=1"


def test_the_number_of_all_cookies_is_limited():
    jar = CookieJar()
    for number in range(room.MAX_COOKIES // 100 + 2):
        jar.take(f"http://host{number}.test/", [f"c{n}=1" for n in range(100)])
    assert len(jar) == room.MAX_COOKIES
    assert jar.header(f"http://host{number}.test/") is not None
    assert jar.header("http://host0.test/") is None


def test_the_field_is_not_longer_than_servers_take():
    jar = jar_of("http://a.test/d/", *(f"c{n}={'v' * 4000}; Path=/" for n in range(5)))
    jar.take("http://a.test/d/", ["near=1; Path=/d"])
    value = jar.header("http://a.test/d/") or ""
    assert len(value) <= room.MAX_COOKIE_HEADER
    assert value.startswith("near=1; ")
    assert value.count("; ") == 2


# --- files ---------------------------------------------------------------------------------


def test_files(tmp_path: Path):
    file = tmp_path / "jar"
    jar = jar_of(
        "https://a.test/", "x=1; Max-Age=1000; Secure; HttpOnly", "s=2", "gone=1; Max-Age=9"
    )
    next(cookie for cookie in jar if cookie.name == "gone").expires = 1
    jar.save(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = CookieJar()
    again.load(file)
    assert sent(again, "https://a.test/") == {"x=1", "s=2"}
    assert sent(again, "http://a.test/") == {"s=2"}
    assert [path.name for path in tmp_path.iterdir()] == ["jar"]


def test_a_file_of_curl(tmp_path: Path):
    file = tmp_path / "jar"
    file.write_text(
        "# Netscape HTTP Cookie File\n# https://curl.se/docs/http-cookies.html\n\n"
        "#HttpOnly_.a.test\tTRUE\t/\tFALSE\t4102444800\tx\t1\n"
        "b.test\tFALSE\t/d\tTRUE\t4102444800\ty\t2\n"
        "b.test\tFALSE\t/\tFALSE\t4102444800\tbad\tv\x01\n"
    )
    jar = CookieJar()
    jar.load(str(file))
    assert jar.header("http://www.a.test/") == "x=1"
    assert jar.header("https://b.test/d/") == "y=2"
    assert jar.header("https://www.b.test/d/") is None


@pytest.mark.parametrize("text", [b"", b"hello", b"# Netscape HTTP Cookie File\nx\n", b"\xff\xfe"])
def test_what_is_no_file_of_cookies(tmp_path: Path, text):
    file = tmp_path / "jar"
    file.write_bytes(text)
    with pytest.raises(LoadError):
        CookieJar().load(file)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch):
    file = tmp_path / "jar"
    file.write_text("old")
    jar = jar_of("http://a.test/", "x=1; Max-Age=1000")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        jar.save(file)
    assert file.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="which file"):
        jar.save()
