"""Requests as bytes (RFC 9112), the server's half of ``codec``: heads are read, bodies framed.

As there, llhttp judges each head and sees nothing else; the few fields that decide about framing
are found with one regular expression, and the rest stays bytes until somebody looks. What llhttp
lets pass and this room refuses: no ``Host`` or several, versions other than 1.0 and 1.1, transfer
codings besides ``chunked`` and any in HTTP/1.0, heads, targets and numbers of fields without limit,
and more than a few empty lines before a request.

Every refusal knows the status to answer with (``RefusalError.status``).
"""

from __future__ import annotations

import re
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from coro.errors import HTTPInputError
from coro.http.framing import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    ChunkedDecoder,
    Section,
    check_field_count,
    parse_length,
    tokens,
)
from coro.http.headers import HTTPHeaders

__all__ = ["MAX_TARGET_BYTES", "RefusalError", "RequestDecoder", "RequestHead"]

MAX_TARGET_BYTES = 16384

# Longer than any method that is known (RFC 9112 section 3).
_LONG = 65
_LONG_METHOD = re.compile(rb"[!#$%%&'*+\-.^_`|~0-9A-Za-z]{%d}" % _LONG)

# Longer heads are not kept to be compared with the next: an idle connection is to stay small.
_MAX_KNOWN_BYTES = 2048

# Empty lines that may stand before a request: some clients end a body with one (RFC 9112
# section 2.2).
_EMPTY_LINES = 4

_REQUEST_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21\x22\x24-\x7e]+ HTTP/[0-9]\.[0-9]")
# What may follow the first bytes of a target while its line is not complete.
_TARGET_BEGUN = (
    rb"[\x21\x22\x24-\x7e]*+"
    rb"(?: (?:H(?:T(?:T(?:P(?:/(?:[0-9](?:\.(?:[0-9]\r?)?)?)?)?)?)?)?)?)?"
)
_LINE_BEGUN = re.compile(
    rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++(?: (?:[\x21\x22\x24-\x7e]" + _TARGET_BEGUN + rb")?)?"
)
_LINE_GOES_ON = re.compile(_TARGET_BEGUN)

# The fields that decide about the body and the connection.
_FIELDS_OF_INTEREST = re.compile(
    rb"\n([cehtu](?:ontent-length|onnection|xpect|ost|ransfer-encoding|pgrade)):[ \t]*([^\r]*)",
    re.IGNORECASE,
)

# A registered name, or an address literal, and a port (RFC 9110 section 7.2).
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://([^/?#]*)([^#]*)")

