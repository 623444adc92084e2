"""Forms with files: what parsers that others wrote make of them."""

from __future__ import annotations

import email
import email.policy
import gc
import io
import os
from collections.abc import AsyncIterator, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.formparser import parse_form_data

from coro.http import AsyncHTTPClient, HTTPRequest
from tests.http.serving import body_of, fields_of, redirect, response

URL = "http://a/"


def parts_of(content_type: str, body: bytes) -> list[EmailMessage]:
    """Take a body apart with the standard library's parser of mail."""
    head = f"Content-Type: {content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message: Any = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    assert message.is_multipart()
    assert not message.defects
    return list(message.iter_parts())


def parsed(content_type: str, body: bytes) -> tuple[dict[str, list[str]], list[tuple[Any, ...]]]:
    """Take a body apart as a web framework does.

    Returns:
        The fields, and of each file: its field, its name, its type, its content.
    """
    environ = {
        "REQUEST_METHOD": "POST",
        "wsgi.input": io.BytesIO(body),
        "CONTENT_TYPE": content_type,
        "CONTENT_LENGTH": str(len(body)),
    }
    _, fields, files = parse_form_data(environ)
    found = []
    for name, file in files.items(multi=True):
        found.append((name, file.filename, file.content_type, file.read()))
        file.close()
    return fields.to_dict(flat=False), found


def encoded(**given: Any) -> tuple[str, bytes]:
    request = HTTPRequest(URL, "POST", **given)
    assert request.body is not None
    return request.headers["Content-Type"], request.body


def test_to_the_letter() -> None:
    content_type, body = encoded(
        data={"a": "1"}, files={"f": ("ä.txt", b"\x00text"), "g": ("x", "é", "text/x; charset=a")}
    )
    boundary = content_type.removeprefix("multipart/form-data; boundary=")
    assert body.replace(boundary.encode(), b"B") == (
        b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
        b'--B\r\nContent-Disposition: form-data; name="f"; filename="\xc3\xa4.txt"\r\n'
        b"Content-Type: text/plain\r\n\r\n\x00text\r\n"
        b'--B\r\nContent-Disposition: form-data; name="g"; filename="x"\r\n'
        b"Content-Type: text/x; charset=a\r\n\r\n\xc3\xa9\r\n"
        b"--B--\r\n"
    )


def test_two_parsers() -> None:
    data = os.urandom(1000) + b"\r\n--\r\n"
    given = {"data": [("a", "1"), ("b", ["x", "y"]), ("c", 7), ("d", b"\xff")]}
    content_type, body = encoded(**given, files=[("f", ("one.png", data)), ("f", ("two", "ü"))])
    fields, files = parsed(content_type, body)
    assert fields == {"a": ["1"], "b": ["x", "y"], "c": ["7"], "d": ["\ufffd"]}
    assert files == [
        ("f", "one.png", "image/png", data),
        ("f", "two", "application/octet-stream", "ü".encode()),
    ]
    parts = parts_of(content_type, body)
    assert [part.get_content_type() for part in parts[5:]] == [
        "image/png",
        "application/octet-stream",
    ]
    assert parts[5].get_payload(decode=True) == data


def test_boundaries_are_random() -> None:
    assert len({encoded(files={"a": b""})[0] for _ in range(100)}) == 100


def test_no_files_and_no_fields() -> None:
    assert parsed(*encoded(files={})) == ({}, [])
    assert parsed(*encoded(data={}, files={"a": []})) == ({}, [])


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ('a"b', b"a%22b"),
        ("a\r\nb", b"a%0D%0Ab"),
        ("a\nb\rc", b"a%0D%0Ab%0D%0Ac"),
        ("a\\%22;b", b"a\\%22;b"),
        ("дом", "дом".encode()),
    ],
)
def test_names_are_escaped_as_browsers_do(name: str, written: bytes) -> None:
    for body in (encoded(files={name: b""})[1], encoded(data={name: "x"}, files={})[1]):
        assert b'form-data; name="' + written + b'"' in body


def test_filenames_are_escaped_as_browsers_do() -> None:
    _, body = encoded(files={"a": ('"\r\n\n.txt', b"")})
    assert b'; filename="%22%0D%0A%0A.txt"\r\n' in body


