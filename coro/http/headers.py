"""HTTP header fields: a case-insensitive dictionary that keeps repeated fields apart.

Most responses have nine or more fields of which the caller looks at one or two, and many callers
look at none. So a block of fields from the wire is kept as the bytes that were received
(``HTTPHeaders.from_block``), and is taken apart the first time somebody looks. Whoever hands in
wire bytes vouches for their syntax (the codec has checked them); everything that enters by another
way is checked here, because it may be written to a peer later.

Values are text in the sense of RFC 9110 section 5.5: ASCII, or bytes 0x80-0xFF that nobody gave a
meaning, which are carried through latin-1 unharmed.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from time import struct_time
from typing import Any, TypeAlias, TypeVar, overload

from coro.errors import HTTPInputError

__all__ = [
    "SECRET_FIELDS",
    "HTTPHeaders",
    "HeaderSource",
    "InvalidHeaderError",
    "canonical_name",
    "check_name",
    "check_value",
    "format_timestamp",
    "is_field_block",
]

_TCHAR = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TEXT = r"[\t\x20-\x7e\x80-\xff]"
_TOKEN = re.compile(rf"{_TCHAR}+")
_VALUE = re.compile(rf"{_TEXT}*")
_FIELD_BLOCK = re.compile(rf"(?:{_TCHAR}++:{_TEXT}*+\r\n)*+".encode("latin-1"))

T = TypeVar("T")

_NO_DEFAULT: Any = object()

_WHITESPACE = " \t"  # OWS, RFC 9110 section 5.6.3: str.strip() alone would take far more.
SECRET_FIELDS = frozenset({"Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie"})


class InvalidHeaderError(HTTPInputError, ValueError):
    """A header field that RFC 9110 does not allow: received from a peer, or about to be sent."""


# --- names and values ----------------------------------------------------------------------


# The same few names come again and again; but those of a peer that means no good may be as long as
# a head, and are not kept.
_KEPT_NAMES = 1000
_LONGEST_KEPT_NAME = 100


class _CanonicalNames(dict[str, str]):
    """By field names as they came: as they are customarily written."""

    def __missing__(self, name: str) -> str:
        written = "-".join([word.capitalize() for word in name.split("-")])
        if len(name) <= _LONGEST_KEPT_NAME:
            if len(self) == _KEPT_NAMES:
                self.clear()
            self[name] = written
        return written


_canonical_names = _CanonicalNames()

# Write a field name as it is customarily written: ``coNtent-TYPE`` -> ``Content-Type``.
canonical_name = _canonical_names.__getitem__


@lru_cache(1000)
def check_name(name: str) -> str:
    """Return the customary writing of a field name, having checked it.

    Raises:
        InvalidHeaderError: the name is not a token (RFC 9110 section 5.6.2).
    """
    if not _TOKEN.fullmatch(name):
        raise InvalidHeaderError(
            f"invalid header name {name!r}: it may hold ASCII letters, digits and "
            "!#$%&'*+-.^_`|~ only (RFC 9110 section 5.6.2)"
        )
    return canonical_name(name)


def check_value(name: str, value: str) -> None:
    """Make sure that a field value can be written out as it stands.

    A character above U+00FF is refused rather than encoded somehow: that of U+010A, for one, would
    become a line feed in an encoder that drops high bytes.

    Raises:
        InvalidHeaderError: the value has a control character, or one beyond latin-1
            (RFC 9110 section 5.5).
    """
    if value.isascii() and value.isprintable():
        return
    if not _VALUE.fullmatch(value):
        raise InvalidHeaderError(
            f"invalid value {value!r} of header {name!r}: control characters (CR, LF and NUL among "
            "them) and characters beyond latin-1 are not allowed (RFC 9110 section 5.5)"
        )


def is_field_block(block: bytes) -> bool:
    """Tell whether the bytes are field lines, each ended by CRLF, and nothing else."""
    return _FIELD_BLOCK.fullmatch(block) is not None


def format_timestamp(when: float | datetime | struct_time | tuple[int, ...]) -> str:
    """Write a moment as an HTTP date (RFC 9110 section 5.6.7).

    Arguments:
        when: seconds since the epoch, a datetime (without a zone: UTC), or a UTC time tuple.

    >>> format_timestamp(1359312200)
    'Sun, 27 Jan 2013 18:43:20 GMT'
    """
    if isinstance(when, datetime):
        moment = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        return formatdate(moment.timestamp(), usegmt=True)
    if isinstance(when, tuple):
        return formatdate(timegm(when), usegmt=True)
    return formatdate(when, usegmt=True)


# --- the dictionary ------------------------------------------------------------------------


class HTTPHeaders(MutableMapping[str, str]):
    """Header fields by name, in any case of letters; a repeated field keeps each of its values.

    ``headers[name]`` joins the values of a repeated field with commas (RFC 9110 section 5.3);
    ``get_list`` gives them one by one, as ``Set-Cookie`` needs.

    Arguments:
        source: another ``HTTPHeaders``, a mapping, or pairs of name and value. A name that is
            repeated in a mapping (in another case of letters) keeps the last value, a name
            repeated in pairs keeps all of them.
        fields: further fields by keyword.

    Raises:
        InvalidHeaderError: a name or a value that may not be written out.
        TypeError: a value that is not text.

    >>> h = HTTPHeaders({"content-type": "text/html"})
    >>> h.add("Set-Cookie", "A=B")
    >>> h.add("Set-Cookie", "C=D")
    >>> h["set-cookie"]
    'A=B,C=D'
    >>> h.get_list("set-cookie")
    ['A=B', 'C=D']
    """

    # Either _raw holds what was received and _fields is None, or _fields holds everything and
    # _raw is None: _load() is the one way from the first state to the second.
    __slots__ = ("__weakref__", "_fields", "_raw")

    _raw: bytes | tuple[tuple[bytes, bytes], ...] | None
    _fields: dict[str, list[str]] | None

    def __init__(self, source: HeaderSource = (), **fields: str) -> None:
        self._raw = None
        self._fields = {}
        if isinstance(source, HTTPHeaders):
            self._fields = {name: values[:] for name, values in source._load().items()}
        elif isinstance(source, (dict, Mapping)):
            for name, value in source.items():
                key = check_name(name)
                self._fields[key] = [_text(key, value)]
        else:
            for name, value in source:
                self.add(name, value)
        for name, value in fields.items():
            self[name] = value

    @classmethod
    def from_block(cls, block: bytes) -> HTTPHeaders:
        """Wrap field lines as received, each ended by CRLF; the caller has checked their syntax."""
        headers = cls.__new__(cls)
        headers._raw = block
        headers._fields = None
        return headers

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[bytes, bytes]]) -> HTTPHeaders:
        """Wrap pairs of name and value as received; the caller has checked their syntax."""
        headers = cls.__new__(cls)
        headers._raw = tuple(pairs)
        headers._fields = None
        return headers

    @classmethod
    def parse(cls, headers: str) -> HTTPHeaders:
        r"""Read header lines that end in CRLF or LF.

        Raises:
            InvalidHeaderError: a line that is not a field.

        >>> h = HTTPHeaders.parse("Content-Type: text/html\r\nContent-Length: 42\r\n")
        >>> sorted(h.items())
        [('Content-Length', '42'), ('Content-Type', 'text/html')]
        """
        parsed = cls()
        for line in headers.split("\n"):
            parsed.parse_line(line)
        return parsed

    def parse_line(self, line: str) -> None:
        r"""Add one header line, with or without its line end; an empty line adds nothing.

        Raises:
            InvalidHeaderError: no colon, an invalid name or value; or a line that begins with a
                space or tab, which once continued the field before it (RFC 9112 section 5.2).
        """
        line = line.removesuffix("\n").removesuffix("\r")
        if not line:
            return
        if line[0] in _WHITESPACE:
            raise InvalidHeaderError(
                f"header line {line!r} begins with whitespace: folded lines are refused"
            )
        name, colon, value = line.partition(":")
        if not colon:
            raise InvalidHeaderError(f"no colon in header line {line!r}")
        self.add(name, value)

    def add(self, name: str, value: str) -> None:
        """Add a value to a field, keeping those it has.

        Raises:
            InvalidHeaderError: a name or a value that may not be written out.
            TypeError: a value that is not text.
        """
        key = check_name(name)
        self._load().setdefault(key, []).append(_text(key, value))

    def get_list(self, name: str) -> list[str]:
        """Return the values of a field, one by one; an empty list if it is absent."""
        return self._load().get(canonical_name(name), [])[:]

    def has_any(self, names: frozenset[str]) -> bool:
        """Whether one of these fields is there; names in their customary writing."""
        return not names.isdisjoint(self._load())

    def get_all(self) -> Iterator[tuple[str, str]]:
        """Iterate over (name, value), a repeated field giving a pair for each of its values."""
        for name, values in self._load().items():
            for value in values:
                yield name, value

    def copy(self) -> HTTPHeaders:
        """Return a copy that shares nothing that can change."""
        twin = type(self).__new__(type(self))
        twin._raw = self._raw
        fields = self._fields
        twin._fields = None if fields is None else {name: fields[name][:] for name in fields}
        return twin

    __copy__ = copy

    def _load(self) -> dict[str, list[str]]:
        """Return the fields by name, taking apart what was received if nobody looked before."""
        fields = self._fields
        if fields is not None:
            return fields
        raw = self._raw or b""
        if isinstance(raw, tuple):
            raw = b"".join([b"%b:%b\r\n" % pair for pair in raw])
        fields = self._fields = {}
        for line in raw.decode("latin-1").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(canonical_name(name), []).append(value.strip(_WHITESPACE))
        self._raw = None
        return fields

    def __getitem__(self, name: str) -> str:
        values = self._load()[canonical_name(name)]
        return values[0] if len(values) == 1 else ",".join(values)

    # Spelt out: those that come with a mapping raise an error for each field that is absent.
    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: T) -> str | T: ...
    def get(self, name: str, default: Any = None) -> Any:
        """Return a field's value, or ``default``."""
        values = self._load().get(canonical_name(name))
        if values is None:
            return default
        return values[0] if len(values) == 1 else ",".join(values)

    @overload
    def pop(self, name: str) -> str: ...
    @overload
    def pop(self, name: str, default: T) -> str | T: ...
    def pop(self, name: str, default: Any = _NO_DEFAULT) -> Any:
        """Remove a field; return its value, or ``default``.

        Raises:
            KeyError: there is no such field, and no default.
        """
        values = self._load().pop(canonical_name(name), None)
        if values is not None:
            return values[0] if len(values) == 1 else ",".join(values)
        if default is _NO_DEFAULT:
            raise KeyError(name)
        return default

    def __setitem__(self, name: str, value: str) -> None:
        key = check_name(name)
        self._load()[key] = [_text(key, value)]

    def __delitem__(self, name: str) -> None:
        del self._load()[canonical_name(name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and canonical_name(name) in self._load()

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def __len__(self) -> int:
        return len(self._load())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        theirs = {canonical_name(k) if isinstance(k, str) else k: v for k, v in other.items()}
        return dict(self.items()) == theirs

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __str__(self) -> str:
        return "".join([f"{name}: {value}\n" for name, value in self.get_all()])

    def __repr__(self) -> str:
        pairs = [
            (name, "***" if name in SECRET_FIELDS else value) for name, value in self.get_all()
        ]
        return f"HTTPHeaders({pairs!r})"


HeaderSource: TypeAlias = HTTPHeaders | Mapping[str, str] | Iterable[tuple[str, str]]


def _text(name: str, value: str | bytes) -> str:
    """Return a field value as text without the whitespace around it, having checked it.

    Bytes are let through, though not promised: code of the lineage's Python 2 days sets them.
    """
    if type(value) is str and value.isascii() and value.isprintable():
        return value.strip(_WHITESPACE)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        raise TypeError(
            f"value of header {name!r} is {value!r}: it has to be text, as in str({value!r})"
        )
    value = value.strip(_WHITESPACE)
    check_value(name, value)
    return value
