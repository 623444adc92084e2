"""``StaticFiles``: a handler that serves the files of a directory.

A request names a file below the directory or nothing: its path is split before it is decoded, so
an encoded slash or a dot segment names nothing; and what a symbolic link leads to is served only if
that lies below the directory as well. Names that begin with a dot are nobody's business, but for
``.well-known`` (RFC 8615).

Small files are read at once. Of larger ones a thread reads piece by piece, as the client takes
them: a slow disk holds up nobody else, and no file is in memory as a whole.
"""

from __future__ import annotations

import html
import mimetypes
import os
import re
import stat
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from coro.gen import coroutine, to_thread
from coro.http.headers import HTTPHeaders
from coro.http.request import HTTPServerRequest
from coro.http.response import Response

__all__ = ["StaticFiles"]

# Bytes that are read at once, in the loop's own thread or in another one.
SMALL = 64 * 1024
PIECE = 128 * 1024

# Ranges that one request may ask for; who wants more gets the whole (RFC 9110 section 14.2).
MAX_RANGES = 16

# Names that a listing shows.
MAX_LISTED = 10_000

_METHODS = {"Allow": "GET, HEAD, OPTIONS"}

# Of a name with two suffixes the last one counts: nothing is decoded on the way.
_CODED_TYPES = {
    "br": "application/x-brotli",
    "bzip2": "application/x-bzip2",
    "compress": "application/x-compress",
    "gzip": "application/gzip",
    "xz": "application/x-xz",
    "zstd": "application/zstd",
}

