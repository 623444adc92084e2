"""What a handler answers with, and how it is written out.

Nothing is written that could be read as more than was meant: names and values are checked before
the first byte. What responses share with those before them is encoded once and kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable, Iterable
from functools import lru_cache
from http.client import responses
from typing import Any, TypeAlias, cast

from coro.http.encode import encode_fields
from coro.http.headers import HTTPHeaders, check_value

__all__ = ["Body", "Response", "encode_head", "has_no_body", "reason_of"]

Body: TypeAlias = bytes | str | Iterable[bytes] | AsyncIterable[bytes]

_DATE = re.compile(rb"(?:^|\n)date:", re.IGNORECASE)

_TEXT = "text/plain; charset=utf-8"
_BYTES = "application/octet-stream"


class Response:
    """A response: status, header fields and body.

    Arguments:
        body: bytes; text, sent as UTF-8; or an (asynchronous) iterable of bytes, sent as it comes.
        status: as in 200.
        headers: header fields; ``Content-Length`` and ``Transfer-Encoding`` are the server's to
            write, except that a ``Content-Length`` may be given with an iterable.
        content_type: value of ``Content-Type`` if the fields have none. Default: plain text for
            text, ``application/octet-stream`` for the rest.
        reason: the text after the status. Default: the customary one.
    Raises:
        ValueError: a status or a field that may not be written out.
        TypeError: a body of another kind.
    """

    __slots__ = ("body", "content_type", "fields", "headers", "reason", "status")

    def __init__(
        self,
        body: Body = b"",
        status: int = 200,
        headers: Any = None,
        *,
        content_type: str | None = None,
        reason: str | None = None,
    ) -> None:
        self.body: bytes | Iterable[bytes] | AsyncIterable[bytes]
        if type(body) is bytes:
            self.body = body
            self.content_type = content_type or (_BYTES if body else None)
        elif isinstance(body, str):
            self.body = body.encode()
            self.content_type = content_type or _TEXT
        else:
            if not isinstance(body, Iterable | AsyncIterable):
                raise TypeError(f"a body is bytes, text or an iterable of bytes, not {body!r:.100}")
            is_view = isinstance(body, bytearray | memoryview)
            self.body = bytes(body) if is_view else cast("Iterable[bytes]", body)  # type: ignore[arg-type]
            self.content_type = content_type or _BYTES
        self.status = status
        self.headers: HTTPHeaders | None = None
        if headers is not None:
            self.headers = headers if isinstance(headers, HTTPHeaders) else HTTPHeaders(headers)
        self.reason = reason
        # Field lines beside the headers: they were checked and encoded before.
        self.fields = b""

    @classmethod
    def encoded(cls, body: bytes, status: int, fields: bytes) -> Response:
        """Return a response whose fields are lines, each ended by CRLF, that were checked."""
        self = cls(body, status)
        self.content_type = None
        self.fields = fields
        return self

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Any = None) -> Response:
        """Return a response with a value as JSON.

        Raises:
            TypeError, ValueError: JSON has no form for it.
        """
        body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return cls(body.encode(), status, headers, content_type="application/json")

    @classmethod
    def html(cls, text: str, status: int = 200, headers: Any = None) -> Response:
        """Return a response with a page."""
        return cls(text.encode(), status, headers, content_type="text/html; charset=utf-8")

    @classmethod
    def redirect(cls, location: str, status: int = 303) -> Response:
        """Return a response that leads elsewhere (RFC 9110 section 15.4)."""
        return cls(b"", status, {"Location": location})

    def __repr__(self) -> str:
        size = f"{len(self.body)} bytes" if isinstance(self.body, bytes) else "streamed"
        return f"<Response {self.status} {reason_of(self.status, self.reason)}, {size}>"


def reason_of(status: int, reason: str | None = None) -> str:
    """Return the text that follows a status."""
    return responses.get(status, "Unknown") if reason is None else reason


def has_no_body(status: int) -> bool:
    """Whether a response of this status ends with its head (RFC 9110 section 6.4.1)."""
    return status < 200 or status in (204, 304)


@lru_cache(1024)
def _first_lines(status: int, reason: str | None, content_type: str | None) -> bytes:
    """Encode the status line, and the field that most responses have.

    Raises:
        ValueError: something that may not be written out.
    """
    if not isinstance(status, int) or not 100 <= status <= 999:
        raise ValueError(f"a status has three digits, unlike {status!r}")
    reason = reason_of(status, reason)
    check_value("reason phrase", reason)
    fields = [] if content_type is None else [("Content-Type", content_type)]
    line = f"HTTP/1.1 {status} {reason}\r\n".encode("latin-1")
    return line + encode_fields(fields)


def encode_head(
    response: Response,
    date: bytes,
    *,
    content_length: int | None,
    chunked: bool = False,
    connection: bytes = b"",
) -> bytes:
    """Encode the head of a response (RFC 9112 section 4), up to and with its empty line.

    Arguments:
        response: its status and fields.
        date: the line of the ``Date`` field (RFC 9110 section 6.6.1).
        content_length: of the body in bytes; None: no such field.
        chunked: the body will come in chunks.
        connection: the line of the ``Connection`` field, if there is to be one.
    Raises:
        ValueError: something that may not be written out.
    """
    headers = response.headers
    fields = response.fields
    own = response.content_type
    if headers is not None:
        fields += encode_fields(headers.get_all())
        if "Content-Type" in headers:
            own = None
    if fields and _DATE.search(fields):
        date = b""
    start = _first_lines(response.status, response.reason, own)
    start += fields
    if content_length is not None:
        return b"%b%b%bContent-Length: %d\r\n\r\n" % (start, date, connection, content_length)
    framing = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"
    return b"".join((start, date, connection, framing))
