"""``StaticFiles``: a directory's files as responses.

A path leads to a file below the root, or nowhere. It is taken apart at its slashes *before* its
segments are decoded, so nothing that comes out of the decoding can be a separator; segments that
mean something else than a name are refused. Symbolic links are followed while they stay below the
root: the path is resolved, and then opened name by name from the root, where no link is followed
any more. So a link that somebody exchanges in between leads nowhere either.

A disk may be slow, or far away. So each look-up is one errand of a thread, which brings a small
file's content along; a large file is read piece by piece in threads, each piece when the client has
taken the one before.
"""

from __future__ import annotations

import errno
import html
import itertools
import mimetypes
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from coro.errors import CancelledError
from coro.future import Future
from coro.gen import coroutine
from coro.http.conditions import check_conditions, select_ranges, weaken
from coro.http.headers import HTTPHeaders, format_timestamp
from coro.http.request import HTTPServerRequest
from coro.http.response import Response, reason_of
from coro.threads import to_thread

__all__ = ["StaticFiles"]

# Bytes that are read at once. A file that is no larger comes with its look-up.
PIECE = 128 * 1024

# Names that a listing shows.
MAX_LISTED = 10_000

# Seconds. A file may be changed twice within one tick of the clock that stamps it: its date says
# which version it is only when it is older than that (RFC 9110 section 8.8.2.2).
SETTLED = 1.0

_ALLOW = "GET, HEAD, OPTIONS"

# A pipe that nobody writes to must not stop the thread that opens it.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

# What it means that a path leads nowhere: to a link that is a circle, or was exchanged; through a
# file; to a socket; to a name that is too long.
_NOWHERE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG}
)

# Bytes to send, and then so many of the file from a place on: before, start, size.
Part = tuple[bytes, int, int]

_BYTES = "application/octet-stream"

# What these contain is for who unpacks it: as ``Content-Encoding`` a browser would do so unasked.
_PACKED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}

_TEXTS = ("application/javascript", "application/xml", "image/svg+xml")


