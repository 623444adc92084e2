"""What the decoders make of bytes that come in pieces: all that can be known afterwards.

Two readings of the same bytes are equal, however the bytes were cut; a decoder for which that does
not hold is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from coro.errors import HTTPInputError
from coro.http.codec import ResponseDecoder
from coro.http.compression import decoder_for
from coro.http.incoming import RefusalError, RequestDecoder, RequestHead

__all__ = ["REFUSED", "read_coded", "read_requests", "read_response", "split"]

REFUSED = "refused"


def split(data: bytes, *cuts: int) -> list[bytes]:
    """Cut bytes at these places."""
    return [data[a:b] for a, b in pairwise([0, *sorted(cuts), len(data)])]


def read_response(pieces: Iterable[bytes], method: str = "GET", **limits: int) -> Any:
    """Feed pieces of a response and then the end."""
    decoder = ResponseDecoder(**limits)
    interim: list[int] = []
    decoder.begin(method, on_interim=lambda head: interim.append(head.status))
    try:
        for piece in pieces:
            decoder.feed(piece)
    except HTTPInputError as error:
        assert str(error)
        with pytest.raises(HTTPInputError):
            decoder.feed(b"x")
        return REFUSED
    complete = decoder.complete
    missing = decoder.eof()
    assert decoder.complete is (missing is None)
    head = decoder.head
    return {
        "status": head and (head.http_version, head.status, head.reason),
        "headers": head and list(head.headers.get_all()),
        "interim": interim,
        "body": decoder.body,
        "body_bytes": decoder.body_bytes,
        "trailers": list(decoder.trailers.get_all()),
        "complete": complete,
        "missing": missing,
        "surplus": decoder.surplus,
        "reusable": decoder.reusable,
        "upgraded": decoder.upgraded,
        "received": decoder.bytes_received,
    }


def read_requests(pieces: Iterable[bytes], **limits: int) -> Any:
    """Feed pieces of requests; return these, and the status of a refusal or where the end came."""
    decoder = RequestDecoder(**limits)
    found: list[Any] = []
    head: RequestHead | None = None
    body = b""
    try:
        for piece in [*pieces, b""]:
            data = piece
            while True:
                if decoder.complete:
                    head = decoder.feed(data)
                    body = b""
                    if head is None:
                        break
                else:
                    body += decoder.feed_body(data)
                if decoder.complete:
                    assert head is not None
                    found.append((head.method, head.target, body, dict(decoder.trailers)))
                if not decoder.rest:
                    break
                data = b""
    except HTTPInputError as error:
        return (found, error.status if isinstance(error, RefusalError) else 400)
    state = "between" if decoder.complete and not decoder.begun and not decoder.rest else "within"
    return (found, state)


def read_coded(pieces: Iterable[bytes], coding: str, step: int = 65536) -> Any:
    """Decode pieces of a body, so many bytes at once at most."""
    decoder = decoder_for(coding)
    assert decoder is not None
    found = []
    try:
        for piece in pieces:
            out = decoder.decompress(piece, step)
            while out or decoder.pending:
                assert len(out) <= step
                found.append(out)
                out = decoder.decompress(b"", step) if decoder.pending else b""
        decoder.finish()
    except HTTPInputError as error:
        assert str(error)
        return REFUSED
    return b"".join(found)
