"""WebSocket messages out of bytes and into bytes (RFC 6455), by wsproto; no input or output.

wsproto knows frames: their headers, masks, order and UTF-8. Added here is what it does not do: to
put the pieces of a message together, with a limit; and compression (RFC 7692) whose result is
bounded while it is inflated. Both stand in one ``_Intake``, an extension in wsproto's terms, which
sees the header of each frame before its payload: so a message that is announced too large is
refused before it has come, and one that inflates too far as soon as it does.

wsproto may show an extension the same header twice, where a frame's mask has not come yet. So what
a header changes is what it says and nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

try:
    from wsproto.connection import Connection, ConnectionState, ConnectionType
    from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
    from wsproto.extensions import Extension
    from wsproto.frame_protocol import CloseReason, Opcode, RsvBits
except ImportError as error:
    raise ImportError("WebSockets need wsproto: pip install 'coro-loop[websocket]'") from error

__all__ = ["Closing", "Deflate", "Event", "Fault", "FrameCodec", "Ping", "Pong"]

# What zlib inflates, whatever the window that the peer has chosen.
_LARGEST_WINDOW = 15

# What a compressed message leaves out at its end (RFC 7692 section 7.2.2).
_SYNC_TAIL = b"\x00\x00\xff\xff"


@dataclass(frozen=True, slots=True)
class Closing:
    """The peer closes: its code (1005: none was given) and reason."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fault:
    """The peer breaks a rule, or a limit: the code to close with, and why."""

    code: int
    reason: str


Event: TypeAlias = "str | bytes | Ping | Pong | Closing | Fault"


@dataclass(frozen=True, slots=True)
class Deflate:
    """What both sides have agreed on for permessage-deflate (RFC 7692 section 7).

    Attributes:
        sent_bits, sent_afresh: window of what this side compresses (9 to 15), and whether each
            message is compressed on its own.
        received_afresh: whether each of the peer's messages is.
        options: ``compression_level`` and ``mem_level`` of zlib.
    """

    sent_bits: int = _LARGEST_WINDOW
    sent_afresh: bool = False
    received_afresh: bool = False
    options: Mapping[str, int] | None = None


class FrameCodec:
    """The frames of one connection, in both directions.

        codec.feed(data)
        for event in codec.events(): ...

    Arguments:
        client: whether this side is the client, which masks what it sends.
        max_message_size: limit for a message as received and inflated, in bytes.
        deflate: how messages are compressed; None: they are not.
    """

    __slots__ = ("_binary", "_faulty", "_intake", "_text", "_wire")

    def __init__(self, client: bool, max_message_size: int, deflate: Deflate | None) -> None:
        self._intake = _Intake(max_message_size, deflate)
        side = ConnectionType.CLIENT if client else ConnectionType.SERVER
        self._wire = Connection(side, [self._intake])
        # The pieces of a message that has not ended; of a text, in UTF-8. No lists, nor what keeps
        # some itself: pieces of one byte would weigh.
        self._text: bytearray | None = None
        self._binary: bytearray | None = None
        self._faulty = False

    @property
    def open(self) -> bool:
        """Whether neither side has begun to close."""
        return self._wire.state is ConnectionState.OPEN and not self._faulty

    @property
    def ended(self) -> bool:
        """Whether nothing more can come: the peer has closed, or was at fault."""
        return self._faulty or self._wire.state not in (
            ConnectionState.OPEN,
            ConnectionState.LOCAL_CLOSING,
        )

    # --- receiving -------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take in bytes as received; ``events`` tells what they mean."""
        if not self.ended:
            self._wire.receive_data(data)

    def events(self) -> Iterator[Event]:
        """Tell what has come, message by message, as far as it is asked for."""
        for event in self._wire.events():
            if isinstance(event, TextMessage):
                if event.message_finished and self._text is None:
                    yield event.data
                else:
                    yield from self._add_text(event)
            elif isinstance(event, BytesMessage):
                if event.message_finished and self._binary is None:
                    yield bytes(event.data)
                else:
                    yield from self._add_binary(event)
            elif isinstance(event, CloseConnection):
                yield self._end(event)
            elif isinstance(event, Ping | Pong):
                yield event

    def _add_text(self, event: TextMessage) -> Iterator[str]:
        if self._text is None:
            self._text = bytearray()
        self._text += event.data.encode()
        if event.message_finished:
            text, self._text = self._text.decode(), None
            yield text

    def _add_binary(self, event: BytesMessage) -> Iterator[bytes]:
        if self._binary is None:
            self._binary = bytearray()
        self._binary += event.data
        if event.message_finished:
            data, self._binary = bytes(self._binary), None
            yield data

    def _end(self, event: CloseConnection) -> Closing | Fault:
        reason = event.reason or ""
        if self.ended:
            return Closing(int(event.code), reason)
        # wsproto tells of faults in the same way, but its state stays.
        self._faulty = True
        if event.code == CloseReason.MESSAGE_TOO_BIG:
            reason = f"a message of over {self._intake.limit} bytes"
        return Fault(int(event.code), reason)

    # --- sending ---------------------------------------------------------------------------

    def encode(self, message: str | bytes | bytearray) -> bytes:
        """Return the frame of a text or binary message."""
        if isinstance(message, str):
            return bytes(self._wire.send(TextMessage(data=message)))
        return bytes(self._wire.send(BytesMessage(data=message)))

    def ping(self, payload: bytes) -> bytes:
        """Return a ping."""
        return bytes(self._wire.send(Ping(payload=payload)))

    def pong(self, payload: bytes) -> bytes:
        """Return the answer to a ping."""
        return bytes(self._wire.send(Pong(payload=payload)))

    def close(self, code: int, reason: str = "") -> bytes:
        """Return the frame that closes, or that answers the peer's; 1005 for no code."""
        known = CloseReason.NO_STATUS_RCVD if code == CloseReason.NO_STATUS_RCVD else code
        return bytes(self._wire.send(CloseConnection(known, reason or None)))


