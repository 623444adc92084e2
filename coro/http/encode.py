"""Requests as bytes (RFC 9112): nothing is encoded that could be read as more than was meant.

Methods, targets, names and values are checked before the first byte is produced, so that neither a
line end nor a character that some encoder would turn into one can begin a field, or a second
request, of its own. What an ordinary request shares with those before it (``request_block``) is
encoded once and kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from coro.http.framing import NO_TRAILERS, OWN_FIELDS
from coro.http.headers import check_name, check_value

__all__ = [
    "check_trailer",
    "encode_chunk",
    "encode_fields",
    "encode_last_chunk",
    "encode_request",
    "request_block",
]

# Of framing, routing, conditions, credentials, controls and content (RFC 9110 section 6.5.1). Of a
# peer's trailers fewer are refused: the others change nothing where they are kept apart.
_NEVER_TRAILERS = NO_TRAILERS.union(
    ("Connection", "Keep-Alive", "Proxy-Connection", "TE", "Upgrade", "Expect", "Max-Forwards"),
    ("Cache-Control", "Pragma", "Range", "If-Match", "If-Modified-Since", "If-None-Match"),
    ("If-Range", "If-Unmodified-Since", "Authorization", "Proxy-Authorization", "Cookie"),
    ("Proxy-Authenticate", "WWW-Authenticate", "Set-Cookie", "Age", "Date", "Expires"),
    ("Location", "Retry-After", "Vary", "Content-Encoding", "Content-Range", "Content-Type"),
)

_TARGET = re.compile(r"[\x21-\x7e]+")
_HOST = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=%:\[\]]*")


@lru_cache(64)
def _method_prefix(method: str) -> bytes:
    """Return the method and the space after it.

    Raises:
        ValueError: the method is not a token (RFC 9110 section 9.1).
    """
    try:
        check_name(method)
    except ValueError:
        raise ValueError(
            f"invalid HTTP method {method!r}: a method is a token, such as GET"
        ) from None
    return method.encode("ascii") + b" "


@lru_cache(1000)
def _field_prefix(name: str) -> str:
    """Return a field's name as given, its colon and a space."""
    if check_name(name) in OWN_FIELDS:
        raise ValueError(f"{name} is written by the encoder and may not be among the fields")
    return f"{name}: "


@lru_cache(1024)
def request_block(host: str, user_agent: str | None, accept_encoding: str | None) -> bytes:
    """Encode what requests to one host have in common; made once for each combination.

    Arguments:
        host: value of the ``Host`` field: name or address, with the port unless it is the usual.
        user_agent, accept_encoding: values of these fields; None leaves the field out.

    Returns:
        Field lines for ``encode_request``.

    Raises:
        ValueError: a character that may not be written out.
    """
    if not _HOST.fullmatch(host):
        raise ValueError(f"invalid Host {host!r} (RFC 9110 section 7.2)")
    fields = []
    if user_agent is not None:
        fields.append(("User-Agent", user_agent))
    if accept_encoding is not None:
        fields.append(("Accept-Encoding", accept_encoding))
    return b"Host: " + host.encode("ascii") + b"\r\n" + encode_fields(fields)


def encode_fields(fields: Iterable[tuple[str, str]]) -> bytes:
    """Encode header fields, each line ended by CRLF.

    Arguments:
        fields: names and values. Host, Content-Length and Transfer-Encoding are not among them:
            they are arguments of ``request_block`` and ``encode_request``.

    Raises:
        ValueError: a name or a value that may not be written out, or one of those three.
    """
    lines = []
    for name, value in fields:
        check_value(name, value)
        lines.append(f"{_field_prefix(name)}{value}\r\n")
    return "".join(lines).encode("latin-1")


def encode_request(
    method: str,
    target: str,
    block: bytes,
    fields: Iterable[tuple[str, str]] = (),
    *,
    content_length: int | None = None,
    chunked: bool = False,
) -> bytes:
    """Encode the head of a request (RFC 9112 section 3), up to and with its empty line.

    Arguments:
        method: "GET", "POST", ...
        target: path and query, an absolute URL (for a proxy), ``host:port`` (CONNECT) or ``*``.
        block: the result of ``request_block``.
        fields: further fields, as ``encode_fields`` takes them.
        content_length: length of the body in bytes; None if there is no body, or it is chunked.
        chunked: the body will come in chunks.

    Raises:
        ValueError: anything that may not be written out, or both a length and chunks. Nothing
            has been encoded then.
    """
    prefix = _method_prefix(method)
    if not _TARGET.fullmatch(target):
        raise ValueError(
            f"invalid request target {target!r}: spaces, control characters and characters "
            "beyond ASCII have to be percent-encoded"
        )
    start = prefix + target.encode("ascii") + b" HTTP/1.1\r\n" + block
    if not fields and content_length is None and not chunked:
        return start + b"\r\n"
    return start + encode_fields(fields) + _encode_framing(content_length, chunked) + b"\r\n"


def _encode_framing(content_length: int | None, chunked: bool) -> bytes:
    """Encode the field that tells where the body ends (RFC 9112 section 6)."""
    if chunked:
        if content_length is not None:
            raise ValueError("a body has either a Content-Length or chunks, not both")
        return b"Transfer-Encoding: chunked\r\n"
    if content_length is None:
        return b""
    if content_length < 0:
        raise ValueError(f"Content-Length cannot be negative: {content_length}")
    return b"Content-Length: %d\r\n" % content_length


def encode_chunk(data: bytes | bytearray | memoryview) -> bytes:
    """Encode a piece of a chunked body (RFC 9112 section 7.1).

    An empty piece gives no bytes at all: a chunk without data would end the body.
    """
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    return b"".join((b"%x\r\n" % size, data, b"\r\n")) if size else b""


def check_trailer(name: str) -> str:
    """Return a field's name in canonical form, if it may come after a body.

    Raises:
        ValueError: it is not a name, or its field has to be known before (RFC 9110 section 6.5.1).
    """
    canonical = check_name(name)
    if canonical in _NEVER_TRAILERS:
        raise ValueError(f"{name} is not allowed in trailers (RFC 9110 section 6.5.1)")
    return canonical


def encode_last_chunk(trailers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Encode the end of a chunked body, with the fields that follow it (RFC 9112 section 7.1.2).

    Raises:
        ValueError: a field that may not be written out, or not in a trailer section.
    """
    pairs = list(trailers)
    for name, _ in pairs:
        check_trailer(name)
    return b"0\r\n" + encode_fields(pairs) + b"\r\n"
