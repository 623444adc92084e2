"""HTTP/1.1 as bytes (RFC 9112), without I/O: responses are decoded here, requests in ``encode``.

Theory of operation. Two parties read a response. ``httptools`` (llhttp) judges each head: it is
strict, and refuses what has been used for request smuggling, from a bare LF to a second
``Content-Length``. Everything after the head - where the body ends, chunks, trailers, surplus - is
framed here, and llhttp never sees it. The reasons:

- httptools does not tell where in the bytes a message ended. What follows a response must be known
  to the byte: it makes the connection unusable, or, after 101 and CONNECT, belongs to another
  protocol. An error in those bytes would also hide the response before them.
- It cannot be told that a response to HEAD has no body, and it mixes trailers with headers.
- Without callbacks it takes 0.3 us for a head of nine fields, with them 1.4 us. So nobody is called
  per field: the few fields that matter to framing are found with one regular expression, and the
  rest stays one bytes object that ``HTTPHeaders`` takes apart if somebody looks.

A head is given to a parser made for it alone: that costs 0.2 us, and no state of one message can
reach the next. Since llhttp has accepted the head, the regular expressions may rely on its rules:
lines end in CRLF, CR, LF and NUL occur nowhere else, no space stands before a colon, no line is
folded. What llhttp lets pass and this room refuses: versions other than 1.0 and 1.1 (and RTSP),
empty lines before the head, status codes below 100, control characters in the reason, transfer
codings besides ``chunked``, any transfer coding in HTTP/1.0 and heads without limit.

Cutting the input into pieces never changes the outcome. Every byte of a head goes to llhttp as it
comes, so that what is not HTTP is refused at once and not when its sender gives up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from coro.errors import HTTPInputError
from coro.http.encode import (
    encode_chunk,
    encode_fields,
    encode_last_chunk,
    encode_request,
    request_block,
)
from coro.http.framing import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    ChunkedDecoder,
    Section,
    check_field_count,
    parse_length,
    tokens,
    too_long,
)
from coro.http.headers import HTTPHeaders

__all__ = [
    "MAX_HEADERS",
    "MAX_HEADER_BYTES",
    "MAX_INTERIM_RESPONSES",
    "ResponseDecoder",
    "ResponseHead",
    "Truncation",
    "encode_chunk",
    "encode_fields",
    "encode_last_chunk",
    "encode_request",
    "request_block",
]

MAX_INTERIM_RESPONSES = 16


# --- the head of a response ----------------------------------------------------------------


_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_STATUS_LINE_STARTS = (b"HTTP/1.1 ", b"HTTP/1.0 ")

# Methods whose responses have another body than their heads say (RFC 9112 section 6.3).
_OTHER_BODIES = frozenset({"HEAD", "CONNECT"})

# The fields that decide about the body and the connection, and those a client looks at in every
# response. One search for all of them costs as much as a search for one that is absent.
_FIELDS_OF_INTEREST = re.compile(
    rb"\n([cst](?:ontent-(?:length|encoding)|onnection|et-cookie|ransfer-encoding))"
    rb":[ \t]*([^\r]*)",
    re.IGNORECASE,
)


@lru_cache(64)
def _parse_status_line(line: bytes) -> tuple[str, int, str]:
    """Read a status line (RFC 9112 section 4); the same few lines come again and again.

    Returns:
        Version, status and reason.

    Raises:
        HTTPInputError: not a status line of HTTP/1.0 or 1.1.
    """
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise HTTPInputError(f"invalid status line {line[:100]!r} (RFC 9112 section 4)")
    version, status, reason = match.groups(default=b"")
    return version.decode("ascii"), int(status), reason.decode("latin-1")


class ResponseHead:
    """Status line and header fields of a response, final or interim.

    Attributes:
        raw: the head as received, from the status line to the empty line.
        http_version: "1.0" or "1.1".
        status: as in 200.
        reason: the text after the status; may be empty.
        content_length: value of ``Content-Length``, or None; a response to HEAD may have one too.
        content_encoding: value of ``Content-Encoding``, or None.
        chunked: the body comes in chunks.
        keep_alive: the peer means to keep the connection: HTTP/1.1 and no ``Connection: close``.
        has_cookies: there is a ``Set-Cookie``.
        usual: a success whose body is not coded: there is nothing to do but to collect it.
        whole: bytes of the whole response, if its length is told and nothing but the request's
            method can mean that it has no body; else -1.
        headers: all fields.
    """

    __slots__ = (
        "chunked",
        "content_encoding",
        "content_length",
        "has_cookies",
        "http_version",
        "keep_alive",
        "raw",
        "reason",
        "status",
        "usual",
        "whole",
    )

    def __init__(self, raw: bytes) -> None:
        """Read a head that llhttp has accepted.

        Raises:
            HTTPInputError: something that llhttp lets pass.
        """
        self.raw = raw
        line = raw[: raw.find(b"\r")]
        self.http_version, self.status, self.reason = _parse_status_line(line)
        self.keep_alive = self.http_version == "1.1"
        self.content_length: int | None = None
        self.content_encoding: str | None = None
        self.chunked = False
        self.has_cookies = False
        for name, value in _FIELDS_OF_INTEREST.findall(raw):
            size = len(name)  # Tells them apart at no cost, but for the two of ten letters.
            if size == 14:
                self.content_length = parse_length(value)
            elif size == 10:
                if value != b"keep-alive":
                    self._note_connection_or_cookie(name, value)
            elif size == 16:
                self._note_content_encoding(value)
            else:
                self._note_transfer_encoding(value)
        self.usual = 200 <= self.status < 300 and self.content_encoding is None
        self.whole = -1
        if self.content_length is not None and self.status >= 200:
            if self.status != 204 and self.status != 304:
                self.whole = len(raw) + self.content_length

    def _note_connection_or_cookie(self, name: bytes, value: bytes) -> None:
        if name[0] in b"sS":
            self.has_cookies = True
        elif b"close" in tokens(value):
            self.keep_alive = False

    def _note_content_encoding(self, value: bytes) -> None:
        """Take in a content coding; a further one was applied after it (RFC 9110 section 8.4)."""
        coding = value.decode("latin-1").rstrip(" \t")
        before = self.content_encoding
        self.content_encoding = coding if before is None else f"{before}, {coding}"

    def _note_transfer_encoding(self, value: bytes) -> None:
        """Accept ``chunked``, once, in HTTP/1.1 (RFC 9112 sections 6.1 and 7)."""
        if self.http_version != "1.1":
            raise HTTPInputError("Transfer-Encoding in HTTP/1.0 (RFC 9112 section 6.1)")
        if self.chunked or value.strip(b" \t").lower() != b"chunked":
            raise HTTPInputError(
                f"unsupported Transfer-Encoding {value[:100]!r}: only 'chunked', once, is known"
            )
        self.chunked = True

    @property
    def headers(self) -> HTTPHeaders:
        """All fields: a new object for each who asks, indexed when somebody looks into it."""
        raw = self.raw
        return HTTPHeaders.from_block(raw[raw.find(b"\n") + 1 : -2])

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} {self.reason}, {len(self.raw)} bytes>"


def _refusal(error: HttpParserError, head: bytes | bytearray) -> HTTPInputError:
    """Say in coro's own error what llhttp refused."""
    if head[9:12] == b"101":
        # llhttp stops for an upgrade in any 101, also where it does not know to what.
        return HTTPInputError(
            "101 without both 'Connection: upgrade' and an Upgrade field (RFC 9110 section 15.2.2)"
        )
    return HTTPInputError(f"malformed response head: {error}")


