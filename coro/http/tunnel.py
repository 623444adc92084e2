"""A connection to a server by way of a proxy.

What a fetch gets is a stream on which it may send requests. By the proxy's kind and the URL's
scheme that is

- for an HTTP proxy and ``http:``, the connection to the proxy itself, which takes whole requests
  with absolute URLs (RFC 9112 section 3.2.2);
- for an HTTP proxy and ``https:``, a tunnel, asked for with CONNECT (RFC 9110 section 9.3.6), and
  TLS with the server inside it: TLS inside TLS if the proxy is reached by TLS itself;
- for a SOCKS proxy, what stands behind its handshake (RFC 1928, RFC 1929), and TLS if need be.

All this is one more stretch of connecting: it is bounded by the same limit, and whatever ends it
(an error, the limit, a cancellation) closes the stream. Nothing that a proxy sends beyond its
answer is taken for the server's. What goes wrong up to the tunnel's standing is a ``ProxyError``,
except where a SOCKS proxy tells that the server itself cannot be reached.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Generator, Mapping
from typing import Any

from coro.errors import (
    ConnectError,
    HTTPConnectError,
    HTTPInputError,
    HTTPResolveError,
    HTTPTLSError,
    ProxyError,
    ResolveError,
    StreamClosedError,
    format_address,
)
from coro.http.auth import Digest, DigestMemory, parse_challenges
from coro.http.codec import ResponseDecoder, ResponseHead, encode_request, request_block
from coro.http.messages import Trace
from coro.http.proxy import Proxy
from coro.http.urls import Target
from coro.loop import IOLoop
from coro.resolver import Addresses, Resolver, ThreadedResolver, resolve_literal
from coro.stream import IOStream
from coro.tcp import ConnectProgress, connect, secure
from coro.tls import explain

try:
    import socksio
    from socksio import socks4, socks5
except ImportError:
    socksio = None  # type: ignore[assignment]

__all__ = ["Passage"]

_READ_SIZE = 4096

_system_resolver = ThreadedResolver()

# What a SOCKS 5 proxy tells of the server, and not of itself (RFC 1928 section 6).
_SERVERS_FAULTS = {
    b"\x03": "the network is unreachable",
    b"\x04": "the host is unreachable",
    b"\x05": "the connection was refused",
    b"\x06": "the time to live expired",
}
_PROXYS_FAULTS = {
    b"\x01": "it failed",
    b"\x02": "its rules do not allow this connection",
    b"\x07": "it knows no CONNECT",
    b"\x08": "it does not take this type of address",
}
_SOCKS4_FAULTS = {
    b"\x5b": "it was refused, or failed",
    b"\x5c": "no identd answers here",
    b"\x5d": "the identd here tells another username",
}


class _ConnectRecord:
    """What ``connect`` tells of the way to the proxy; a fetch's own phases are of the server."""

    phase = "dns"
    resolved: float | None = None
    connected: float | None = None
    secured: float | None = None