_LISTING = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font-family: sans-serif; margin: 2em }} td {{ padding: 0 1.5em 0 0 }}</style></head>
<body><h1>{title}</h1><table>
{rows}
</table></body></html>
"""
_LISTING_FIELDS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


class StaticFiles:
    """Serves the files of a directory: ``HTTPServer(StaticFiles("public"))``.

    It answers GET and HEAD, with ``ETag`` and ``Last-Modified``; conditions and ranges hold (RFC
    9110 sections 13 and 14). A directory is answered with its index; without one, with a list of
    what is in it, if that is wanted, else with 404.

    Arguments:
        directory: what to serve.
        prefix: what the paths of requests have before that of the file, as in "/static".
        index: name of the file that stands for a directory.
        listing: show what a directory without index holds.
        max_age: seconds that clients may use a file without asking again; None: leave it to them.
    Raises:
        NotADirectoryError: it is none.
        ValueError: the prefix does not begin with a slash, or ends with one.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        prefix: str = "",
        index: str = "index.html",
        listing: bool = False,
        max_age: int | None = None,
    ) -> None:
        self.directory = Path(directory).resolve()
        if not self.directory.is_dir():
            raise NotADirectoryError(f"{str(directory)!r} is not a directory to serve files from")
        if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
            raise ValueError(f"a prefix is like '/static', unlike {prefix!r}")
        self.prefix = prefix
        self.index = index
        self.listing = listing
        self.cache_control = None if max_age is None else f"public, max-age={max_age}"

    def __repr__(self) -> str:
        return f"<StaticFiles {str(self.directory)!r}>"

    @coroutine
    def __call__(self, request: HTTPServerRequest) -> Generator[Any, Any, Response | None]:
        """Answer a request."""
        if request.method not in ("GET", "HEAD"):
            if request.method == "OPTIONS":
                return Response(status=204, headers=_METHODS)
            return Response("405 Method Not Allowed\n", 405, _METHODS)
        path = self._find(request.path)
        if path is not None and path.is_dir():
            if not request.path.endswith("/"):
                # Relative, so that a name cannot pass for a host or a scheme.
                name = quote(unquote_to_bytes(request.path.rpartition("/")[2]))
                query = f"?{request.query}" if request.query else ""
                return Response.redirect(f"./{name}/{query}", 301)
            index = self._below(path / self.index)
            if index is None or not index.is_file():
                if not self.listing:
                    return _not_found()
                page = yield to_thread(self._list, path, _unquote(request.path))
                return Response.html(page, headers=_LISTING_FIELDS)
            path = index
        elif path is not None and request.path.endswith("/"):
            path = None
        found = None if path is None else _open(path)
        if found is None:
            return _not_found()
        try:
            return (yield from self._serve(request, found))
        finally:
            os.close(found.fd)

    # --- what a path names -----------------------------------------------------------------

    def _find(self, path: str) -> Path | None:
        """Return what the path of a request names, if it may be served."""
        if path == self.prefix:
            return self.directory
        if not path.startswith(f"{self.prefix}/"):
            return None
        segments = path[len(self.prefix) + 1 :].split("/")
        if not segments[-1]:
            # A directory.
            segments.pop()
        names = [_unquote(segment) for segment in segments]
        if not all(map(_is_shown, names)):
            return None
        return self._below(self.directory.joinpath(*names))

    def _below(self, path: Path) -> Path | None:
        """Return the path without symbolic links, unless one of them leads elsewhere."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        return real if real.is_relative_to(self.directory) else None

    def _list(self, directory: Path, shown: str) -> str:
        """Return a page that shows what a directory holds. Not for the loop's thread."""
        found = []
        with os.scandir(directory) as entries:
            for entry, _ in zip(entries, range(MAX_LISTED), strict=False):
                path = self._below(Path(entry.path)) if _is_shown(entry.name) else None
                if path is not None:
                    with suppress(OSError):
                        found.append((not path.is_dir(), entry.name, path.stat()))
        rows = []
        for is_file, name, facts in sorted(found, key=lambda each: each[:2]):
            slash, size = ("", f"{facts.st_size:,}") if is_file else ("/", "")
            when = datetime.fromtimestamp(facts.st_mtime, UTC).strftime("%Y-%m-%d %H:%M")
            # With "./", for a name may look like a scheme.
            link = html.escape(f"./{quote(os.fsencode(name))}{slash}")
            text = html.escape(_printable(name)) + slash
            rows.append(
                f'<tr><td><a href="{link}">{text}</a></td><td>{when}</td><td>{size}</td></tr>'
            )
        return _LISTING.format(title=html.escape(_printable(shown)), rows="\n".join(rows))

    # --- answering -------------------------------------------------------------------------

    def _serve(
        self, request: HTTPServerRequest, found: _File
    ) -> Generator[Any, Any, Response | None]:
        headers = HTTPHeaders({"ETag": found.etag, "Last-Modified": found.date})
        if self.cache_control is not None:
            headers["Cache-Control"] = self.cache_control
        status = _condition(request.headers, found)
        if status is not None:
            return Response(status=status, headers=headers)
        headers["Accept-Ranges"] = "bytes"
        headers["X-Content-Type-Options"] = "nosniff"
        size = found.size
        ranges = _ranges(request, found)
        if ranges is not None and not ranges:
            headers["Content-Range"] = f"bytes */{size}"
            return Response("416 Range Not Satisfiable\n", 416, headers)
        status, between, end = 206, [b""], b""
        if ranges is None:
            status, ranges = 200, [(0, size)]
        elif len(ranges) == 1:
            start, stop = ranges[0]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if len(ranges) == 1:
            headers["Content-Type"] = found.content_type
        else:
            boundary = token_hex(16)
            headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
            between = [
                f"\r\n--{boundary}\r\nContent-Type: {found.content_type}\r\n"
                f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n".encode()
                for start, stop in ranges
            ]
            end = f"\r\n--{boundary}--\r\n".encode()
        length = sum(stop - start for start, stop in ranges) + sum(map(len, between)) + len(end)
        if request.method == "GET" and length <= SMALL:
            parts = zip(between, ranges, strict=True)
            body = b"".join(head + _read(found.fd, start, stop) for head, (start, stop) in parts)
            return Response(body + end, status, headers)
        headers["Content-Length"] = str(length)
        writer = request.respond(status, headers)
        if request.method == "GET":
            for head, (start, stop) in zip(between, ranges, strict=True):
                yield writer.write(head)
                while start < stop:
                    piece = yield to_thread(os.pread, found.fd, min(PIECE, stop - start), start)
                    if not piece:
                        # It was cut short meanwhile, which the client must see.
                        break
                    start += len(piece)
                    yield writer.write(piece)
            yield writer.write(end)
        return None


