"""What ``--verbose`` shows: connections, and the heads that go over them."""

from __future__ import annotations

from collections.abc import Callable

from coro.cli.display import one_line
from coro.errors import format_address
from coro.http.headers import SECRET_FIELDS, canonical_name
from coro.stream import IOStream, SSLIOStream

__all__ = ["Exchange"]


class Exchange:
    """One fetch as its lines tell it: ``*`` the connection, ``>`` what was sent, ``<`` what came.

    Each part is told in one piece, so that those of several fetches do not mix line by line.

    Arguments:
        tell: writes text for people.
        mark: stands before each line, to tell fetches apart.
    """

    def __init__(self, tell: Callable[[str], None], mark: str = "") -> None:
        self._tell = tell
        self._mark = mark

    def connected(self, stream: IOStream, reused: bool) -> None:
        """Tell of the connection that a request goes over."""
        attempts = stream.attempts
        where = format_address(attempts[-1].address) if attempts else "a server"
        if reused:
            self._show("*", [f"the connection to {where} once more"])
            return
        lines = [f"tried {attempt}" for attempt in attempts[:-1]]
        lines.append(f"connected to {where}")
        if isinstance(stream, SSLIOStream):
            lines += _describe_tls(stream)
        self._show("*", lines)

    def sent(self, head: bytes) -> None:
        """Tell of a request; a body that follows the head is left out."""
        self._show(">", _lines(head))

    def received(self, head: bytes) -> None:
        """Tell of a response."""
        self._show("<", _lines(head))

    def _show(self, sign: str, lines: list[str]) -> None:
        self._tell("\n".join(f"{self._mark}{sign} {one_line(line)}".rstrip() for line in lines))


def _lines(head: bytes) -> list[str]:
    """Return the lines of a head, secrets left out, and an empty one for its end."""
    text = head.partition(b"\r\n\r\n")[0].decode("latin-1")
    shown = []
    for line in text.split("\r\n"):
        name, colon, _ = line.partition(":")
        secret = colon and canonical_name(name) in SECRET_FIELDS
        shown.append(f"{name}: (not shown)" if secret else line)
    return [*shown, ""]


def _describe_tls(stream: SSLIOStream) -> list[str]:
    """Say what was agreed upon, and who the peer has shown to be."""
    cipher = stream.cipher()
    name = "no cipher" if cipher is None else cipher[0]
    parts = [stream.version() or "TLS", name]
    protocol = stream.selected_alpn_protocol()
    if protocol is not None:
        parts.append(protocol)
    if stream.session_reused:
        parts.append("session resumed")
    certificate = stream.getpeercert()
    if not certificate:
        return [", ".join(parts), "certificate not checked"]
    names = ", ".join(value for _, value in certificate.get("subjectAltName", ()))
    issuer = dict(pair for entry in certificate.get("issuer", ()) for pair in entry)
    by = issuer.get("commonName") or issuer.get("organizationName") or "an authority without a name"
    return [
        ", ".join(parts),
        f"certificate of {names or 'nobody'} by {by}, until {certificate.get('notAfter')}",
    ]
