"""The opening handshake of a WebSocket (RFC 6455 section 4), of both sides; no input or output.

The client proves with its key that it means a WebSocket, the server with its answer that it has
understood. Neither keeps a browser from connecting to a server of somebody else, with the cookies
of its user: for that, a server looks at the ``Origin`` (section 10.2).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from coro.http.frames import Deflate
from coro.http.headers import HTTPHeaders
from coro.http.request import HTTPServerRequest
from coro.http.response import Response
from coro.http.urls import parse

__all__ = [
    "AllowedOrigins",
    "HandshakeError",
    "Opening",
    "accept_value",
    "agreed_deflate",
    "check_answer",
    "client_fields",
    "new_key",
]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

# One of a list of extensions, or one of its parameters; quoted strings may hold anything.
_PARAMETER = re.compile(
    r"\s*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)\s*(?:=\s*(?:([!#$%&'*+\-.^_`|~0-9A-Za-z]+)|\"([^\"]*)\")\s*)?([;,]|$)"
)

# No client offers so many in earnest.
_MAX_OFFERS = 32

AllowedOrigins = Collection[str] | Literal["*"] | None


class HandshakeError(Exception):
    """The handshake failed; on the server's side ``response`` is what to answer."""

    def __init__(self, message: str, status: int = 400, **fields: str) -> None:
        super().__init__(message)
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        self.response = Response(f"{message}\n", status, headers)


def new_key() -> str:
    """Return a value for ``Sec-WebSocket-Key``."""
    return base64.b64encode(os.urandom(16)).decode()


def accept_value(key: str) -> str:
    """Return the value of ``Sec-WebSocket-Accept`` that answers a key."""
    digest = hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


# --- the client's side ---------------------------------------------------------------------


def client_fields(
    key: str, subprotocols: Sequence[str], compression: Mapping[str, int] | None
) -> HTTPHeaders:
    """Return the fields that ask for a WebSocket.

    Raises:
        ValueError: a subprotocol that is no token, or stands twice.
    """
    fields = HTTPHeaders(
        {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
        }
    )
    if subprotocols:
        fields["Sec-WebSocket-Protocol"] = ", ".join(_checked(subprotocols))
    if compression is not None:
        fields["Sec-WebSocket-Extensions"] = "permessage-deflate; client_max_window_bits"
    return fields


def _checked(subprotocols: Sequence[str]) -> list[str]:
    if isinstance(subprotocols, str) or len(set(subprotocols)) < len(subprotocols):
        raise ValueError(f"subprotocols are names, each of them once, not {subprotocols!r}")
    for name in subprotocols:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"a subprotocol is a token (RFC 6455 section 4.1), unlike {name!r}")
    return list(subprotocols)


def check_answer(headers: HTTPHeaders, key: str, subprotocols: Sequence[str]) -> str | None:
    """Look at the fields of a 101; return the subprotocol that the server has chosen.

    Raises:
        HandshakeError: they do not answer the request (RFC 6455 section 4.1).
    """
    if headers.get("Upgrade", "").lower() != "websocket":
        raise HandshakeError("the server has switched to another protocol than WebSocket")
    if "upgrade" not in _tokens(headers.get("Connection", "")):
        raise HandshakeError("the server's 101 has no 'Connection: Upgrade'")
    if headers.get("Sec-WebSocket-Accept", "").strip() != accept_value(key):
        raise HandshakeError("the server's Sec-WebSocket-Accept does not answer the request's key")
    chosen = headers.get("Sec-WebSocket-Protocol")
    if chosen is not None and chosen not in subprotocols:
        raise HandshakeError(
            f"the server has chosen a subprotocol that was not offered: {chosen!r}"
        )
    return chosen


def agreed_deflate(headers: HTTPHeaders, compression: Mapping[str, int] | None) -> Deflate | None:
    """Return how messages are compressed by what the server has answered.

    Raises:
        HandshakeError: it has chosen what was not offered (RFC 6455 section 9.1).
    """
    extensions = list(_extensions(headers.get("Sec-WebSocket-Extensions", "")))
    if not extensions:
        return None
    name, parameters = extensions[0]
    if compression is None or len(extensions) > 1 or name != "permessage-deflate":
        raise HandshakeError("the server has chosen an extension that was not offered")
    if parameters is None:
        raise HandshakeError("the parameters of the server's extension make no sense")
    known = {"server_no_context_takeover", "client_no_context_takeover"}
    bits = _bits(parameters.pop("client_max_window_bits", "15"))
    # Whatever it is, it can be inflated.
    theirs = parameters.pop("server_max_window_bits", "15")
    if (
        bits is None
        or not re.fullmatch("8|9|1[0-5]", theirs or "")
        or not known.issuperset(parameters)
    ):
        raise HandshakeError("the parameters of the server's extension make no sense")
    if any(parameters.values()):
        raise HandshakeError("the parameters of the server's extension make no sense")
    return Deflate(
        bits,
        "client_no_context_takeover" in parameters,
        "server_no_context_takeover" in parameters,
        compression,
    )


# --- the server's side ---------------------------------------------------------------------