@dataclass(frozen=True)
class _File:
    """An open file, and what requests are told of it."""

    fd: int
    size: int
    modified: int
    etag: str
    content_type: str

    @property
    def date(self) -> str:
        return formatdate(self.modified, usegmt=True)


def _open(path: Path) -> _File | None:
    """Open a file for reading; None if it is none, or not ours to read."""
    try:
        # A fifo would keep us waiting for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        os.close(fd)
        return None
    kind, coding = mimetypes.guess_type(path.name, strict=False)
    if coding is not None:
        kind = _CODED_TYPES.get(coding)
    kind = kind or "application/octet-stream"
    if kind.startswith("text/"):
        kind += "; charset=utf-8"
    etag = f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"'
    return _File(fd, facts.st_size, int(facts.st_mtime), etag, kind)


def _read(fd: int, start: int, stop: int) -> bytes:
    """Read a part of a file; all of it is there, or the client would be misled.

    Raises:
        EOFError: it was cut short meanwhile.
    """
    piece = os.pread(fd, stop - start, start)
    if len(piece) < stop - start:
        raise EOFError(f"a file was cut short while it was served, to {start + len(piece)} bytes")
    return piece


def _unquote(text: str) -> str:
    """Decode percent-encoding, to a name as the system has it."""
    return os.fsdecode(unquote_to_bytes(text.encode("latin-1")))


def _is_shown(name: str) -> bool:
    """Whether a name may be served: it is one, and not hidden."""
    if not name or "/" in name or "\0" in name:
        return False
    return not name.startswith(".") or name == ".well-known"


def _not_found() -> Response:
    return Response("404 Not Found\n", 404)


def _printable(name: str) -> str:
    """What is no text in a name, is shown as such."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# --- conditions and ranges ---------------------------------------------------------------------


def _condition(headers: HTTPHeaders, found: _File) -> int | None:
    """Return the status that a condition of the request leads to (RFC 9110 section 13.2.2)."""
    match = headers.get("If-Match")
    if match is not None:
        if not _names(match, found.etag, weak=False):
            return 412
    elif (since := _date(headers.get("If-Unmodified-Since"))) is not None:
        if found.modified > since:
            return 412
    none_match = headers.get("If-None-Match")
    if none_match is not None:
        return 304 if _names(none_match, found.etag, weak=True) else None
    since = _date(headers.get("If-Modified-Since"))
    return 304 if since is not None and found.modified <= since else None


def _names(listed: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of tags has this one (RFC 9110 section 8.8.3.2).

    Arguments:
        weak: compare weakly.
    """
    if listed.strip() == "*":
        return True
    tags = re.findall(r'(W/)?("[^"]*")', listed)
    return any(tag == etag and (weak or not is_weak) for is_weak, tag in tags)


def _date(text: str | None) -> int | None:
    """Return the seconds since 1970 of a date; None if it is none, which counts as not there."""
    if text is None:
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, OverflowError):
        return None


def _ranges(request: HTTPServerRequest, found: _File) -> list[tuple[int, int]] | None:
    """Return the parts that are asked for: each its start, and the byte after its end.

    Returns:
        None for the whole; nothing if no part is there.
    """
    wanted = request.headers.get("Range")
    if wanted is None or request.method != "GET":
        return None
    only_if = request.headers.get("If-Range")
    if only_if is not None:
        # RFC 9110 section 13.1.5.
        exact = only_if.startswith('"') and _names(only_if, found.etag, weak=False)
        if not exact and _date(only_if) != found.modified:
            return None
    unit, _, listed = wanted.partition("=")
    parts = [part.strip() for part in listed.split(",")]
    if unit.strip().lower() != "bytes" or len(parts) > MAX_RANGES:
        return None
    ranges: list[tuple[int, int]] = []
    size = found.size
    for part in parts:
        match = re.fullmatch(r"([0-9]{0,19})-([0-9]{0,19})", part)
        if match is None or part == "-":
            return None
        first, last = match.groups()
        if not first:
            start, stop = max(size - int(last), 0), size
        elif last and int(last) < int(first):
            return None
        else:
            start, stop = int(first), min(int(last) + 1, size) if last else size
        if start < stop:
            ranges.append((start, stop))
    if sum(stop - start for start, stop in ranges) > size:
        # They overlap: the whole is less.
        return None
    return ranges
