"""Forms as a server receives them: ``application/x-www-form-urlencoded``, ``multipart/form-data``.

How many arguments and parts there may be is bounded, and so is the head of a part: a body below its
limit of bytes must not become a flood of objects. Time is linear in the body.

Names and filenames of parts are as browsers write them (RFC 7578; HTML, "multipart form data"):
UTF-8 between quotes, with ``%22`` for a quote, which is left as it is, since who means ``%22``
writes it likewise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import parse_qsl

from coro.errors import HTTPInputError

__all__ = ["Arguments", "Files", "HTTPFile", "parse_arguments", "parse_multipart"]

# How many arguments a query or a form may have, and a form with files of parts.
MAX_ARGUMENTS = 1000
MAX_PARTS = 100
MAX_PART_HEAD = 10 * 1024

# RFC 2046 section 5.1.1.
_BOUNDARY = re.compile(r';[ \t]*boundary=(?:"([^"]{1,70})"|([^\s;",]{1,70}))[ \t]*(?:;|$)', re.I)
_PARAMETER = re.compile(rb';[ \t]*([A-Za-z*]+)=(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]++))')

_ESCAPED = re.compile(rb'\\(["\\])')


@dataclass(frozen=True, slots=True)
class HTTPFile:
    """A file of a form; ``file["body"]`` is ``file.body``.

    Attributes:
        filename: as the client calls it: not to be trusted, and no path.
        body: its bytes.
        content_type: what the client says of them, "application/octet-stream" if nothing.
    """

    filename: str
    body: bytes
    content_type: str

    def __getitem__(self, name: str) -> str | bytes:
        if name not in ("filename", "body", "content_type"):
            raise KeyError(name)
        found: str | bytes = getattr(self, name)
        return found


Arguments: TypeAlias = dict[str, list[bytes]]
Files: TypeAlias = dict[str, list[HTTPFile]]


def parse_arguments(text: str) -> Arguments:
    """Read a query, or a form without files, whose characters stand for bytes.

    Raises:
        HTTPInputError: there are too many.
    """
    found: Arguments = {}
    try:
        # latin-1 carries each byte through.
        pairs = parse_qsl(
            text, keep_blank_values=True, encoding="latin-1", max_num_fields=MAX_ARGUMENTS
        )
    except ValueError as error:
        raise HTTPInputError(f"more than {MAX_ARGUMENTS} arguments") from error
    for name, value in pairs:
        name = name.encode("latin-1").decode("utf-8", "replace")
        found.setdefault(name, []).append(value.encode("latin-1"))
    return found


def parse_multipart(content_type: str, body: bytes) -> tuple[Arguments, Files]:
    """Read a form with files.

    Arguments:
        content_type: value of ``Content-Type``, which tells the boundary.
    Raises:
        HTTPInputError: it is malformed, or has too many parts.
    """
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise HTTPInputError(f"a form without a boundary: {content_type[:100]!r}")
    boundary = b"\r\n--" + (match[1] or match[2]).encode("latin-1", "replace")
    # What stands before the first boundary means nothing, nor what follows the last.
    _, *parts = (b"\r\n" + body).split(boundary, MAX_PARTS + 1)
    arguments: Arguments = {}
    files: Files = {}
    for part in parts:
        if part.startswith(b"--"):
            return arguments, files
        _take_part(part.lstrip(b" \t"), arguments, files)
    if len(parts) > MAX_PARTS:
        raise HTTPInputError(f"a form of more than {MAX_PARTS} parts")
    raise HTTPInputError("a form without its last boundary")


def _take_part(part: bytes, arguments: Arguments, files: Files) -> None:
    head, end, content = part.partition(b"\r\n\r\n")
    if not end or not head.startswith(b"\r\n"):
        raise HTTPInputError("a malformed part of a form")
    if len(head) > MAX_PART_HEAD:
        raise HTTPInputError(f"the head of a part has over {MAX_PART_HEAD} bytes")
    told = {}
    for line in head[2:].split(b"\r\n"):
        field, _, value = line.partition(b":")
        told[field.lower()] = value.strip(b" \t")
    disposition = told.get(b"content-disposition", b"")
    parameters = {
        found[1].lower(): found[3] if found[2] is None else _ESCAPED.sub(rb"\1", found[2])
        for found in _PARAMETER.finditer(disposition)
    }
    if not disposition.lower().startswith(b"form-data") or b"name" not in parameters:
        raise HTTPInputError(f"a part of a form without a name: {disposition[:100]!r}")
    name = parameters[b"name"].decode("utf-8", "replace")
    # Empty: no file was chosen.
    if not parameters.get(b"filename"):
        arguments.setdefault(name, []).append(content)
        return
    file = HTTPFile(
        parameters[b"filename"].decode("utf-8", "replace"),
        content,
        told.get(b"content-type", b"application/octet-stream").decode("latin-1"),
    )
    files.setdefault(name, []).append(file)