class Passage:
    """The way to one server by one proxy.

    Arguments:
        proxy: the proxy.
        target: where the requests will go.
        proxy_context: for TLS with the proxy, if that is an "https" one.
        context: for TLS with the server, if the URL's scheme is ``https``.
        progress: is told how far it has come: its phase is "dns" while a SOCKS proxy's client looks
            up the server, then "proxy", then "tls".
        memory: what proxies have given for Digest.
        user_agent: how CONNECT names this client; None: not at all.
        authorization: for CONNECT, instead of the proxy's own credentials.
        max_header_bytes: limit for the head of the answer to CONNECT.
        trace: is told of the connection to the proxy, and of CONNECT and its answer.
        details: what errors tell of the fetch.
        resolver, options: for ``connect``.

    Raises:
        ImportError: a SOCKS proxy without the library for it.
    """

    def __init__(
        self,
        proxy: Proxy,
        target: Target,
        *,
        proxy_context: ssl.SSLContext | None,
        context: ssl.SSLContext | None,
        progress: ConnectProgress,
        memory: DigestMemory,
        max_header_bytes: int,
        user_agent: str | None = None,
        authorization: str | None = None,
        trace: Trace | None = None,
        details: Mapping[str, Any] | None = None,
        resolver: Resolver | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if proxy.is_socks and socksio is None:
            raise ImportError("a SOCKS proxy needs socksio: pip install 'coro-loop[socks]'")
        self.proxy = proxy
        self.target = target
        self.proxy_context = proxy_context
        self.context = context
        self.progress = progress
        self.memory = memory
        self.max_header_bytes = max_header_bytes
        self.user_agent = user_agent
        self.authorization = authorization
        self.trace = trace
        self.details = dict(details or {})
        self.resolver = resolver
        self.options = dict(options or {})
        self._loop: IOLoop = IOLoop.current()
        self._place = format_address((target.host, target.port))

    def open(self) -> Generator[Any, Any, IOStream]:
        """Connect to the proxy, have it connect to the server, begin TLS; return the stream.

        Raises:
            ProxyError: the proxy cannot be reached, or refuses.
            HTTPResolveError: the server has no address (for "socks4" and "socks5").
            HTTPConnectError: the proxy says that the server cannot be reached.
            HTTPTLSError: TLS with the server failed.
        """
        proxy = self.proxy
        host = self.target.host
        if proxy.is_socks:
            host = yield from self._socks_host()
        elif proxy.tunnels(self.target.scheme):
            tunnel = yield from self._open_tunnel()
            return (yield from self._enter_tls(tunnel))
        stream = yield from self._reach_proxy()
        if proxy.is_socks:
            try:
                yield from self._ask_socks(stream, host)
            except BaseException:
                stream.close()
                raise
        return (yield from self._enter_tls(stream))

    def _refuse(self, reason: str, **more: Any) -> ProxyError:
        return ProxyError(f"the proxy {self.proxy}: {reason}", **self.details, **more)

    def _reach_proxy(self) -> Generator[Any, Any, IOStream]:
        """Connect to the proxy."""
        proxy = self.proxy
        self.progress.phase = "proxy"
        record = _ConnectRecord()
        try:
            stream: IOStream = yield connect(
                proxy.host,
                proxy.port,
                ssl_options=self.proxy_context,
                server_hostname=proxy.host if self.proxy_context is not None else None,
                resolver=self.resolver,
                progress=record,
                **self.options,
            )
        except ssl.SSLError as error:
            raise self._refuse(explain(error, str(proxy))) from error
        except (ResolveError, ConnectError, StreamClosedError) as error:
            reason = explain(error, str(proxy)) if record.phase == "tls" else str(error)
            raise self._refuse(reason) from error
        if self.progress.resolved is None:
            self.progress.resolved = record.resolved
        if self.trace is not None and proxy.tunnels(self.target.scheme):
            self.trace.connected(stream, False)
        return stream

    def _enter_tls(self, stream: IOStream) -> Generator[Any, Any, IOStream]:
        """The server is connected: begin TLS with it, if that is asked for."""
        if not stream.idle():
            stream.close()
            raise self._refuse("it sent more than its answer, or closed the connection after it")
        self.progress.connected = self._loop.time()
        if self.context is None:
            return stream
        self.progress.phase = "tls"
        try:
            stream = yield from secure(
                stream, self.context, self.target.host.removesuffix("."), self._place
            )
        except (ssl.SSLError, StreamClosedError) as error:
            reason = explain(error, self._place)
            raise HTTPTLSError(f"{reason} (by the proxy {self.proxy})", **self.details) from error
        self.progress.secured = self._loop.time()
        return stream

    # --- CONNECT ---------------------------------------------------------------------------

    def _open_tunnel(self) -> Generator[Any, Any, IOStream]:
        """Reach the proxy and have it connect; again, once, to answer a challenge."""
        session = None
        authorization = self.authorization
        auth = self.proxy.auth
        if authorization is not None or auth is None:
            pass
        elif isinstance(auth, Digest):
            session = self.memory.session(self.proxy, auth)
            authorization = session.authorization("CONNECT", self._place)
        else:
            authorization = auth.authorization()
        while True:
            stream = yield from self._reach_proxy()
            try:
                head = yield from self._ask_to_connect(stream, authorization)
            except BaseException:
                stream.close()
                raise
            if 200 <= head.status < 300:
                return stream
            stream.close()
            if head.status == 407 and session is not None:
                challenges = parse_challenges(head.headers.get_list("Proxy-Authenticate"))
                if session.take_challenge(challenges):
                    authorization = session.authorization("CONNECT", self._place)
                    session = None
                    continue
            raise self._refuse(
                f"will not connect to {self._place}: {head.status} {head.reason[:200]}",
                status=head.status,
                headers=head.headers,
            )

    def _ask_to_connect(
        self, stream: IOStream, authorization: str | None
    ) -> Generator[Any, Any, ResponseHead]:
        """Send CONNECT; return the head of the answer."""
        block = request_block(self._place, self.user_agent, None)
        fields = [] if authorization is None else [("Proxy-Authorization", authorization)]
        request = encode_request("CONNECT", self._place, block, fields)
        decoder = ResponseDecoder(self.max_header_bytes)
        decoder.begin("CONNECT")
        try:
            if self.trace is not None:
                self.trace.sent(request)
            stream.write_soon(request)
            while decoder.head is None:
                decoder.feed((yield stream.read_bytes(_READ_SIZE, partial=True)))
        except StreamClosedError as error:
            reason = f"closed the connection instead of connecting to {self._place}"
            raise self._refuse(reason) from error
        except HTTPInputError as error:
            raise self._refuse(f"its answer to CONNECT is not HTTP: {error}") from error
        if self.trace is not None:
            self.trace.received(decoder.head.raw)
        if decoder.upgraded and decoder.surplus:
            # No server speaks first in TLS; what came would be taken for its beginning.
            raise self._refuse("it sent more than its answer to CONNECT")
        return decoder.head

    # --- SOCKS -----------------------------------------------------------------------------

    def _socks_host(self) -> Generator[Any, Any, str]:
        """Return the host as the proxy is to be told of it: its name, or an address."""
        scheme, target = self.proxy.scheme, self.target
        family = socket.AF_INET if scheme == "socks4" else socket.AF_UNSPEC
        literal = None
        try:
            literal = resolve_literal(self._loop.network, target.host, target.port, family)
            if literal is None and scheme in ("socks4", "socks5"):
                self.progress.phase = "dns"
                resolver = self.resolver or _system_resolver
                found: Addresses = yield resolver.resolve(target.host, target.port, family)
                self.progress.resolved = self._loop.time()
                return str(found[0][1][0])
        except ResolveError as error:
            raise HTTPResolveError(str(error), **self.details) from error
        if len(target.host) > 255:
            raise HTTPResolveError(f"the name {target.host!r:.100} is too long", **self.details)
        if scheme == "socks4a" and ":" in target.host:
            raise self._refuse("SOCKS 4 knows no IPv6 addresses")
        return target.host

    def _ask_socks(self, stream: IOStream, host: str) -> Generator[Any, Any, None]:
        """Have a SOCKS proxy connect to the server."""
        try:
            if self.proxy.scheme.startswith("socks4"):
                yield from self._ask_socks4(stream, host)
            else:
                yield from self._ask_socks5(stream, host)
        except StreamClosedError as error:
            reason = f"closed the connection instead of connecting to {self._place}"
            raise self._refuse(reason) from error
        except socksio.SOCKSError as error:
            raise self._refuse(f"its answer is not SOCKS: {error}") from error

    def _ask_socks4(self, stream: IOStream, host: str) -> Generator[Any, Any, None]:
        auth = self.proxy.auth
        user = b"" if auth is None else auth.username.encode()
        protocol = socks4.SOCKS4Connection(user)
        form = socks4.SOCKS4ARequest if self.proxy.scheme == "socks4a" else socks4.SOCKS4Request
        if _is_ipv4(host):
            form = socks4.SOCKS4Request
        address = (host, self.target.port)
        protocol.send(form.from_address(socks4.SOCKS4Command.CONNECT, address, user))
        stream.write_soon(protocol.data_to_send())
        reply = protocol.receive_data((yield stream.read_bytes(8)))
        if reply.reply_code != socks4.SOCKS4ReplyCode.REQUEST_GRANTED:
            reason = _SOCKS4_FAULTS[reply.reply_code.value]
            raise self._refuse(f"will not connect to {self._place}: {reason}")

    def _ask_socks5(self, stream: IOStream, host: str) -> Generator[Any, Any, None]:
        methods = socks5.SOCKS5AuthMethod
        protocol = socks5.SOCKS5Connection()
        auth = self.proxy.auth
        offered = [methods.NO_AUTH_REQUIRED]
        if auth is not None:
            offered.append(methods.USERNAME_PASSWORD)
        protocol.send(socks5.SOCKS5AuthMethodsRequest(offered))
        stream.write_soon(protocol.data_to_send())
        chosen = protocol.receive_data((yield from self._read_reply(stream)))
        assert isinstance(chosen, socks5.SOCKS5AuthReply)
        if chosen.method not in offered:
            reason = "wants a username and a password" if auth is None else "knows no passwords"
            raise self._refuse(f"refuses this client: it {reason}")
        if auth is not None and chosen.method == methods.USERNAME_PASSWORD:
            credentials = auth.username.encode(), auth.password.encode()
            protocol.send(socks5.SOCKS5UsernamePasswordRequest(*credentials))
            stream.write_soon(protocol.data_to_send())
            verdict = protocol.receive_data((yield stream.read_bytes(2)))
            assert isinstance(verdict, socks5.SOCKS5UsernamePasswordReply)
            if not verdict.success:
                raise self._refuse("refuses the username or the password")
        address = (host, self.target.port)
        protocol.send(
            socks5.SOCKS5CommandRequest.from_address(socks5.SOCKS5Command.CONNECT, address)
        )
        stream.write_soon(protocol.data_to_send())
        data = yield from self._read_reply(stream)
        if data[1]:
            code = data[1:2]
            if code in _SERVERS_FAULTS:
                raise HTTPConnectError(
                    f"cannot connect to {self._place} by the proxy {self.proxy}: "
                    f"{_SERVERS_FAULTS[code]}",
                    **self.details,
                )
            reason = _PROXYS_FAULTS.get(code, f"error {data[1]}")
            raise self._refuse(f"will not connect to {self._place}: {reason}")
        data += yield stream.read_bytes(3)
        # How long the rest is depends on the type of the address, and a name's own first byte.
        size = {1: 4, 3: 1 + data[4], 4: 16}.get(data[3])
        if size is not None:
            data += yield stream.read_bytes(size + 1)
        protocol.receive_data(data)

    @staticmethod
    def _read_reply(stream: IOStream) -> Generator[Any, Any, bytes]:
        """Read the first two bytes of a reply: the version, which must be this one, and a code."""
        data: bytes = yield stream.read_bytes(2)
        if data[0] != 5:
            raise socksio.ProtocolError(f"version {data[0]}")
        return data


def _is_ipv4(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return False
    return True
