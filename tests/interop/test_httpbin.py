"""Authentication, cookies, redirects and codings as httpbin has them."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coro.errors import HTTPError
from coro.http import AsyncHTTPClient
from coro.http.auth import Basic, Bearer, Digest
from coro.http.cookies import CookieJar
from coro.loop import IOLoop
from tests.support.command import run
from tests.support.hosting import new_loop
from tests.support.httpbin import running_httpbin
from tests.support.needs import needs_module


@pytest.fixture(scope="module")
def httpbin() -> Iterator[str]:
    needs_module("httpbin")
    with running_httpbin() as url:
        yield url


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = new_loop()
    yield loop
    loop.close()
    IOLoop.clear_current()


@pytest.fixture
def fetch(loop: IOLoop) -> Iterator[Callable[..., Any]]:
    client = AsyncHTTPClient(force_instance=True)
    yield lambda url, **options: loop.run_sync(functools.partial(client.fetch, url, **options))
    client.close()


def test_basic(fetch: Any, httpbin: str) -> None:
    url = f"{httpbin}/basic-auth/us%C3%A9r/p%C3%A4ss"
    assert fetch(url, auth=Basic("usér", "päss")).code == 200
    for wrong in ({}, {"auth": ("usér", "x")}):
        with pytest.raises(HTTPError) as caught:
            fetch(url, **wrong)
        assert caught.value.code == 401


def test_bearer(fetch: Any, httpbin: str) -> None:
    got = json.loads(fetch(f"{httpbin}/bearer", auth=Bearer("abc.def")).body)
    assert got == {"authenticated": True, "token": "abc.def"}


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
@pytest.mark.parametrize("stale", ["never", "1"])
def test_digest(fetch: Any, httpbin: str, algorithm: str, stale: str) -> None:
    url = f"{httpbin}/digest-auth/auth/user/passwd/{algorithm}/{stale}"
    jar = CookieJar()  # in which httpbin keeps its nonces
    for _ in range(4):
        got = fetch(url, auth=Digest("user", "passwd"), cookie_jar=jar)
        assert json.loads(got.body)["authenticated"] is True
    with pytest.raises(HTTPError) as caught:
        fetch(url, auth=Digest("user", "wrong"), cookie_jar=jar)
    assert caught.value.code == 401


def test_cookies_on_the_way(fetch: Any, httpbin: str) -> None:
    jar = CookieJar()
    got = fetch(f"{httpbin}/cookies/set?a=1&b=2", cookie_jar=jar)
    assert json.loads(got.body)["cookies"] == {"a": "1", "b": "2"}
    got = fetch(f"{httpbin}/cookies/delete?a", cookie_jar=jar)
    assert json.loads(got.body)["cookies"] == {"b": "2"}
    assert json.loads(fetch(f"{httpbin}/cookies").body)["cookies"] == {}


@pytest.mark.parametrize("kind", ["absolute-redirect", "relative-redirect"])
def test_redirects(fetch: Any, httpbin: str, kind: str) -> None:
    got = fetch(f"{httpbin}/{kind}/4", auth=("u", "p"))
    assert got.effective_url == f"{httpbin}/get"
    assert json.loads(got.body)["headers"]["Authorization"] == "Basic dTpw"


def test_a_redirect_to_another_origin(fetch: Any, httpbin: str) -> None:
    there = httpbin.replace("127.0.0.1", "localhost") + "/headers"
    got = fetch(
        f"{httpbin}/redirect-to?url={there}",
        auth=("u", "p"),
        headers={"Cookie": "a=1"},
    )
    sent = json.loads(got.body)["headers"]
    assert not {"Authorization", "Cookie"} & sent.keys()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "brotli"])
def test_codings(fetch: Any, httpbin: str, coding: str) -> None:
    assert json.loads(fetch(f"{httpbin}/{coding}").body)["headers"]["Host"]


def test_a_form_with_files(fetch: Any, httpbin: str) -> None:
    got = fetch(
        f"{httpbin}/post",
        method="POST",
        data={"a": ["1", "2"], "ü": "x"},
        files={"f": ("name.txt", "hällo"), 'a"b': io.BytesIO(b"text")},
    )
    told = json.loads(got.body)
    assert told["form"] == {"a": ["1", "2"], "ü": "x"}
    assert told["files"] == {"f": "hällo", 'a"b': "text"}


def test_the_command(httpbin: str, tmp_path: Path) -> None:
    jar = tmp_path / "jar"
    for path in ("/cookies/set?a=1", "/cookies"):
        ran = run("fetch", "--cookie-jar", jar, "-o", "-", httpbin + path)
        assert ran.status == 0, ran
        assert json.loads(ran.stdout)["cookies"] == {"a": "1"}
    login = httpbin.replace("//", "//user:passwd@")
    assert run("fetch", f"{login}/basic-auth/user/passwd").status == 0
    ran = run("fetch", "-o", tmp_path / "out", "--continue", f"{httpbin}/range/5000")
    assert Path(ran.lines[0]["file"]).stat().st_size == 5000