class StaticFiles:
    """A handler that answers with the files below a directory.

        HTTPServer(StaticFiles("public")).listen(8888)

    It knows GET, HEAD and OPTIONS; entity tags, dates and conditions (RFC 9110 section 13); ranges,
    several of them as ``multipart/byteranges`` (section 14).

    Arguments:
        root: the directory.
        prefix: the path that stands for it, as in "/static".
        index: name of the file that stands for its directory; None: there is none.
        listing: show a page of its names for a directory without index.
        hidden: serve files and directories whose names begin with a dot, too; ``.well-known`` (RFC
            8615) is served in any case.
        cache_control: value of ``Cache-Control``, as in "max-age=3600".
    Raises:
        NotADirectoryError: the root is none.
        ValueError: the prefix does not begin with a slash.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        prefix: str = "/",
        *,
        index: str | None = "index.html",
        listing: bool = False,
        hidden: bool = False,
        cache_control: str | None = None,
    ) -> None:
        self.root = os.path.realpath(root)
        if not os.path.isdir(self.root):
            raise NotADirectoryError(f"{os.fspath(root)!r} is not a directory")
        if not prefix.startswith("/"):
            raise ValueError(f"a prefix begins with a slash, unlike {prefix!r}")
        self.prefix = prefix.rstrip("/")
        self.index = index
        self.listing = listing
        self.hidden = hidden
        self.cache_control = cache_control

    def __repr__(self) -> str:
        return f"<StaticFiles {self.prefix}/ from {self.root!r}>"

    def __call__(self, request: HTTPServerRequest) -> Response | Future[Response]:
        """Answer a request."""
        if request.method == "OPTIONS":
            return Response(status=204, headers={"Allow": _ALLOW})
        if request.method not in ("GET", "HEAD"):
            return _plain(405, {"Allow": _ALLOW})
        names = self._names(request.path)
        if names is None:
            return _plain(404)
        return self._answer(request, names)

    def _names(self, path: str) -> list[str] | None:
        """Return the segments of a path below the prefix, decoded; None: it can lead nowhere.

        The last one is "" for a path that ends with a slash.
        """
        if not path.startswith(self.prefix + "/"):
            return None
        *above, last = (
            os.fsdecode(unquote_to_bytes(each)) for each in path[len(self.prefix) + 1 :].split("/")
        )
        names = [*above, last]
        if "" in above or any(not self._is_name(name) for name in names if name):
            return None
        return names

    def _is_name(self, name: str) -> bool:
        """Whether this may name a file or a directory that is shown."""
        if "/" in name or "\0" in name or name in (".", ".."):
            return False
        return self.hidden or not name.startswith(".") or name == ".well-known"

    @coroutine
    def _answer(
        self, request: HTTPServerRequest, names: list[str]
    ) -> Generator[Any, Any, Response]:
        found = yield to_thread(self._find, names)
        if isinstance(found, _File):
            return self._respond(request, found)
        if isinstance(found, str):
            return _page(found)
        if found == 301:
            # Written anew: what was asked for may begin with two slashes, which would name a host.
            place = "".join("/" + quote(os.fsencode(name), safe="") for name in names)
            query = f"?{request.query}" if request.query else ""
            return Response(status=301, headers={"Location": f"{self.prefix}{place}/{query}"})
        return _plain(found)

    # --- in a thread -----------------------------------------------------------------------

    def _find(self, names: list[str]) -> _File | str | int:
        """Return the file that names lead to, the listing of a directory, or a status."""
        wants_directory = names[-1] == ""
        try:
            file = _File(self._open(names[:-1] if wants_directory else names))
            if file.is_directory:
                return self._find_in(file, names) if wants_directory else 301
            if wants_directory or not file.is_regular:
                return 404
            file.load(names[-1])
            return file
        except PermissionError:
            return 403
        except OSError as error:
            if error.errno in _NOWHERE:
                return 404
            raise

    def _open(self, names: list[str]) -> int:
        """Open what names lead to below the root; return the descriptor."""
        resolved = os.path.realpath(os.path.join(self.root, *names), strict=True)
        way = os.path.relpath(resolved, self.root).split("/")
        if way == ["."]:
            way = []
        if not all(map(self._is_name, way)):
            # Outside of the root, or hidden.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), resolved)
        fd = os.open(self.root, _OPEN | os.O_DIRECTORY)
        for name in way:
            above = fd
            try:
                fd = os.open(name, _OPEN, dir_fd=above)
            finally:
                os.close(above)
        return fd

    def _find_in(self, directory: _File, names: list[str]) -> _File | str | int:
        """Return what stands for a directory."""
        if self.index is not None:
            try:
                file = _File(self._open([*names[:-1], self.index]))
            except FileNotFoundError:
                pass
            else:
                if file.is_regular:
                    file.load(self.index)
                    return file
        return self._list(directory.fd, names) if self.listing else 404

    def _list(self, fd: int, names: list[str]) -> str:
        """Return a page with the names in a directory."""
        with os.scandir(fd) as entries:
            shown = (
                (not entry.is_dir(), entry.name) for entry in entries if self._is_name(entry.name)
            )
            found = sorted(itertools.islice(shown, MAX_LISTED + 1))
        place = html.escape("/".join([self.prefix, *names]).encode(errors="replace").decode())
        lines = [
            f'<!DOCTYPE html>\n<html>\n<head><meta charset="utf-8"><title>{place}</title></head>',
            f"<body>\n<h1>{place}</h1>\n<ul>",
        ]
        if len(names) > 1:
            lines.append('<li><a href="../">../</a></li>')
        for is_file, name in found[:MAX_LISTED]:
            end = "" if is_file else "/"
            # With "./" before it no name is a scheme.
            target = "./" + quote(os.fsencode(name), safe="") + end
            text = html.escape(name.encode(errors="replace").decode()) + end
            lines.append(f'<li><a href="{target}">{text}</a></li>')
        if len(found) > MAX_LISTED:
            lines.append("<li>...</li>")
        return "\n".join([*lines, "</ul>\n</body>\n</html>\n"])

    # --- on the loop -----------------------------------------------------------------------

    def _respond(self, request: HTTPServerRequest, file: _File) -> Response:
        """Answer with a file, or with as much of it as is asked for."""
        headers = HTTPHeaders(
            {
                "ETag": file.etag,
                "Last-Modified": format_timestamp(file.modified),
                "Accept-Ranges": "bytes",
                "X-Content-Type-Options": "nosniff",
            }
        )
        if self.cache_control is not None:
            headers["Cache-Control"] = self.cache_control
        method = request.method
        status = check_conditions(method, request.headers, file.etag, file.modified)
        if status == 304:
            return Response(status=304, headers=headers)
        if status is not None:
            return _plain(status)
        size = file.size
        ranges = select_ranges(
            method, request.headers, size, file.etag, file.modified if file.settled else None
        )
        if ranges is None:
            return self._send(method, file, [(b"", 0, size)], 200, headers, file.content_type)
        if not ranges:
            return _plain(416, {"Content-Range": f"bytes */{size}"})
        if len(ranges) == 1:
            ((first, last),) = ranges
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            parts = [(b"", first, last + 1 - first)]
            return self._send(method, file, parts, 206, headers, file.content_type)
        # RFC 9110 section 14.6.
        boundary = secrets.token_hex(16)
        parts = []
        for first, last in ranges:
            lines = (
                f"\r\n--{boundary}\r\nContent-Type: {file.content_type}\r\n"
                f"Content-Range: bytes {first}-{last}/{size}\r\n\r\n"
            )
            parts.append((lines.encode("latin-1"), first, last + 1 - first))
        parts.append((f"\r\n--{boundary}--\r\n".encode(), 0, 0))
        kind = f"multipart/byteranges; boundary={boundary}"
        return self._send(method, file, parts, 206, headers, kind)

    def _send(
        self,
        method: str,
        file: _File,
        parts: list[Part],
        status: int,
        headers: HTTPHeaders,
        content_type: str,
    ) -> Response:
        headers["Content-Type"] = content_type
        data = file.data
        if data is not None and method == "GET":
            body = b"".join(before + data[start : start + size] for before, start, size in parts)
            return Response(body, status, headers)
        headers["Content-Length"] = str(sum(len(before) + size for before, _, size in parts))
        return Response(() if method == "HEAD" else file.pieces(parts), status, headers)


class _File:
    """What was opened, and what is known of it.

    Its descriptor is closed at the end, or when nobody refers to it any longer: a read that was
    given up may yet be under way in its thread, and must not meet another file under that number.

    Attributes:
        fd: its descriptor.
        size: bytes; what is added later is not sent.
        modified: when its content was changed last, in seconds since 1970.
        settled: whether that says for sure which version it is.
        etag: its entity tag; a weak one while it is not settled.
        content_type: by its name.
        data: the content, if it is small; else None.
    """

    __slots__ = ("content_type", "data", "etag", "fd", "mode", "modified", "settled", "size")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        found = os.fstat(fd)
        self.mode = found.st_mode
        self.size = found.st_size
        self.modified = found.st_mtime
        self.settled = found.st_mtime + SETTLED <= time.time()
        etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"'
        self.etag = etag if self.settled else weaken(etag)
        self.content_type = ""
        self.data: bytes | None = None

    def close(self) -> None:
        """Close the descriptor, if it is open."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    def load(self, name: str) -> None:
        """Find out its type, and read it if it is small."""
        self.content_type = _type_of(name)
        if self.size <= PIECE:
            self.data = b"".join(self._read_all())

    def _read_all(self) -> Iterator[bytes]:
        place = 0
        while place < self.size:
            piece = self._read(place, self.size - place)
            yield piece
            place += len(piece)

    def _read(self, start: int, size: int) -> bytes:
        piece = os.pread(self.fd, min(size, PIECE), start)
        if not piece:
            raise OSError(f"a file became shorter than the {self.size} bytes that were announced")
        return piece

    async def pieces(self, parts: list[Part]) -> AsyncIterator[bytes]:
        """Read parts of the file, each with bytes to put before it."""
        reads = False
        try:
            for before, start, size in parts:
                if before:
                    yield before
                end = start + size
                while start < end:
                    piece = await to_thread(self._read, start, end - start)
                    yield piece
                    start += len(piece)
        except CancelledError:
            reads = True
            raise
        finally:
            if not reads:
                self.close()


def _type_of(name: str) -> str:
    """Return the media type of a file, by its name."""
    # With a slash before it no name is a URL.
    kind, packed = mimetypes.guess_type("/" + name)
    if packed is not None:
        return _PACKED.get(packed, _BYTES)
    if kind is None:
        return _BYTES
    return f"{kind}; charset=utf-8" if kind.startswith("text/") or kind in _TEXTS else kind


def _plain(status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(f"{status} {reason_of(status)}\n", status, headers)


def _page(text: str) -> Response:
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return Response.html(text, headers=headers)
