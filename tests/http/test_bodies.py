"""Bodies of requests that are not simply bytes."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from coro.http import HTTPRequest
from tests.http.serving import body_of, fields_of, redirect, response

URL = "http://a/"


async def async_pieces() -> AsyncIterator[bytes]:
    for piece in (b"ab", b"", b"c"):
        yield piece


def pieces() -> Iterator[bytes]:
    yield from (b"ab", b"", b"c")


@pytest.mark.parametrize("make", [async_pieces, pieces, lambda: [b"ab", b"", b"c"]])
def test_pieces(fetch: Any, answering: Any, make: Any) -> None:
    server = answering(response())
    fetch(server.url(), method="POST", body=make())
    assert fields_of(server.requests[0])["Transfer-Encoding"] == "chunked"
    assert body_of(server.requests[0]) == b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"


def test_a_file_from_where_it_is(fetch: Any, answering: Any) -> None:
    data = os.urandom(300_000)
    file = io.BytesIO(data)
    file.seek(1000)
    server = answering(redirect("/again", 307), response())
    assert fetch(server.url(), method="PUT", body=file).code == 200
    for request in server.requests:
        assert fields_of(request)["Content-Length"] == "299000"
        assert body_of(request) == data[1000:]
    assert len(server.requests) == 2


def test_a_file_that_cannot_go_back(fetch: Any, answering: Any) -> None:
    server = answering(response())
    reading, writing = os.pipe()
    os.write(writing, b"abc")
    os.close(writing)
    with open(reading, "rb") as file:
        fetch(server.url(), method="PUT", body=file)
    assert body_of(server.requests[0]) == b"3\r\nabc\r\n0\r\n\r\n"


def test_what_is_used_up_is_not_sent_again(fetch: Any, answering: Any) -> None:
    """Else the second server would take an empty body for the whole."""
    server = answering(redirect("/again", 307), response())
    with pytest.raises(ValueError, match="cannot be sent again: generator is used up"):
        fetch(server.url(), method="POST", body=pieces())


def test_a_form(fetch: Any, answering: Any) -> None:
    server = answering(response())
    fetch(server.url(), method="POST", data={"a": "1 & ü", "b": ["x", "y"]})
    assert fields_of(server.requests[0])["Content-Type"] == "application/x-www-form-urlencoded"
    assert body_of(server.requests[0]) == b"a=1+%26+%C3%BC&b=x&b=y"


def test_json(fetch: Any, answering: Any) -> None:
    server = answering(response())
    fetch(server.url(), method="POST", json={"a": ["ü", None]})
    assert fields_of(server.requests[0])["Content-Type"] == "application/json"
    assert body_of(server.requests[0]) == '{"a":["ü",null]}'.encode()
    headers = {"Content-Type": "application/problem+json"}
    request = HTTPRequest(URL, "POST", headers, json=0)
    assert (request.headers["Content-Type"], request.body) == ("application/problem+json", b"0")
    assert headers == {"Content-Type": "application/problem+json"}


def test_only_one_of_them() -> None:
    given: Any
    for given in (
        {"body": b"", "json": 1},
        {"data": {}, "json": 1},
        {"body": [b"a"], "body_producer": print},
        {"data": {}, "body_producer": print},
    ):
        with pytest.raises(ValueError, match=r"give (one of|a body or)"):
            HTTPRequest(URL, "POST", **given)
    with pytest.raises(TypeError, match="body must be"):
        HTTPRequest(URL, "POST", body=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="JSON compliant"):
        HTTPRequest(URL, "POST", json=float("nan"))


def test_pieces_of_text(fetch: Any, answering: Any, client: Any) -> None:
    with pytest.raises(TypeError, match="bytes"):
        fetch(answering(response()).url(), method="POST", body=["x"])
    assert client.statistics()["idle"] == 0, "a connection with half a request is closed"
