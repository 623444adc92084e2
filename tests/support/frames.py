"""Frames of WebSockets (RFC 6455 section 5.2), right and wrong, byte by byte."""

from __future__ import annotations

import struct

MASK = b"\x37\xfa\x21\x3d"


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = None,
    form: int = 0,
    announced: int | None = None,
) -> bytes:
    """Return a frame.

    Arguments:
        opcode, payload, fin: as they are called there.
        rsv: the three reserved bits, as in 0b100.
        mask: the key, or None for a frame that is not masked.
        form: how many bytes the length takes beyond the first (0, 2 or 8) at the least.
        announced: the length to announce, if not the payload's.
    """
    length = len(payload) if announced is None else announced
    bit = 0 if mask is None else 0x80
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if form == 8 or length > 0xFFFF:
        head += struct.pack("!BQ", bit | 127, length)
    elif form == 2 or length > 125:
        head += struct.pack("!BH", bit | 126, length)
    else:
        head += bytes([bit | length])
    if mask is None:
        return head + payload
    return head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


def closing(code: int, reason: bytes = b"", mask: bytes | None = None) -> bytes:
    """Return a frame that closes."""
    return frame(8, struct.pack("!H", code) + reason, mask=mask)
