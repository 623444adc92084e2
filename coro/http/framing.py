"""Where the parts of an HTTP/1.1 message end (RFC 9112): pure bytes, the same for both sides.

A *section* is a head or the trailers: lines up to an empty one. A *chunked body* is a row of
pieces, each announced by a line with its size, and a trailer section at the end. Both come from
the network in arbitrary pieces; how they were cut never changes what comes out, and every part
that has to be kept until it is complete has a limit.
"""

from __future__ import annotations

import re

from coro.errors import HTTPInputError
from coro.http.headers import canonical_name, is_field_block

__all__ = [
    "MAX_HEADERS",
    "MAX_HEADER_BYTES",
    "MAX_TRAILER_BYTES",
    "NO_TRAILERS",
    "OWN_FIELDS",
    "ChunkedDecoder",
    "Section",
    "check_field_count",
    "parse_length",
    "tokens",
    "too_long",
]

MAX_HEADER_BYTES = 65536
MAX_HEADERS = 256
MAX_TRAILER_BYTES = 65536

# What decides where a message goes and where it ends: encoders write these themselves, from
# arguments. A second Host or length among a caller's own fields is how one request becomes two.
OWN_FIELDS = frozenset({"Host", "Content-Length", "Transfer-Encoding"})

# What may not come after the body, where it would be too late (RFC 9110 section 6.5.1).
NO_TRAILERS = OWN_FIELDS | {"Trailer"}

_END_OF_SECTION = b"\r\n\r\n"
_MIN_FIELD_BYTES = 4  # "a:" and CRLF: a section can have no more fields than its bytes allow.
_MAX_CHUNK_LINE = 1024
_USUAL_CHUNK_LINE = 32  # Longer ones have extensions, which nobody reads.
_MAX_CHUNK_OVERHEAD = 16 * 1024


# --- sections: heads and trailers ----------------------------------------------------------