# --- the decoder ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Truncation:
    """How far a response had come when the connection ended too early.

    Attributes:
        part: "nothing" (not one byte had come), "head", "body" or "trailers".
        received: bytes of the body that had come.
        expected: bytes of the body that were announced, or None.
    """

    part: str
    received: int
    expected: int | None

    def __str__(self) -> str:
        if self.part == "nothing":
            return "the connection ended before the response began"
        text = f"the connection ended in the {self.part} of the response"
        if self.part != "body":
            return text
        announced = "" if self.expected is None else f" of {self.expected}"
        return f"{text}, after {self.received}{announced} bytes"


class ResponseDecoder:
    """Decodes the responses of one connection, one after the other.

        decoder.begin("GET")
        while not decoder.feed(data):
            data = ... more from the network; at its end: decoder.eof() ...
        decoder.head.status, decoder.body, decoder.reusable

    Arguments:
        max_header_bytes: limit of a head, and of a trailer section.
        max_headers: limit of the number of fields in either.

    Attributes:
        head: the final response's head, or None: not yet.
        body_bytes: how many bytes of the body have come, transfer coding removed.
        bytes_received: how many bytes of any kind have come since ``begin``.
        reusable: the response is complete, and the connection may carry another request (RFC 9112
            section 9.3).
        upgraded: the connection has left HTTP: a 101, or a 2xx to CONNECT.
        surplus: what came after the response: after 101, or 2xx to CONNECT, the first bytes of
            the other protocol; after any other a fault of the peer.
    """

    # _step is the state: the function that takes the next bytes. It is held unbound, since a bound
    # method of the decoder inside the decoder would be a cycle.
    __slots__ = (
        "_chunks",
        "_known",
        "_left",
        "_method",
        "_on_interim",
        "_parser",
        "_persistent",
        "_pieces",
        "_section",
        "_step",
        "body_bytes",
        "bytes_received",
        "head",
        "interim",
        "max_header_bytes",
        "max_headers",
        "reusable",
        "surplus",
        "upgraded",
    )

    head: ResponseHead | None
    _known: ResponseHead | None  # the last final head, which the next one may equal
    _chunks: ChunkedDecoder | None
    _on_interim: Callable[[ResponseHead], object] | None
    _parser: HttpResponseParser  # of the head that _section collects
    _pieces: list[bytes]
    _section: Section | None
    _step: Callable[[ResponseDecoder, bytes], bool]

    def __init__(
        self, max_header_bytes: int = MAX_HEADER_BYTES, max_headers: int = MAX_HEADERS
    ) -> None:
        self.max_header_bytes = max_header_bytes
        self.max_headers = max_headers
        self.surplus = b""
        self.bytes_received = self.body_bytes = 0
        self.head = self._known = self._section = self._chunks = None
        self._pieces = []
        self.upgraded = self.reusable = self._persistent = False
        self._step = _AFTER_END

    def begin(
        self,
        method: str = "GET",
        on_interim: Callable[[ResponseHead], object] | None = None,
    ) -> None:
        """Expect the response to a request.

        Arguments:
            method: the request's, which decides whether its response has a body.
            on_interim: called with each interim (1xx) head.

        Raises:
            RuntimeError: the response before this one has not ended well.
        """
        if self._step is not _AFTER_END or self.surplus:
            raise RuntimeError("a new response on a connection that is not at a response's end")
        self._method = method
        self._on_interim = on_interim
        self.body_bytes = self.bytes_received = self.interim = 0
        self.upgraded = self.reusable = False
        if self.head is not None:
            self.forget()
        self._step = _READ_HEAD

    def feed(self, data: bytes) -> bool:
        """Take in bytes as received; tell whether the response is complete: False means not yet.

        Exceptions of the callables pass through; the decoder is of no use then.

        Raises:
            HTTPInputError: what came is not HTTP/1.1, or exceeds a limit.
        """
        self.bytes_received += len(data)
        known = self._known
        try:
            if (
                known is not None
                and self._step is _READ_HEAD
                and self._section is None
                and data.startswith(known.raw)
            ):
                # Servers answer a kept connection with the very head of the time before, for only
                # the date in it changes, once a second: it was judged, and has been read.
                self.head = known
                body = data[len(known.raw) :]
                if len(data) != known.whole or self._method in _OTHER_BODIES:
                    return self._begin_body(known, body)
                # The usual response: it came in one piece.
                self.reusable = known.keep_alive
                if body:
                    self.body_bytes = len(body)
                    self._pieces = [body]
                self._on_interim = None
                self._step = _AFTER_END
                return True
            return self._step(self, data)
        except BaseException:
            self._step = ResponseDecoder._after_fault
            raise

    def eof(self) -> Truncation | None:
        """Take note that the connection has ended.

        Returns:
            None if the response is complete (which, without a length, only the end tells), else
            what is missing.
        """
        step = self._step
        if step is ResponseDecoder._read_until_close:
            self._end(b"")
            return None
        if step is _AFTER_END:
            return None
        if not self.bytes_received:
            part = "nothing"
        elif self.head is None:
            part = "head"
        elif self._chunks is not None and self._chunks.in_trailers:
            part = "trailers"
        else:
            part = "body"
        expected = None if self.head is None else self.head.content_length
        return Truncation(part, self.body_bytes, expected)

    @property
    def complete(self) -> bool:
        """Whether the response has come to its end."""
        return self._step is _AFTER_END

    @property
    def body(self) -> bytes:
        """The body, as far as it has come and was not taken."""
        pieces = self._pieces
        if len(pieces) > 1:
            pieces[:] = [b"".join(pieces)]
        return pieces[0] if pieces else b""

    def take_pieces(self) -> list[bytes]:
        """Return the pieces of the body that came since the last call, and forget them."""
        pieces, self._pieces = self._pieces, []
        return pieces

    @property
    def trailers(self) -> HTTPHeaders:
        """The fields after a chunked body; never mixed with those of the head."""
        return HTTPHeaders.from_block(b"" if self._chunks is None else self._chunks.trailers)

    def forget(self) -> bytes:
        """Drop the response that was read: an idle connection need not keep a body in memory.

        Returns:
            The body, as far as it was not taken.
        """
        pieces = self._pieces
        self._pieces = []
        self.head = self._chunks = None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def __repr__(self) -> str:
        state = self._step.__name__.lstrip("_").replace("_", " ")
        return f"<ResponseDecoder {state}, {self.bytes_received} bytes received>"

    # What follows are the states: each takes the next bytes and tells whether the response is
    # complete. They come in the order in which a response passes through them.

    def _read_head(self, data: bytes) -> bool:
        """Expect a head. The usual one comes in one piece, and is not copied into a buffer."""
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or self._section is not None:
            return self._read_split_head(data)
        if end > self.max_header_bytes:
            raise too_long("response head", end, self.max_header_bytes, data[:end])
        raw = data[:end]
        _judge(HttpResponseParser(None), raw, raw)
        return self._take_head(raw, data[end:])

    def _read_split_head(self, data: bytes) -> bool:
        """Collect a head that comes in several pieces; what is not HTTP is refused at once."""
        section = self._section
        if section is None:
            section = self._section = Section("response head", self.max_header_bytes)
            self._parser = HttpResponseParser(None)
        found = section.feed(data)
        fresh = data if found is None else data[: len(data) - len(found[1])]
        _check_start(section.seen[:9])
        _judge(self._parser, fresh, section.seen)
        if found is None:
            return False
        self._section = None
        return self._take_head(*found)

    def _take_head(self, raw: bytes, rest: bytes) -> bool:
        """Read a head that is complete; an interim one is followed by another head."""
        check_field_count("response head", raw, self.max_headers)
        head = ResponseHead(raw)
        if head.status >= 200 or head.status == 101:
            self.head = head
            self._known = head
            return self._begin_body(head, rest)
        self.interim += 1
        if self.interim > MAX_INTERIM_RESPONSES:
            raise HTTPInputError(f"more than {MAX_INTERIM_RESPONSES} interim (1xx) responses")
        if self._on_interim is not None:
            self._on_interim(head)
        return self._read_head(rest) if rest else False

    def _begin_body(self, head: ResponseHead, rest: bytes) -> bool:
        """Find out where the body ends (RFC 9112 section 6.3)."""
        method, status = self._method, head.status
        self._persistent = head.keep_alive
        if status == 101 or (method == "CONNECT" and status < 300):
            self._persistent = False
            self.upgraded = True
            return self._end(rest)
        if method == "HEAD" or status == 204 or status == 304:
            return self._end(rest)
        if head.content_length is not None:
            self._left = head.content_length
            self._step = ResponseDecoder._read_length
            return self._read_length(rest)
        if head.chunked:
            self._chunks = ChunkedDecoder(self.max_header_bytes, self.max_headers)
            self._step = ResponseDecoder._read_chunks
            return self._read_chunks(rest)
        self._persistent = False
        self._step = ResponseDecoder._read_until_close
        return self._read_until_close(rest)

    def _read_length(self, data: bytes) -> bool:
        """Take the rest of a body whose length is known."""
        left = self._left = self._left - len(data)
        if left > 0:
            self._deliver(data)
            return False
        if left == 0:
            self._deliver(data)
            return self._end(b"")
        self._deliver(data[:left])
        return self._end(data[left:])

    def _read_chunks(self, data: bytes) -> bool:
        """Take the next of a chunked body, or of the trailers after it."""
        chunks = self._chunks
        assert chunks is not None, "the state says that there are chunks"
        self._deliver(chunks.feed(data))
        return self._end(chunks.surplus) if chunks.done else False

    def _read_until_close(self, data: bytes) -> bool:
        """Take the next of a body that ends with the connection."""
        self._deliver(data)
        return False

    def _after_end(self, data: bytes) -> bool:
        """Keep what comes after a response, or with none expected."""
        if data:
            self.surplus += data
            self.reusable = False
        return True

    def _after_fault(self, data: bytes) -> bool:
        """Refuse to go on: where the next message would begin is not known."""
        raise HTTPInputError("more bytes after malformed ones")

    def _deliver(self, piece: bytes) -> None:
        """Keep a piece of the body until it is taken."""
        if piece:
            self.body_bytes += len(piece)
            self._pieces.append(piece)

    def _end(self, surplus: bytes) -> bool:
        """Note that the response is complete, and let go of whoever was told about it."""
        self.surplus = surplus
        self.reusable = self._persistent and not surplus
        self._on_interim = None
        self._step = _AFTER_END
        return True


# The states in which nearly each response begins and ends, at hand.
_READ_HEAD = ResponseDecoder._read_head
_AFTER_END = ResponseDecoder._after_end


def _judge(parser: HttpResponseParser, fresh: bytes, head: bytes | bytearray) -> None:
    """Let llhttp judge the next bytes of a head.

    Arguments:
        parser: one made for this head.
        fresh: the bytes that it has not seen.
        head: the head from its beginning, as far as it has come.

    Raises:
        HTTPInputError: it is malformed.
    """
    try:
        parser.feed_data(fresh)
    except HttpParserUpgrade:
        pass  # A 101: from here on the bytes belong to another protocol.
    except HttpParserError as error:
        raise _refusal(error, head) from error


def _check_start(start: bytearray) -> None:
    """Refuse at once what can never become the status line of HTTP/1.0 or 1.1.

    Raises:
        HTTPInputError: the first bytes are others.
    """
    if not any(wanted.startswith(start) for wanted in _STATUS_LINE_STARTS):
        raise HTTPInputError(f"{bytes(start)!r} is not the beginning of an HTTP/1.1 response")