# Methods whose requests have a body as a rule (RFC 9110 section 9.3, RFC 5789).
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class RefusalError(HTTPInputError):
    """A request that is answered with an error status, after which the connection is closed.

    Attributes:
        status: the status to answer with.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _check_method(line: bytes | bytearray, limit: int = MAX_TARGET_BYTES) -> None:
    """Refuse a method that is too long, whatever comes after it.

    Raises:
        RefusalError: it is.
    """
    if len(line) >= _LONG and _LONG_METHOD.match(line, 0, limit):
        raise RefusalError(501, f"unknown method {bytes(line[:32])!r}...")


def _parse_request_line(line: bytes) -> tuple[str, str, str]:
    """Read a request line (RFC 9112 section 3): method, target and version.

    Raises:
        RefusalError: it is none of HTTP/1.0 or 1.1.
    """
    _check_method(line)
    if not _REQUEST_LINE.fullmatch(line):
        raise RefusalError(400, f"malformed request line {line[:100]!r}")
    method, target, version = line.decode("ascii").split(" ")
    version = version.removeprefix("HTTP/")
    if version not in ("1.0", "1.1"):
        raise RefusalError(505, f"HTTP/{version} is not spoken here: HTTP/1.0 and 1.1 are")
    if method == "CONNECT":
        well_formed = re.fullmatch(r"[^/?#@]+:[0-9]+", target) is not None
    else:
        well_formed = (
            target[0] == "/"
            or (target == "*" and method == "OPTIONS")
            or _ABSOLUTE.fullmatch(target) is not None
        )
    if not well_formed:
        raise RefusalError(400, f"malformed request target {target[:100]!r} of {method}")
    return method, target, version


class RequestHead:
    """Request line and header fields.

    Attributes:
        raw: the head as received, from the request line to the empty line.
        method: as in "GET".
        target: as received: a path with its query, an absolute URL, ``host:port`` or ``*``.
        http_version: "1.0" or "1.1".
        host: value of ``Host`` (of the URL, if the target is absolute); "" if there is none.
        content_length: value of ``Content-Length``, or None.
        chunked: the body comes in chunks.
        keep_alive: the peer means to keep the connection.
        expects_continue: it waits for 100 before it sends the body (RFC 9110 section 10.1.1).
        upgrade: value of ``Upgrade`` if ``Connection`` names it, else None.
        headers: all fields.
    """

    __slots__ = (
        "_pairs",
        "chunked",
        "content_length",
        "expects_continue",
        "has_body",
        "host",
        "http_version",
        "keep_alive",
        "method",
        "raw",
        "target",
        "upgrade",
    )

    def __init__(self, raw: bytes, line: tuple[str, str, str]) -> None:
        """Read a head that llhttp has accepted.

        Arguments:
            raw: the head.
            line: what its request line says.
        Raises:
            RefusalError: something that llhttp lets pass.
            HTTPInputError: the same, with status 400.
        """
        self.raw = raw
        self._pairs: tuple[tuple[bytes, bytes], ...] | None = None
        self.method, self.target, self.http_version = line
        modern = self.http_version == "1.1"
        self.keep_alive = modern
        self.content_length: int | None = None
        self.chunked = False
        self.expects_continue = False
        host: bytes | None = None
        upgrade: bytes | None = None
        connection: list[bytes] = []
        for name, value in _FIELDS_OF_INTEREST.findall(raw):
            size = len(name)
            if size == 4:
                if host is not None:
                    raise RefusalError(400, "more than one Host field (RFC 9112 section 3.2)")
                host = value.rstrip(b" \t")
            elif size == 14:
                self.content_length = parse_length(value)
            elif size == 10:
                connection += tokens(value)
            elif size == 17:
                self._note_transfer_encoding(value)
            elif size == 6:
                self._note_expectation(value)
            else:
                upgrade = value
        if b"close" in connection:
            self.keep_alive = False
        elif b"keep-alive" in connection:
            self.keep_alive = True
        self.upgrade = (
            upgrade.decode("latin-1").strip(" \t")
            if upgrade is not None and b"upgrade" in connection
            else None
        )
        self.host = self._checked_host(host)
        self.has_body = self.chunked or bool(self.content_length)
        if not modern and self.content_length is None and self.method in _WITH_BODY:
            raise RefusalError(411, f"{self.method} in HTTP/1.0 needs a Content-Length")

    def with_target(self, raw: bytes, target: str) -> RequestHead:
        """Return a head that asks for another path, and is the same otherwise."""
        head = RequestHead.__new__(RequestHead)
        head.raw = raw
        head.target = target
        head._pairs = self._pairs
        head.method = self.method
        head.http_version = self.http_version
        head.keep_alive = self.keep_alive
        head.content_length = self.content_length
        head.chunked = self.chunked
        head.has_body = self.has_body
        head.expects_continue = self.expects_continue
        head.upgrade = self.upgrade
        head.host = self.host
        return head

    def _checked_host(self, host: bytes | None) -> str:
        if host is None:
            if self.http_version == "1.1":
                raise RefusalError(400, "no Host field (RFC 9112 section 3.2)")
            host = b""
        elif not _HOST.fullmatch(host):
            raise RefusalError(400, f"invalid Host {host[:100]!r}")
        absolute = None if self.target.startswith("/") else _ABSOLUTE.fullmatch(self.target)
        if absolute is None or self.method == "CONNECT":
            return host.decode("ascii")
        # The field is to be ignored beside it (RFC 9112 section 3.2.2).
        authority = absolute[1].rpartition("@")[2]
        if not authority or not _HOST.fullmatch(authority.encode("ascii")):
            raise RefusalError(400, f"invalid host in the target {self.target[:100]!r}")
        return authority

    def _note_expectation(self, value: bytes) -> None:
        if value.strip(b" \t").lower() != b"100-continue":
            raise RefusalError(417, f"unknown expectation {value[:100]!r}")
        # HTTP/1.0 knows no interim responses.
        self.expects_continue = self.http_version == "1.1"

    def _note_transfer_encoding(self, value: bytes) -> None:
        """Accept ``chunked``, once, in HTTP/1.1 (RFC 9112 sections 6.1 and 7)."""
        if self.http_version != "1.1":
            raise RefusalError(400, "Transfer-Encoding in HTTP/1.0 (RFC 9112 section 6.1)")
        codings = tokens(value)
        if self.chunked or codings[-1] != b"chunked":
            raise RefusalError(
                400, f"Transfer-Encoding {value[:100]!r} does not end in one chunked"
            )
        if len(codings) > 1:
            raise RefusalError(501, f"unsupported Transfer-Encoding {value[:100]!r}")
        self.chunked = True

    @property
    def path(self) -> str:
        """The target without scheme, host and query."""
        return self.split()[0]

    @property
    def query(self) -> str:
        """What follows the first question mark; "" if there is none."""
        return self.split()[1]

    def split(self) -> tuple[str, str]:
        """Return ``path`` and ``query``."""
        target = self.target
        if not target.startswith("/") and self.method != "CONNECT":
            absolute = _ABSOLUTE.fullmatch(target)
            if absolute is not None:
                target = absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
        path, _, query = target.partition("?")
        return path, query

    @property
    def headers(self) -> HTTPHeaders:
        """All fields: a new object for each who asks, indexed when somebody looks into it."""
        raw = self.raw
        return HTTPHeaders.from_block(raw[raw.find(b"\n") + 1 : -2])

    @property
    def pairs(self) -> tuple[tuple[bytes, bytes], ...]:
        """All fields in their order, the names in lower case."""
        pairs = self._pairs
        if pairs is None:
            lines = [line.partition(b":") for line in self.raw.split(b"\r\n")[1:-2]]
            pairs = tuple((name.lower(), value.strip(b" \t")) for name, _, value in lines)
            self._pairs = pairs
        return pairs

    def __repr__(self) -> str:
        return f"<RequestHead {self.method} {self.target}, {len(self.raw)} bytes>"


class RequestDecoder:
    """Decodes the requests of one connection, one after the other.

        head = decoder.feed(data)           # None: not yet
        while not decoder.complete:
            piece = decoder.feed_body(data)

    What follows a head or a request stays in ``rest``; the next call begins with it.

    Arguments:
        max_header_bytes: limit of a head, and of a trailer section.
        max_headers: limit of the number of fields in either.
        max_target_bytes: limit of the request line.

    Attributes:
        rest: bytes that came after the present request.
        begun: bytes of a head have come, but not all.
        complete: the request has come to its end.
        left: bytes of an announced body (``Content-Length``) that have not come.
    """

    __slots__ = (
        "_chunks",
        "_empty_lines",
        "_known",
        "_line_at",
        "_max_header_bytes",
        "_max_headers",
        "_max_target_bytes",
        "_parser",
        "_section",
        "complete",
        "left",
        "rest",
    )

    _parser: Any  # of the head that _section collects, an HttpRequestParser

    def __init__(
        self,
        max_header_bytes: int = MAX_HEADER_BYTES,
        max_headers: int = MAX_HEADERS,
        max_target_bytes: int = MAX_TARGET_BYTES,
    ) -> None:
        self._max_header_bytes = max_header_bytes
        self._max_headers = max_headers
        self._max_target_bytes = max_target_bytes
        # The last head, which the next one may equal.
        self._known: RequestHead | None = None
        self._section: Section | None = None
        self._parser = None
        self._chunks: ChunkedDecoder | None = None
        self.left = 0
        self._empty_lines = 0
        # How far the target was looked at, while its line is not complete; then -1.
        self._line_at = 0
        self.rest = b""
        self.complete = True

    @property
    def begun(self) -> bool:
        """Whether bytes of a head have come, but not all."""
        return self._section is not None

    def feed(self, data: bytes) -> RequestHead | None:
        """Take in bytes; return the head that they complete, or None: not yet.

        Raises:
            HTTPInputError: what came is no request, or exceeds a limit.
        """
        if self.rest:
            data = self.rest + data
        end = data.find(b"\r\n\r\n") + 4
        known = self._known
        if end >= 4 and self._section is None:
            raw = data[:end]
            if known is not None and known.raw == raw:
                # Most clients send one and the same head on a connection: it was judged.
                self.rest = data[end:]
                return self._begin_body(known)
            end_of_line = raw.find(b"\r\n", 0, self._max_target_bytes)
            if end_of_line > 0 and end <= self._max_header_bytes:
                self.rest = data[end:]
                line = _parse_request_line(raw[:end_of_line])
                if known is not None and _same_fields(known, raw, line, end_of_line):
                    # The next most frequent case: another path, and all else as before.
                    self._known = head = known.with_target(raw, line[1])
                    return self._begin_body(head)
                _ask_llhttp(HttpRequestParser(None), raw, raw)
                return self._judge(raw, line)
        return self._read_head(data)

    def _read_head(self, data: bytes) -> RequestHead | None:
        """Collect a head, in however many pieces; what is not HTTP is refused at once."""
        section = self._section
        if section is None:
            while data.startswith(b"\r\n"):
                data = data[2:]
                self._empty_lines += 1
                if self._empty_lines > _EMPTY_LINES:
                    raise RefusalError(400, f"more than {_EMPTY_LINES} empty lines, no request")
            self.rest = b""
            if not data or data == b"\r":
                self.rest = data
                return None
            section = self._section = Section("request head", self._max_header_bytes)
            self._parser = HttpRequestParser(None)
        before = len(section.seen)
        try:
            found = section.feed(data)
        except HTTPInputError as error:
            # What is wrong before the limit comes first, as if the bytes had come one by one.
            del section.seen[self._max_header_bytes :]
            _ask_llhttp(self._parser, self._check_line(section.seen, before), section.seen)
            raise RefusalError(431, str(error)) from error
        fresh = self._check_line(section.seen, before)
        if found is not None:
            raw, self.rest = found
            fresh = fresh[: len(fresh) - len(self.rest)]
        _ask_llhttp(self._parser, fresh, section.seen)
        if found is None:
            return None
        self._section = self._parser = None
        return self._judge(raw, _parse_request_line(raw[: raw.find(b"\r")]))

    def _judge(self, raw: bytes, line: tuple[str, str, str]) -> RequestHead:
        """Read a head that llhttp has accepted."""
        self._empty_lines = self._line_at = 0
        try:
            check_field_count("request head", raw, self._max_headers)
        except HTTPInputError as error:
            raise RefusalError(431, str(error)) from error
        head = RequestHead(raw, line)
        self._known = head if len(raw) <= _MAX_KNOWN_BYTES else None
        return self._begin_body(head)

    def _check_line(self, seen: bytearray, before: int) -> bytes:
        """Look at the request line; return what llhttp is to see of what came.

        It sees nothing before the line is complete: what it says then would depend on how much of
        a faulty line has come.
        """
        if self._line_at < 0:
            return bytes(seen[before:])
        if not self._line_at:
            _check_method(seen, self._max_target_bytes)
        end = seen.find(b"\n", before, self._max_target_bytes)
        if end < 0:
            self._check_begun_line(seen)
            return b""
        self._line_at = -1
        if seen[end - 1 : end] != b"\r":
            raise RefusalError(400, f"a bare LF ends the line {bytes(seen[: min(end, 100)])!r}")
        _parse_request_line(bytes(seen[: end - 1]))
        return bytes(seen)

    def _check_begun_line(self, seen: bytes | bytearray) -> None:
        """Look at a request line that is not complete; of its target only at what is new."""
        at = self._line_at
        begun = _LINE_GOES_ON if at else _LINE_BEGUN
        if not begun.fullmatch(seen, at, self._max_target_bytes):
            raise RefusalError(400, f"{bytes(seen[:100])!r} is not the beginning of a request")
        if len(seen) > self._max_target_bytes:
            raise RefusalError(
                414, f"request line of over {self._max_target_bytes} bytes, which is the limit"
            )
        if seen[-1:] != b" " and seen.count(b" ", at) == (not at):
            self._line_at = len(seen)

    def _begin_body(self, head: RequestHead) -> RequestHead:
        self.complete = not head.has_body
        if not self.complete:
            self.left = head.content_length or 0
            self._chunks = (
                ChunkedDecoder(self._max_header_bytes, self._max_headers) if head.chunked else None
            )
        elif self._chunks is not None:
            self._chunks = None
        return head

    def feed_body(self, data: bytes) -> bytes:
        """Take in bytes; return those of the body that they complete.

        Raises:
            HTTPInputError: malformed chunks or trailers.
        """
        if self.rest:
            data = self.rest + data
            self.rest = b""
        chunks = self._chunks
        if chunks is not None:
            piece = chunks.feed(data)
            if chunks.done:
                self.complete = True
                self.rest = chunks.surplus
            return piece
        left = self.left
        self.left = max(0, left - len(data))
        if self.left == 0:
            self.complete = True
            self.rest = data[left:]
        return data[:left]

    @property
    def trailers(self) -> HTTPHeaders:
        """The fields after a chunked body; never mixed with those of the head."""
        return HTTPHeaders.from_block(b"" if self._chunks is None else self._chunks.trailers)

    def __repr__(self) -> str:
        return f"<RequestDecoder {'between requests' if self.complete else 'in a body'}>"


def _same_fields(
    known: RequestHead, raw: bytes, line: tuple[str, str, str], end_of_line: int
) -> bool:
    """Whether a head differs from a known one by its path alone: no more need be judged.

    Of a target that is a path, llhttp takes whatever a request line may have.
    """
    method, target, version = line
    return (
        method == known.method
        and version == known.http_version
        and target[0] == known.target[0] == "/"
        and raw[end_of_line:] == known.raw[known.raw.find(b"\r") :]
        and len(raw) <= _MAX_KNOWN_BYTES
    )


def _ask_llhttp(parser: Any, fresh: bytes, seen: bytes | bytearray) -> None:
    """Let llhttp see more of a head.

    Raises:
        RefusalError: it is malformed.
    """
    try:
        parser.feed_data(fresh)
    except HttpParserUpgrade:
        pass
    except HttpParserError as error:
        raise _refusal(error, seen) from error


def _refusal(error: HttpParserError, head: bytes | bytearray) -> RefusalError:
    """Say in coro's own error what llhttp refused."""
    if "method" in str(error).lower():
        return RefusalError(501, f"unknown method {bytes(head[:32]).split()[0]!r}")
    return RefusalError(400, f"malformed request head: {error}")