class Section:
    """Collects bytes up to and with an empty line, however they are cut, in linear time.

    Arguments:
        what: name of the section, for errors.
        max_bytes: limit for the whole section.
        seed: bytes that stand before the section and belong to what ends it.
    """

    __slots__ = ("_limit", "_what", "seen")

    def __init__(self, what: str, max_bytes: int, seed: bytes = b"") -> None:
        self._what = what
        self._limit = max_bytes + len(seed)
        self.seen = bytearray(seed)

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Take in bytes; return the section (seed included) and what follows it, or None: not yet.

        Raises:
            HTTPInputError: the section is longer than its limit.
        """
        seen = self.seen
        before = len(seen)
        seen += data
        end = seen.find(_END_OF_SECTION, max(0, before - 3))
        size = len(seen) if end < 0 else end + len(_END_OF_SECTION)
        if size > self._limit:
            raise too_long(self._what, size, self._limit, seen)
        if end < 0:
            return None
        return bytes(seen[:size]), data[size - before :]


def too_long(what: str, size: int, limit: int, section: bytes | bytearray = b"") -> HTTPInputError:
    """Return the error for a part of a message that is too long; of a section, name what is."""
    text = f"{what} of {size} bytes or more: the limit is {limit} bytes"
    longest = max(section.split(b"\r\n")[1:], key=len, default=b"")
    name, colon, _ = longest.partition(b":")
    if colon:
        text = f"{text}; its longest field is {name[:100].decode('latin-1')!r} ({len(longest)})"
    return HTTPInputError(text)


def check_field_count(what: str, section: bytes, max_headers: int) -> None:
    """Refuse a section of more fields than allowed; short sections are not counted at all.

    Raises:
        HTTPInputError: too many fields.
    """
    if len(section) > max_headers * _MIN_FIELD_BYTES:
        count = section.count(b"\r\n") - 2  # The line before the fields, and the empty one.
        if count > max_headers:
            raise HTTPInputError(f"{what} of {count} fields: the limit is {max_headers}")


def parse_length(value: bytes) -> int:
    """Read a ``Content-Length`` that llhttp has accepted.

    int() alone is not safe: it refuses numbers of thousands of digits, zeros among them, with an
    error of its own.
    """
    digits = value if value.isdigit() else value.rstrip(b" \t")
    if len(digits) > 19 or not digits.isdigit():
        raise HTTPInputError(f"invalid Content-Length {value[:100]!r}")
    return int(digits)


def tokens(value: bytes) -> list[bytes]:
    """Split a list of tokens (RFC 9110 section 5.6.1), in lower case."""
    return [token.strip(b" \t") for token in value.lower().split(b",")]


# --- chunked bodies ------------------------------------------------------------------------

# A chunk's line is matched together with the CRLF that ends the data before it, so that there is
# one state fewer: the first line is given a CRLF of its own (RFC 9112 section 7.1).
_CHUNK_LINE = re.compile(
    rb"\r\n([0-9A-Fa-f]{1,15})"
    rb"(?:[ \t]*+;[ \t]*+[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
    rb"(?:[ \t]*+=[ \t]*+(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
    rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"))?)*+'
    rb"\r\n"
)
_CHUNK_LINE_BEGUN = re.compile(
    rb"\r(?:\n(?:[0-9A-Fa-f]{1,15}(?:[ \t;][\t\x20-\x7e\x80-\xff]*+)?\r?)?)?"
)


class ChunkedDecoder:
    """Takes the chunks out of a body (RFC 9112 section 7.1), for responses and requests alike.

    Arguments:
        max_trailer_bytes, max_trailers: limits of the trailer section.

    Attributes:
        done: the body and its trailer section are complete.
        trailers: the trailer fields as received, each line ended by CRLF.
        surplus: what came after the end.
    """

    __slots__ = (
        "_begun_line",
        "_left",
        "_max_trailer_bytes",
        "_max_trailers",
        "_overhead",
        "_section",
        "done",
        "surplus",
        "trailers",
    )

    def __init__(
        self, max_trailer_bytes: int = MAX_TRAILER_BYTES, max_trailers: int = MAX_HEADERS
    ) -> None:
        # Of these two at most one is not empty: what comes next is either a chunk's data or a line.
        self._left = 0  # bytes of the current chunk's data that are still to come
        self._begun_line = b"\r\n"  # a chunk's line, as far as it has come
        self._overhead = 0  # bytes of long lines that the data does not make up for
        self._section: Section | None = None  # the trailers, while they are read
        self._max_trailer_bytes = max_trailer_bytes
        self._max_trailers = max_trailers
        self.done = False
        self.trailers = b""
        self.surplus = b""

    @property
    def in_trailers(self) -> bool:
        """Whether the body is complete, but not the trailer section."""
        return self._section is not None

    def feed(self, data: bytes) -> bytes:
        """Take in bytes of the encoded body; return the bytes of the body that they complete.

        All chunks of one piece come out joined, so that a flood of tiny chunks costs neither
        objects nor calls further up.

        Raises:
            HTTPInputError: malformed chunks or trailers.
        """
        if self._left >= len(data):
            self._left -= len(data)
            return data
        if self._section is not None:
            self._feed_trailers(self._section, data)
            return b""
        if self.done:
            self.surplus += data
            return b""
        return self._split(data)

    def _split(self, data: bytes) -> bytes:
        """Walk over lines and data; leave what is unfinished for the next piece."""
        data = self._begun_line + data
        self._begun_line = b""
        left, at, pieces = self._left, 0, []
        while True:
            piece = data[at : at + left]
            pieces.append(piece)
            at += len(piece)
            left -= len(piece)
            if at == len(data):
                break
            line = _CHUNK_LINE.match(data, at)
            if line is None:
                self._begun_line = _begun_line(data[at : at + _MAX_CHUNK_LINE + 1])
                break
            size = line.end() - at
            at += size
            left = int(line[1], 16)
            if size > _USUAL_CHUNK_LINE:
                self._check_long_line(size, left)
            if left == 0:
                self._begin_trailers(data[at:])
                break
        self._left = left
        return b"".join(pieces)

    def _check_long_line(self, size: int, left: int) -> None:
        """Refuse extensions that are too long, or many and longer than the data between them."""
        _check_line(size)
        self._overhead = max(0, self._overhead + size - left)
        if self._overhead > _MAX_CHUNK_OVERHEAD:
            raise too_long("lines of chunks", self._overhead, _MAX_CHUNK_OVERHEAD)

    def _begin_trailers(self, data: bytes) -> None:
        """Expect the trailer section; usually it is the empty line alone."""
        if data.startswith(b"\r\n"):
            self.done = True
            self.surplus = data[2:]
            return
        # The last chunk's line ends in CRLF: counting it in, the section ends like any other, also
        # if nothing but the empty line follows.
        self._section = Section("trailer section", self._max_trailer_bytes, seed=b"\r\n")
        self._feed_trailers(self._section, data)

    def _feed_trailers(self, section: Section, data: bytes) -> None:
        """Collect the trailer section, check it, and tell what follows it."""
        found = section.feed(data)
        if found is None:
            return
        whole, self.surplus = found
        self._section = None
        check_field_count("trailer section", whole, self._max_trailers)
        self.trailers = whole[2:-2]
        _check_trailers(self.trailers)
        self.done = True


def _begun_line(rest: bytes) -> bytes:
    """Return the beginning of a chunk's line, having checked that it can be one.

    Raises:
        HTTPInputError: whatever may follow, this is no chunk.
    """
    if not _CHUNK_LINE_BEGUN.fullmatch(rest):
        raise HTTPInputError(f"malformed chunk: {rest[:100]!r} where a chunk's end and size belong")
    _check_line(len(rest))
    return rest


def _check_line(size: int) -> None:
    if size > _MAX_CHUNK_LINE:
        raise too_long("line of a chunk", size, _MAX_CHUNK_LINE)


def _check_trailers(block: bytes) -> None:
    """Refuse trailers that are malformed, or that belong into the head.

    Raises:
        HTTPInputError: such a field.
    """
    if not is_field_block(block):
        raise HTTPInputError(f"malformed trailers {block[:100]!r} (RFC 9112 section 7.1.2)")
    for line in block.split(b"\r\n"):
        name = canonical_name(line.partition(b":")[0].decode("ascii"))
        if name in NO_TRAILERS:
            raise HTTPInputError(f"{name} is not allowed in trailers (RFC 9110 section 6.5.1)")
