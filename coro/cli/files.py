"""A file for each body: its name, and how it comes to stand there whole or not at all."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
from collections.abc import Generator
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from coro.http import HTTPHeaders
from coro.http.urls import Target

__all__ = ["BusyError", "Download", "ResumableDownload", "SaveError", "file_name"]


def file_name(target: Target) -> str:
    """Return the name of the file for a URL's body: always the same one, and for this URL only.

    It is host and path with ``_`` for ``/``, if no other URL could lead to that; else whatever is
    not a letter, a digit, ``.`` or ``-`` becomes ``_`` as well, and ``~`` with 60 bits of a hash
    tells URLs apart. So a name has no directory in it and never begins with a dot.
    """
    name = re.sub(r"[^A-Za-z0-9.-]", "_", target.authority + target.path)
    if (
        "https://" + name.replace("_", "/") == target.url
        and len(name) <= 200
        and not name.startswith(".")
    ):
        return name
    digest = hashlib.sha256(target.url.encode()).digest()
    mark = base64.b32encode(digest).decode().lower()[:12]
    suffix = PurePosixPath(target.path.partition("?")[0]).suffix
    if not re.fullmatch(r"\.[A-Za-z0-9]{1,10}", suffix):
        suffix = ""
    return f"{name.removesuffix(suffix).lstrip('.')[:150]}~{mark}{suffix}"


class Download:
    """A body on its way into a file, which has a temporary name until the body is whole.

    Arguments:
        directory: where the file is to be.
        name: its name.
    """

    _numbers = itertools.count(1)

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / name
        self._temporary = directory / f".coro-{os.getpid()}-{next(self._numbers)}.part"
        self._file: BinaryIO | None = None
        # Bytes that were there before.
        self.already = 0

    def fields(self) -> dict[str, str]:
        """Return the fields that the request needs."""
        return {}

    def begin(self, code: int, headers: HTTPHeaders) -> None:
        """Look at the head of a response that was found, before its body comes."""

    def write(self, piece: bytes) -> None:
        """Write a piece of the body.

        Raises:
            SaveError: the system refuses.
        """
        with self._naming_errors():
            self._open().write(piece)

    def finish(self) -> None:
        """The body is whole: give the file its name, in place of an older one."""
        with self._naming_errors():
            file = self._open()
            file.flush()
            self._temporary.replace(self.path)
            file.close()
            self._file = None

    def discard(self) -> None:
        """Leave nothing of a body that did not become whole."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)
            self._file = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._file = self._temporary.open("xb")
        return self._file

    @contextlib.contextmanager
    def _naming_errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise SaveError(f"cannot write {self.path}: {error.strerror}") from error


class ResumableDownload(Download):
    """A body on its way into a file, of which what has come is kept when the rest does not come.

    It lies beside the file, under a name with a dot in front, and a note with it: which URL it is
    of, and by what the server told this version of it from others (RFC 9110 section 13.1.5). So
    the next download can ask for the rest, of this version only.

    Arguments:
        directory: where the file is to be.
        name: its name.
        url: where the body comes from.
    Raises:
        BusyError: another download of this body is under way.
        SaveError: the system refuses.
    """

    def __init__(self, directory: Path, name: str, url: str) -> None:
        super().__init__(directory, name)
        self._temporary = directory / f".{name}.part"
        self._note = directory / f".{name}.part.json"
        self._url = url
        self._validator: str | None = None
        with self._naming_errors():
            self._file = self._temporary.open("ab")
            if not self._has_lock(self._file):
                self._file.close()
                self._file = None
                raise BusyError
            self.already = self._file.tell()
        self._read_note()

    def _has_lock(self, file: BinaryIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may have given the file its name just now.
            return self._temporary.stat().st_ino == os.fstat(file.fileno()).st_ino
        except (BlockingIOError, FileNotFoundError):
            return False

    def _read_note(self) -> None:
        """Find out what it is that lies there; forget it if that cannot be known."""
        try:
            note = json.loads(self._note.read_text())
            if note["url"] == self._url and isinstance(note["validator"], str):
                self._validator = note["validator"]
        except (OSError, ValueError, LookupError, TypeError):
            pass
        if self._validator is None or not self.already:
            self.restart()

    def restart(self) -> None:
        """Forget what has come so far."""
        self._validator = None
        self.already = 0
        with self._naming_errors():
            self._open().truncate(0)

    def fields(self) -> dict[str, str]:
        """Return the fields that ask for the rest."""
        if self._validator is None:
            return {}
        return {"Range": f"bytes={self.already}-", "If-Range": self._validator}

    def begin(self, code: int, headers: HTTPHeaders) -> None:
        """Look at the head of a response that was found: is it the rest, or all of it?"""
        if code == 206 and self._validator is not None:
            span = headers.get("Content-Range", "")
            if not re.match(rf"(?i)bytes {self.already}-", span):
                raise SaveError(f"the server sent another part ({span[:100]!r}) than the rest")
            return
        self.restart()
        self._validator = _strong_validator(headers)
        if self._validator is not None:
            with self._naming_errors():
                self._note.write_text(json.dumps({"url": self._url, "validator": self._validator}))

    def is_whole(self, headers: HTTPHeaders) -> bool:
        """Whether a 416 means that there is no rest (RFC 9110 section 15.5.17)."""
        return (
            self._validator is not None
            and headers.get("Content-Range", "").lower() == f"bytes */{self.already}"
        )

    def finish(self) -> None:
        """The body is whole: give the file its name, in place of an older one."""
        super().finish()
        self._note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Keep what may be continued, and nothing else."""
        if self._file is not None and self._validator is not None:
            with contextlib.suppress(OSError):
                self._file.close()
                self._file = None
                return
        if self._file is not None:
            self._note.unlink(missing_ok=True)
        super().discard()


def _strong_validator(headers: HTTPHeaders) -> str | None:
    """Return what may stand in ``If-Range``: what is never the same for two versions."""
    tag = headers.get("ETag", "")
    if re.fullmatch(r'"[\x21\x23-\x7e\x80-\xff]*"', tag):
        return tag
    try:
        modified = parsedate_to_datetime(headers["Last-Modified"])
        sent = parsedate_to_datetime(headers["Date"])
        # A file that changed in the second in which it was sent may change in it again.
        return headers["Last-Modified"] if (sent - modified).total_seconds() >= 1 else None
    except (LookupError, ValueError, TypeError):
        return None


class BusyError(Exception):
    """The same body is being downloaded already."""


class SaveError(Exception):
    """A body cannot be written to its file."""