class Opening:
    """A client's handshake, looked at.

    Attributes:
        subprotocols: which the client offers, the one it likes best first.

    Arguments:
        request: the request.
        allowed_origins: from which pages browsers may connect: "*" for any, else origins as
            ``"https://example.org"``; None: the request's own host. Who sends no ``Origin`` is no
            browser, and may.
    Raises:
        HandshakeError: it does not ask for a WebSocket, or may not have it.
    """

    def __init__(self, request: HTTPServerRequest, allowed_origins: AllowedOrigins) -> None:
        headers = request.headers
        if "websocket" not in _tokens(request.head.upgrade or ""):
            raise HandshakeError(
                "here is a WebSocket", 426, Upgrade="websocket", Connection="Upgrade"
            )
        if request.method != "GET" or request.version != "HTTP/1.1":
            raise HandshakeError("a WebSocket is opened by a GET of HTTP/1.1")
        if headers.get("Sec-WebSocket-Version", "").strip() != "13":
            raise HandshakeError(
                "version 13 is spoken here",
                426,
                Sec_WebSocket_Version="13",
                Upgrade="websocket",
                Connection="Upgrade",
            )
        if request.body or not request.connection.body_complete:
            raise HandshakeError("a WebSocket is opened by a request without a body")
        key = headers.get("Sec-WebSocket-Key", "").strip()
        if not _is_key(key):
            raise HandshakeError("Sec-WebSocket-Key is not 16 bytes in base64")
        _check_origin(request, allowed_origins)
        offered = headers.get("Sec-WebSocket-Protocol", "")
        self.subprotocols = [name.strip() for name in offered.split(",") if name.strip()]
        self._key = key
        self._extensions = headers.get("Sec-WebSocket-Extensions", "")

    def choose(self, subprotocols: Sequence[str]) -> str | None:
        """Return the first of these subprotocols that the client offers; None if there is none."""
        return next((name for name in subprotocols if name in self.subprotocols), None)

    def answer(
        self, subprotocol: str | None, compression: Mapping[str, int] | None
    ) -> tuple[HTTPHeaders, Deflate | None]:
        """Return the fields of the 101, and how messages are compressed."""
        fields = HTTPHeaders(
            {
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Accept": accept_value(self._key),
            }
        )
        if subprotocol is not None:
            fields["Sec-WebSocket-Protocol"] = subprotocol
        if compression is not None:
            for name, parameters in _extensions(self._extensions):
                if name == "permessage-deflate" and parameters is not None:
                    agreed = _agree(parameters, compression)
                    if agreed is not None:
                        fields["Sec-WebSocket-Extensions"], deflate = agreed
                        return fields, deflate
        return fields, None


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def _check_origin(request: HTTPServerRequest, allowed: AllowedOrigins) -> None:
    origin = request.headers.get("Origin")
    if origin is None or allowed == "*":
        return
    origin = origin.lower()
    if allowed is not None:
        if origin in {each.lower() for each in allowed}:
            return
    else:
        try:
            authority = parse(origin).authority
        except ValueError:
            authority = None  # as that of a page that has none: "null"
        own = request.host.lower()
        default = ":443" if request.protocol == "https" else ":80"
        if authority is not None and authority == own.removesuffix(default):
            return
    raise HandshakeError(f"pages of {origin!r:.200} may not connect here", 403)


def _agree(
    parameters: dict[str, str | None], compression: Mapping[str, int]
) -> tuple[str, Deflate] | None:
    """Answer an offer of permessage-deflate; None declines it (RFC 7692 section 7.1)."""
    answer = ["permessage-deflate"]
    afresh = []
    for name in ("server_no_context_takeover", "client_no_context_takeover"):
        value = parameters.pop(name, "")
        if value is not None and value != "":
            return None
        afresh.append(value is None)
        if value is None:
            answer.append(name)
    asked = "server_max_window_bits" in parameters
    bits = _bits(parameters.pop("server_max_window_bits", "15"))
    if bits is None:
        return None
    if asked:
        answer.append(f"server_max_window_bits={bits}")
    # What the client could do without need not be answered: anything can be inflated.
    theirs = parameters.pop("client_max_window_bits", None)
    if parameters or (theirs is not None and not re.fullmatch("8|9|1[0-5]", theirs)):
        return None
    return "; ".join(answer), Deflate(bits, afresh[0], afresh[1], compression)


def _bits(value: str | None) -> int | None:
    """Read the size of a window that zlib can compress with; None if it is none."""
    return int(value) if value and re.fullmatch("9|1[0-5]", value) else None


def _tokens(value: str) -> list[str]:
    return [token.strip().lower() for token in value.split(",")]


def _extensions(value: str) -> Iterator[tuple[str, dict[str, str | None] | None]]:
    """Take ``Sec-WebSocket-Extensions`` apart: names with their parameters, None if one is twice.

    What makes no sense ends the list.
    """
    position = 0
    name: str | None = None
    parameters: dict[str, str | None] | None = {}
    count = 0
    while position < len(value) and count < _MAX_OFFERS:
        match = _PARAMETER.match(value, position)
        if match is None:
            return
        position = match.end()
        if name is None:
            name = match[1].lower()
        elif parameters is not None:
            given = match[2] if match[2] is not None else match[3]
            parameters = None if match[1] in parameters else {**parameters, match[1]: given}
        if match[4] != ";":
            yield name, parameters
            count += 1
            name, parameters = None, {}