class _Intake(Extension):
    """Bounds each message that comes, and compresses and inflates where that was agreed on."""

    name = "intake"

    def __init__(self, limit: int, deflate: Deflate | None) -> None:
        self.limit = limit
        self._deflate = deflate
        self._compressor: Any = None
        self._inflater: Any = None
        # Of the message that is coming: whether it is compressed, whether its compressed data had
        # an end of its own, and how many bytes of it there are, in frames that have ended and, if
        # it is compressed, inflated.
        self._compressed = self._had_end = False
        self._size = 0
        # Of the present frame: whether it is one of control, and the bytes it announces.
        self._is_control = False
        self._announced = 0

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool | str:
        return False

    # --- receiving -------------------------------------------------------------------------

    def frame_inbound_header(
        self, proto: Any, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        self._is_control = opcode.iscontrol()
        if self._is_control:
            return RsvBits(False, False, False)
        begins = opcode is not Opcode.CONTINUATION
        if begins:
            self._size = 0
            self._had_end = False
            self._compressed = rsv.rsv1 and self._deflate is not None
        self._announced = payload_length
        if not self._compressed and self._size + payload_length > self.limit:
            return CloseReason.MESSAGE_TOO_BIG
        return RsvBits(begins and self._deflate is not None, False, False)

    def frame_inbound_payload_data(self, proto: Any, data: bytes) -> bytes | CloseReason:
        if self._is_control or not self._compressed:
            return data
        return self._inflate(data)

    def frame_inbound_complete(self, proto: Any, fin: bool) -> bytes | CloseReason | None:
        if self._is_control:
            return None
        if not self._compressed:
            self._size += self._announced
            return None
        if not fin:
            return None
        rest = self._inflate(_SYNC_TAIL)
        assert self._deflate is not None
        if self._deflate.received_afresh:
            self._inflater = None
        return rest

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        inflater = self._inflater
        if inflater is None:
            inflater = self._inflater = zlib.decompressobj(-_LARGEST_WINDOW)
        try:
            # One byte more than there may be: at the least one, for none means any number.
            found: bytes = inflater.decompress(data, self.limit - self._size + 1)
            self._size += len(found)
            if self._size > self.limit:
                return CloseReason.MESSAGE_TOO_BIG
            if inflater.eof:
                # Once in a message this may be (section 7.2.3.4); more often it only costs time.
                if self._had_end:
                    return CloseReason.INVALID_FRAME_PAYLOAD_DATA
                self._had_end = True
                rest = inflater.unused_data
                self._inflater = None
                more = self._inflate(rest)
                return found + more if isinstance(more, bytes) else more
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        return found

    # --- sending ---------------------------------------------------------------------------

    def frame_outbound(
        self, proto: Any, opcode: Opcode, rsv: RsvBits, data: bytes, fin: bool
    ) -> tuple[RsvBits, bytes]:
        deflate = self._deflate
        if deflate is None or opcode.iscontrol():
            return rsv, data
        compressor = self._compressor
        if compressor is None:
            options = deflate.options or {}
            compressor = zlib.compressobj(
                options.get("compression_level", zlib.Z_DEFAULT_COMPRESSION),
                zlib.DEFLATED,
                -deflate.sent_bits,
                options.get("mem_level", zlib.DEF_MEM_LEVEL),
            )
            if not deflate.sent_afresh:
                self._compressor = compressor
        data = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return RsvBits(True, rsv.rsv2, rsv.rsv3), data[: -len(_SYNC_TAIL)]
