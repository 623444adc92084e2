"""A file for each body: its name, and how it comes to stand there whole or not at all."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Generator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from coro.http.urls import Target

__all__ = ["Download", "SaveError", "file_name"]


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
            self._open().close()
            self._temporary.replace(self.path)
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


class SaveError(Exception):
    """A body cannot be written to its file."""
