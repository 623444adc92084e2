"""TLS contexts, and sockets wrapped in them. The handshake's states live above, in the stream.

Defaults are the safe ones: certificates and host names are checked, TLS 1.2 is the least, and the
protocol offered by ALPN is HTTP/1.1 where HTTP asks for it. A context with the system's authorities
takes milliseconds to make, so equal requirements share one, made when the first needs it.

``wrap`` gives one of two things with the same methods, and a stream does not know which it has:

- An ``ssl.SSLSocket``, where there is a real socket directly below. OpenSSL reads and writes the
  descriptor itself, which costs the least. It cannot end one direction alone: what the peer goes
  on to send would be lost.
- A ``TLSPump``, for all else: TLS inside TLS, a socket without a descriptor, a half-close. OpenSSL
  works on memory, and the pump carries the ciphertext between that memory and the socket below.

Both say "not now" by ``ssl.SSLWantReadError`` and ``ssl.SSLWantWriteError``, also crosswise: when
keys change, TLS may have to write before it can read, or read before it can write. Both want a
``send`` that was told to wait to be tried again with the same bytes.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections import OrderedDict
from collections.abc import Generator, Mapping
from functools import lru_cache, partial
from typing import Any, TypeAlias

__all__ = [
    "TLSOptions",
    "TLSPump",
    "client_context",
    "context_for",
    "discard_received",
    "explain",
    "keep_session",
    "name_peer",
    "wrap",
]

TLSOptions: TypeAlias = ssl.SSLContext | Mapping[str, Any] | None

_OPTION_NAMES = frozenset(
    {"ssl_version", "certfile", "keyfile", "cert_reqs", "ca_certs", "ciphers", "alpn_protocols"}
)


@lru_cache(maxsize=64)
def client_context(
    ca_certs: str | None = None,
    client_cert: str | None = None,
    client_key: str | None = None,
    validate: bool = True,
    alpn: tuple[str, ...] = (),
) -> ssl.SSLContext:
    """Return the context for connections to servers; the same one for the same arguments.

    Arguments:
        ca_certs: PEM file of the authorities to trust instead of the system's.
        client_cert: PEM file of the certificate to show, with its chain.
        client_key: PEM file of its key, if that is not in ``client_cert``.
        validate: check the server's certificate and name. Without it anybody may be the server.
        alpn: protocols to offer (RFC 7301), the preferred one first.
    Raises:
        OSError: a file cannot be read; ``ssl.SSLError`` if it is not what it should be.
    """
    with _naming(ca_certs):
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_certs)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not validate:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if client_cert is not None:
        with _naming(client_cert, client_key):
            context.load_cert_chain(client_cert, client_key)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def context_for(options: TLSOptions, server_side: bool) -> ssl.SSLContext:
    """Return the context that the options ask for.

    Arguments:
        options: a context, taken as it is; a dict with the names that ``ssl.wrap_socket`` had
            (``certfile``, ``keyfile``, ``cert_reqs``, ``ca_certs``, ``ciphers``); or None for the
            safe defaults.
        server_side: which side of the handshake it is for.
    Raises:
        TypeError: an option that does not exist.
        ValueError: a server without a certificate.
    """
    if isinstance(options, ssl.SSLContext):
        return options
    if options is None and not server_side:
        return client_context()
    given = dict(options or {})
    unknown = given.keys() - _OPTION_NAMES
    if unknown:
        raise TypeError(f"unknown TLS option {min(unknown)!r}; known: {sorted(_OPTION_NAMES)}")
    if server_side and "certfile" not in given:
        raise ValueError('a TLS server needs a certificate: {"certfile": ..., "keyfile": ...}')
    purpose = ssl.Purpose.CLIENT_AUTH if server_side else ssl.Purpose.SERVER_AUTH
    with _naming(given.get("ca_certs")):
        context = ssl.create_default_context(purpose, cafile=given.get("ca_certs"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if server_side:
        # A renegotiation costs the server far more than the client that asks for it.
        context.options |= ssl.OP_NO_RENEGOTIATION
    if "cert_reqs" in given:
        if given["cert_reqs"] == ssl.CERT_NONE:
            context.check_hostname = False
        context.verify_mode = given["cert_reqs"]
    if "certfile" in given:
        with _naming(given["certfile"], given.get("keyfile")):
            context.load_cert_chain(given["certfile"], given.get("keyfile"))
    if "ciphers" in given:
        context.set_ciphers(given["ciphers"])
    if "alpn_protocols" in given:
        context.set_alpn_protocols(given["alpn_protocols"])
    return context


@contextlib.contextmanager
def _naming(*files: Any) -> Generator[None]:
    """Let errors of the block tell which file it is that they are about; ``ssl``'s own do not.

    Raises:
        OSError: a file cannot be read; ``ssl.SSLError`` if it is not what it should be.
    """
    names = [file for file in files if file is not None]
    for name in names:
        open(name, "rb").close()
    try:
        yield
    except ssl.SSLError as error:
        error.strerror = f"{error.strerror}; it is about {' and '.join(map(str, names))}"
        raise


def wrap(
    sock: Any,
    context: ssl.SSLContext,
    *,
    server_side: bool,
    server_hostname: str | None = None,
    half_close: bool = False,
) -> ssl.SSLSocket | TLSPump:
    """Put TLS on a connected socket, which belongs to it then; the handshake is still to be done.

    Truncation is told: an end of the connection without the peer's close_notify raises
    ``ssl.SSLEOFError`` (RFC 8446 section 6.1).

    Arguments:
        sock: a non-blocking socket, or what has a socket's methods: TLS itself, for instance.
        context: the rules.
        server_side: which side of the handshake to take.
        server_hostname: for clients, the name or address to send (SNI) and to check.
        half_close: make it possible to end one direction alone, ``shutdown(SHUT_WR)``.
    Raises:
        ValueError: the context checks host names and none is given; the socket is as it was.
        OSError: the connection is gone.
    """
    if context.check_hostname and not server_side and not server_hostname:
        raise ValueError("TLS checks the peer's name: give a server_hostname")
    session = None if server_side else _take_session(context, server_hostname, sock)
    if isinstance(sock, socket.socket) and not isinstance(sock, ssl.SSLSocket) and not half_close:
        # Raises if the connection is gone. So would what follows, but it may lose the descriptor.
        sock.getpeername()
        return context.wrap_socket(
            sock,
            server_side=server_side,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
            session=session,
        )
    return TLSPump(
        sock, context, server_side=server_side, server_hostname=server_hostname, session=session
    )


class TLSPump:
    """TLS with the methods of a non-blocking ``ssl.SSLSocket``, over anything with a socket's.

    Bounded: it holds at most one piece of each direction, and takes neither more ciphertext from
    below before the last was used up, nor more plaintext from above before the ciphertext of the
    last has gone down. So pressure from either side reaches the other.

    Arguments:
        sock: a connected socket or the like, non-blocking; the pump owns it.
        context: the rules.
        server_side: which side of the handshake to take.
        server_hostname: for clients, the name or address to send (SNI) and to check.
        session: for clients, an earlier session to go on with.
    Raises:
        ValueError: the session belongs to another context.
    """

    def __init__(
        self,
        sock: Any,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._below = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side, server_hostname, session
        )
        # Ciphertext on its way down. The socket below may be TLS too, so what it was offered is
        # what it is offered again.
        self._unsent = b""
        # How much plaintext was encrypted by a ``send`` that has not been told so yet, because
        # not all of its ciphertext has gone down.
        self._encrypted = 0
        # Plaintext that was decrypted before it was asked for.
        self._decrypted = b""
        # Whether close_notify was written.
        self._said_goodbye = False
        # Whether nothing more will come from below: it has come to its end, or the peer's TLS has.
        self._ended = False

    def __repr__(self) -> str:
        return f"<TLSPump {self._tls.version() or 'no handshake yet'} over {self._below!r}>"

    # --- what TLS knows --------------------------------------------------------------------

    @property
    def context(self) -> ssl.SSLContext:
        """The rules."""
        return self._tls.context

    @property
    def server_side(self) -> bool:
        """Which side of the handshake it takes."""
        return self._tls.server_side

    @property
    def server_hostname(self) -> str | None:
        """The name that was sent and checked."""
        return self._tls.server_hostname

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a later connection may go on with."""
        return self._tls.session

    @property
    def session_reused(self) -> bool | None:
        """Whether the handshake was shortened by an earlier session."""
        return self._tls.session_reused

    def getpeercert(self, binary_form: bool = False) -> Any:
        """Return the peer's certificate, as ``ssl.SSLObject`` does."""
        return self._tls.getpeercert(binary_form)

    def selected_alpn_protocol(self) -> str | None:
        """Return the protocol that both sides agreed on (RFC 7301), or None."""
        return self._tls.selected_alpn_protocol()

    def version(self) -> str | None:
        """Return the version of TLS, such as "TLSv1.3", or None before the handshake."""
        return self._tls.version()

    def cipher(self) -> tuple[str, str, int] | None:
        """Return the cipher's name, its protocol and its bits."""
        return self._tls.cipher()

    # --- what the socket below knows -------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._below.fileno()  # type: ignore[no-any-return]

    def setblocking(self, flag: bool) -> None:
        """Tell the socket below; the pump itself is made for one that does not block."""
        self._below.setblocking(flag)

    def getpeername(self) -> Any:
        """Return the peer's address."""
        return self._below.getpeername()

    def getsockname(self) -> Any:
        """Return the address at this end."""
        return self._below.getsockname()

    def getsockopt(self, *args: Any) -> Any:
        """Return an option of the socket below."""
        return self._below.getsockopt(*args)

    def setsockopt(self, *args: Any) -> None:
        """Set an option of the socket below."""
        self._below.setsockopt(*args)

    @property
    def family(self) -> int:
        """The socket's family."""
        return self._below.family  # type: ignore[no-any-return]

    # --- traffic ---------------------------------------------------------------------------

    def do_handshake(self) -> None:
        """Go on with the handshake.

        Raises:
            ssl.SSLWantReadError, ssl.SSLWantWriteError: call again when the socket is ready.
            ssl.SSLError: it failed; the peer was told why, if that went at once.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            except ssl.SSLError:
                self._flush_what_goes()
                raise
            else:
                # Of an error the next ``send`` will tell: the peer may have left, and what it said
                # before that is to be read.
                with contextlib.suppress(ConnectionError):
                    self._flush()
                return

    def recv(self, size: int) -> bytes:
        """Return up to ``size`` bytes of one record; none at the end that the peer has announced.

        Raises:
            ssl.SSLWantReadError: nothing is there yet.
            ssl.SSLWantWriteError: nothing is there, and ciphertext has to be sent first.
            ssl.SSLEOFError: the connection ended without such an announcement.
        """
        if self._decrypted:
            taken = self._decrypted[:size]
            self._decrypted = self._decrypted[size:]
            return taken
        return self._read(size)  # type: ignore[no-any-return]

    def recv_into(self, buffer: memoryview) -> int:
        """Receive into a buffer; return how many bytes. Raises as ``recv`` does."""
        if self._decrypted:
            taken = self.recv(len(buffer))
            buffer[: len(taken)] = taken
            return len(taken)
        return self._read(len(buffer), buffer) or 0

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send the first bytes; return how many, once their ciphertext has gone down.

        Raises:
            ssl.SSLWantWriteError: not all of it has; call again, with the same bytes.
            ssl.SSLWantReadError: the peer has to be heard first; call again, with the same bytes.
        """
        self._flush()
        if not self._encrypted:
            with memoryview(data) as view, view[:_PIECE] as piece:
                self._encrypted = self._tls.write(piece)
            self._flush()
        sent, self._encrypted = self._encrypted, 0
        return sent

    def pending(self) -> int:
        """Return how many bytes were received for which the descriptor will not wake anybody.

        Not all of them need be plaintext; but whenever ``recv`` has found nothing, none is left.
        """
        count = self._at_hand()
        pending = getattr(self._below, "pending", None)
        return count if pending is None else count + pending()

    def _at_hand(self) -> int:
        return len(self._decrypted) + self._tls.pending() + self._incoming.pending

    def _read(self, size: int, *buffer: memoryview) -> Any:
        if not self._at_hand():
            self._fill()
        try:
            got = self._tls.read(size, *buffer)
            if not got and size:
                self._ended = True
            return got
        except ssl.SSLZeroReturnError:
            # So the ssl module has it where this side has ended its direction before.
            self._ended = True
            return b""
        except ssl.SSLWantReadError:
            self._flush_what_goes()
            if self._unsent:
                raise _want_write() from None
            raise
        except ssl.SSLError:
            self._flush_what_goes()  # the alert that says what was wrong
            raise

    def _fill(self) -> None:
        """Receive ciphertext from below, now that none is left."""
        if self._ended:
            return
        self._flush_what_goes()
        if self._outgoing.pending > _PIECE:
            raise _want_write()  # A peer that asks for answers has to take them.
        try:
            chunk = self._below.recv(_PIECE)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            if self._unsent:
                raise _want_write() from None
            raise ssl.SSLWantReadError(
                ssl.SSL_ERROR_WANT_READ, "nothing has been received"
            ) from None
        if chunk:
            self._incoming.write(chunk)
        else:
            self._ended = True
            self._incoming.write_eof()

    def _flush(self) -> None:
        """Send all ciphertext down."""
        while True:
            if not self._unsent:
                self._unsent = self._outgoing.read()
                if not self._unsent:
                    return
            try:
                sent = self._below.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                raise _want_write() from None
            self._unsent = self._unsent[sent:]

    def _flush_what_goes(self) -> None:
        """Send what goes at once; why the rest does not go, the next ``send`` will tell."""
        with contextlib.suppress(OSError):
            self._flush()

    # --- the end ---------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End the direction away from here (close_notify); the other goes on.

        Arguments:
            how: ``socket.SHUT_WR``; no other end is possible without closing.
        Raises:
            ssl.SSLWantWriteError: not all ciphertext has gone down; call again.
        """
        if how != socket.SHUT_WR:
            raise ValueError("TLS ends in the direction away from here, or is closed")
        if not self._said_goodbye:
            self._said_goodbye = True
            # OpenSSL, having said goodbye, looks for the peer's, and throws away what comes
            # before that. So all that has come is put aside meanwhile.
            if self._tls.pending():
                self._decrypted += self._tls.read(self._tls.pending())
            ciphertext = self._incoming.read()
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLEOFError):
                self._tls.unwrap()
            if ciphertext:
                self._incoming.write(ciphertext)
        self._flush()

    def unwrap(self) -> None:
        """Say goodbye (close_notify) before a close, and so does TLS below.

        Raises:
            OSError: that did not go at once, or not at all.
        """
        if not self._said_goodbye:
            self._said_goodbye = True
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
        self._flush()
        discard_received(self._below)
        unwrap_below = getattr(self._below, "unwrap", None)
        if unwrap_below is not None:
            unwrap_below()

    def close(self) -> None:
        """Close the socket below, without a word."""
        self._below.close()


# How many bytes a pump encrypts or receives at once.
_PIECE = 64 * 1024


def _want_write() -> ssl.SSLWantWriteError:
    return ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "ciphertext waits to be sent")


# What a session is good for: the same context under the same demands, name and port.
_SessionKey: TypeAlias = tuple[ssl.SSLContext, ssl.VerifyMode, bool, str, Any]

_sessions: OrderedDict[_SessionKey, ssl.SSLSession] = OrderedDict()

# A session keeps its context alive, and one of those takes up to a megabyte.
_MOST_SESSIONS = 64


def _session_key(
    context: ssl.SSLContext, server_hostname: str | None, sock: Any
) -> _SessionKey | None:
    if server_hostname is None:
        return None
    try:
        peer = sock.getpeername()
    except OSError:
        return None
    place = peer[1] if isinstance(peer, tuple) else peer
    return (context, context.verify_mode, context.check_hostname, server_hostname, place)


def _take_session(
    context: ssl.SSLContext, server_hostname: str | None, sock: Any
) -> ssl.SSLSession | None:
    """Return the session to go on with; once, as each ticket is to be shown once (RFC 8446 C.4)."""
    key = _session_key(context, server_hostname, sock) if _sessions else None
    return None if key is None else _sessions.pop(key, None)


def keep_session(sock: ssl.SSLSocket | TLSPump) -> None:
    """Keep a client's session for the next connection to the same place, if there is one to keep.

    With TLS 1.3 it comes after the handshake, before the server's first bytes as a rule.

    Arguments:
        sock: what ``wrap`` gave.
    """
    key = _session_key(sock.context, sock.server_hostname, sock)
    if key is None or sock.server_side:
        return
    session = sock.session
    if session is None or not (session.has_ticket or session.id):
        return
    _sessions.pop(key, None)
    _sessions[key] = session
    if len(_sessions) > _MOST_SESSIONS:
        _sessions.popitem(last=False)


def name_peer(error: ssl.SSLError, name: str) -> None:
    """Add to an error's message whom it was about, which OpenSSL does not tell.

    Arguments:
        error: what ended the handshake.
        name: the peer, for people.
    """
    error.strerror = f"{error.strerror}; the peer is {name}"


def discard_received(sock: Any) -> None:
    """Take what has come and nobody asked for (such as session tickets), before a close.

    A socket that is closed with bytes unread resets the connection, and the peer may lose what was
    said last (RFC 1122 section 4.2.2.13).
    """
    # Of TLS the ciphertext: nobody looks at it.
    recv = partial(socket.socket.recv, sock) if isinstance(sock, ssl.SSLSocket) else sock.recv
    with contextlib.suppress(OSError):
        for _ in range(4):
            if not recv(_PIECE):
                break


# What OpenSSL says to bytes that are no record: its names for it have changed.
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")


def explain(error: BaseException, place: str) -> str:
    """Say in one line why TLS with a place failed.

    Arguments:
        error: an ``ssl.SSLError``, or what else ended the handshake.
        place: the host and port, for people.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {place} is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        reason = error.reason.lower().replace("_", " ")
        if error.reason in _NO_TLS:
            reason += "; what answers there does not speak TLS, it seems"
        return f"TLS with {place} failed: {reason}"
    return f"TLS with {place} failed: {error}"
