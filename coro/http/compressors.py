"""Compressing responses: which coding a client takes, which responses gain by it, and doing it.

The other direction is in ``compression``. Brotli and zstd need a library each here too; gzip is
always there. The levels are those at which a server gains more by sending less than it pays for it.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, Protocol

from coro.http.compression import brotli, zstd
from coro.http.headers import HTTPHeaders
from coro.http.response import Response, has_no_body

__all__ = ["CODINGS", "Compressor", "choose_coding", "compress", "compressor_for", "mark"]

# Bytes below which a response does not get smaller by as much as it is work.
MIN_LENGTH = 1024

_GZIP_WBITS = zlib.MAX_WBITS | 16
_GZIP_LEVEL = 6
_BROTLI_QUALITY = 4
_ZSTD_LEVEL = 3

_COMPRESSIBLE = re.compile(
    r"text/.*|.*\+(json|xml)|font/(ttf|otf|collection)"
    r"|application/(json|javascript|xml|wasm|x-javascript|rtf|x-ndjson|vnd\.ms-fontobject)"
    r"|image/(bmp|x-icon|vnd\.microsoft\.icon)"
)
_WEIGHT = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


class Compressor(Protocol):
    """Applies one coding, piece by piece."""

    def compress(self, data: bytes) -> bytes:
        """Take in bytes; return all that a receiver needs to have them back."""

    def finish(self) -> bytes:
        """Return the end of the stream."""


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WBITS)

    def compress(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._stream.flush()


class _Brotli:
    def __init__(self) -> None:
        self._stream: Any = brotli.Compressor(quality=_BROTLI_QUALITY)

    def compress(self, data: bytes) -> bytes:
        done: bytes = self._stream.process(data) + self._stream.flush()
        return done

    def finish(self) -> bytes:
        done: bytes = self._stream.finish()
        return done


class _Zstd:
    def __init__(self) -> None:
        self._stream: Any = zstd.ZstdCompressor(level=_ZSTD_LEVEL)

    def compress(self, data: bytes) -> bytes:
        done: bytes = self._stream.compress(data, mode=self._stream.FLUSH_BLOCK)
        return done

    def finish(self) -> bytes:
        done: bytes = self._stream.flush()
        return done


# In the order of preference.
CODINGS: dict[str, type[Compressor]] = {
    **({"zstd": _Zstd} if zstd is not None else {}),
    **({"br": _Brotli} if brotli is not None else {}),
    "gzip": _Gzip,
}


def choose_coding(accepted: str | None) -> str | None:
    """Return the coding that a client likes best of those that are there; None: as it is.

    Arguments:
        accepted: value of its ``Accept-Encoding`` (RFC 9110 section 12.5.3).
    """
    if not accepted:
        return None
    weights: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, rest = part.partition(";")
        weight = rest.replace(" ", "").removeprefix("q=") if rest else "1"
        weights[name.strip()] = float(weight) if _WEIGHT.fullmatch(weight) else 0.0
    others = weights.get("*", 0.0)
    plain = weights.get("identity", 0.0)
    weighted = {name: weights.get(name, others) for name in CODINGS}
    best = max(weighted, key=weighted.__getitem__)
    return best if weighted[best] > 0 and weighted[best] >= plain else None


def compressor_for(
    response: Response, accepted: str | None, length: int | None
) -> tuple[str, Compressor] | None:
    """Return what a response is to be compressed by, with its name; None: it is sent as it is.

    It is marked as one that depends on the client's ``Accept-Encoding``, if another client may get
    it compressed.

    Arguments:
        accepted: value of the request's ``Accept-Encoding``.
        length: of the body, in bytes; None: not known.
    """
    headers = response.headers
    if has_no_body(response.status) or response.status == 206 or response.fields:
        return None
    kind = response.content_type
    if headers is not None:
        kind = headers.get("Content-Type", kind)
        if "Content-Encoding" in headers or "Content-Range" in headers:
            return None
        if "no-transform" in headers.get("Cache-Control", "").lower():
            return None
    if kind is None or not _COMPRESSIBLE.fullmatch(kind.partition(";")[0].strip().lower()):
        return None
    if length is not None and length < MIN_LENGTH:
        return None
    response.headers = HTTPHeaders() if headers is None else headers.copy()
    vary = response.headers.get("Vary", "")
    if not re.search(r"(?i)(^|[\s,])(accept-encoding|\*)([\s,]|$)", vary):
        response.headers["Vary"] = f"{vary}, Accept-Encoding" if vary else "Accept-Encoding"
    coding = choose_coding(accepted)
    return None if coding is None else (coding, CODINGS[coding]())


def mark(response: Response, coding: str) -> None:
    """Say in the head of a response that its body is compressed."""
    headers = response.headers
    assert headers is not None
    headers["Content-Encoding"] = coding
    # The same content, but not the same bytes.
    tag = headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        headers["ETag"] = f"W/{tag}"


def compress(compressor: Compressor, body: bytes) -> bytes:
    """Compress a whole body."""
    return compressor.compress(body) + compressor.finish()
