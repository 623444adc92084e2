"""Forms with files: ``multipart/form-data`` (RFC 7578), written as browsers write it.

Browsers settled what the RFC left open: names are UTF-8, and of their characters only ``"``, CR and
LF are escaped, as ``%22``, ``%0D`` and ``%0A`` (HTML, "multipart form data").

Files are read as they are sent, a piece at a time. If the size of each is known, so is that of the
whole; else it goes out in chunks.
"""

from __future__ import annotations

import mimetypes
import os
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

from coro.gen import coroutine
from coro.http.bodies import Producer, producer_for

__all__ = ["encode_multipart"]

_ESCAPES = {'"': "%22", "\r": "%0D", "\n": "%0A"}
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]+")


def encode_multipart(fields: Any, files: Any) -> tuple[str, bytes | Producer, int | None]:
    """Encode a form with files.

    Arguments:
        fields: a mapping or pairs, as for ``encode_form``, or None.
        files: a mapping or pairs; each value is a file, see ``HTTPRequest``, or a list of them.
    Returns:
        The value of ``Content-Type``; the body, or what writes it; and its length in bytes, if that
        is known.
    Raises:
        TypeError: a file that is none.
        ValueError: a content type with characters that a header field cannot have.
    """
    boundary = secrets.token_hex(16)
    parts: list[bytes | Producer] = []
    length: int | None = 0
    for head, content, size in _parts(fields, files):
        start = f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode()
        parts += (start, content, b"\r\n")
        length = None if length is None or size is None else length + len(start) + size + 2
    end = f"--{boundary}--\r\n".encode()
    parts.append(end)
    kind = f"multipart/form-data; boundary={boundary}"
    known = [part for part in parts if isinstance(part, bytes)]
    if len(known) == len(parts):
        body = b"".join(known)
        return kind, body, len(body)
    return kind, _producer(parts), None if length is None else length + len(end)


def _parts(fields: Any, files: Any) -> Iterator[tuple[str, bytes | Producer, int | None]]:
    """Yield what follows ``form-data;`` in the head of each part, its content, and its size."""
    for name, value in _pairs(fields, list | tuple):
        data = value if isinstance(value, bytes) else str(value).encode()
        # Browsers send line ends in names as CRLF, and so do we; values are the caller's.
        yield f'name="{_escape(_with_crlf(name))}"', data, len(data)
    for name, file in _pairs(files, list):
        filename, content, size, content_type = _file(name, file)
        head = f'name="{_escape(_with_crlf(name))}"; filename="{_escape(filename)}"'
        yield f"{head}\r\nContent-Type: {content_type}", content, size


def _pairs(source: Any, several: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and values; a value of the type ``several`` counts as so many of them."""
    if source is None:
        return
    for name, value in source.items() if isinstance(source, Mapping) else source:
        for each in value if isinstance(value, several) else (value,):
            yield str(name), each


def _file(name: str, file: Any) -> tuple[str, bytes | Producer, int | None, str]:
    """Return a file's name, content, size, if it is known, and content type."""
    filename = content_type = None
    content = file
    if isinstance(file, tuple):
        if not 2 <= len(file) <= 3:
            raise TypeError(
                f"the file {name!r} must be (filename, content) or "
                f"(filename, content, content_type), not a tuple of {len(file)}"
            )
        filename, content, content_type = (*file, None)[:3]
    if filename is None:
        path = getattr(content, "name", None)
        filename = os.path.basename(path) if isinstance(path, str) else name
    if content_type is None:
        content_type = mimetypes.guess_type(filename)[0] or "application/octet-stream"
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise ValueError(f"the content type {content_type!r} of the file {name!r} is none")
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, bytes | bytearray | memoryview):
        content = bytes(content)
        return filename, content, len(content), content_type
    found = producer_for(content)
    if found is None:
        raise TypeError(
            f"the file {name!r} must be bytes, text, a file opened for reading bytes or an "
            f"iterable of bytes, not {type(content).__name__}"
        )
    return filename, *found, content_type


def _with_crlf(name: str) -> str:
    return re.sub(r"\r\n?|\n", "\r\n", name)


def _escape(name: str) -> str:
    return re.sub('["\r\n]', lambda found: _ESCAPES[found[0]], name)


def _producer(parts: Iterable[bytes | Producer]) -> Producer:
    @coroutine
    def produce(write: Callable[[bytes], Any]) -> Generator[Any, Any, None]:
        for part in parts:
            if not isinstance(part, bytes):
                yield part(write)
            elif part:
                yield write(part)

    return produce