@given(name=st.text(), filename=st.text(), content=st.binary())
def test_nothing_in_a_name_gets_out_of_it(name: str, filename: str, content: bytes) -> None:
    try:
        content_type, body = encoded(files={name: (filename, content)})
    except UnicodeEncodeError:
        return
    boundary = content_type.partition("=")[2].encode()
    _, part, end = body.split(b"--" + boundary)
    head, _, rest = part.partition(b"\r\n\r\n")
    assert rest == content + b"\r\n"
    assert end == b"--\r\n"
    assert head.count(b"\r\n") == 2
    assert head.count(b'"') == 4


@pytest.mark.parametrize("wrong", ["text/plain\r\nX: y", "", "tëxt/plain"])
def test_content_types_that_are_none(wrong: str) -> None:
    with pytest.raises(ValueError, match="content type"):
        encoded(files={"a": ("name", b"", wrong)})


def test_only_with_data() -> None:
    other: Any
    for other in ({"body": b""}, {"json": 1}, {"body_producer": print}):
        with pytest.raises(ValueError, match="give one of"):
            HTTPRequest(URL, "POST", files={}, **other)
    with pytest.raises(ValueError, match="leave out Content-Type"):
        HTTPRequest(URL, "POST", {"content-type": "multipart/form-data"}, files={})
    wrong: Any
    for wrong in (7, {}, ("a",), ("a", b"", "text/plain", 4), ("a", None)):
        with pytest.raises(TypeError, match="the file 'f' must be"):
            encoded(files={"f": wrong})


# --- files that are read as they are sent ----------------------------------------------------


def test_files_with_a_size(fetch: Any, answering: Any, tmp_path: Path) -> None:
    """Their names are those of the files; the length of the whole is known; sent twice."""
    data = os.urandom(300_000)
    (tmp_path / "holiday.jpg").write_bytes(data)
    server = answering(redirect("/again", 307), response())
    with open(tmp_path / "holiday.jpg", "rb") as file:
        file.seek(1000)
        fetch(
            server.url(),
            method="POST",
            data={"a": "1"},
            files={"f": [file, io.BytesIO(b"abc"), ("x.txt", io.BytesIO(b"def"))]},
        )
    assert len(server.requests) == 2
    for request in server.requests:
        assert fields_of(request)["Content-Length"] == str(len(body_of(request)))
        fields, files = parsed(fields_of(request)["Content-Type"], body_of(request))
        assert fields == {"a": ["1"]}
        assert files == [
            ("f", "holiday.jpg", "image/jpeg", data[1000:]),
            ("f", "f", "application/octet-stream", b"abc"),
            ("f", "x.txt", "text/plain", b"def"),
        ]


async def async_pieces() -> AsyncIterator[bytes]:
    for piece in (b"ab", b"", b"c"):
        yield piece


def pieces() -> Iterator[bytes]:
    yield from (b"ab", b"", b"c")


@pytest.mark.parametrize("make", [async_pieces, pieces])
def test_files_without_a_size(fetch: Any, answering: Any, make: Any) -> None:
    server = answering(response())
    fetch(server.url(), method="POST", files={"f": make(), "g": io.BytesIO(b"xyz")})
    (request,) = server.requests
    fields = fields_of(request)
    assert fields["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in fields
    body, rest = b"", body_of(request)
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    _, files = parsed(fields["Content-Type"], body)
    assert [(name, content) for name, _, _, content in files] == [("f", b"abc"), ("g", b"xyz")]


def test_a_file_that_fails_leaves_nothing(
    fetch: Any, answering: Any, client: AsyncHTTPClient, no_collector: None
) -> None:
    class Broken(io.RawIOBase):
        def seekable(self) -> bool:
            return False

        def read(self, size: int = -1) -> bytes:
            raise OSError("the disk is broken")

    server = answering(response())
    fetch(server.url())
    gc.collect()
    with pytest.raises(OSError, match="the disk is broken"):
        fetch(server.url(), method="POST", data={"a": "1"}, files={"f": Broken()})
    assert client.statistics()["idle"] == 0, "a connection with half a request is closed"
    assert fetch(server.url()).code == 200
    assert gc.collect() == 0


def test_a_large_file_is_not_loaded(fetch: Any, answering: Any) -> None:
    largest = 0

    class Large(io.RawIOBase):
        left = 3_000_000

        def seekable(self) -> bool:
            return False

        def read(self, size: int = -1) -> bytes:
            nonlocal largest
            largest = max(largest, size)
            assert size > 0
            self.left -= min(size, self.left)
            return bytes(min(size, self.left))

    server = answering(response())
    fetch(server.url(), method="POST", files={"f": Large()})
    assert 0 < largest <= 65536
