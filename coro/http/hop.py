"""What goes along with a request for its user's sake: proxy, credentials, cookies, a trace.

A fetch has one ``Hop`` for each URL that it comes to, and none where nothing of this was asked for.
It adds fields to the request, looks at the head of each response, and tells whether the request is
to be sent once more, with the answer to a challenge.

Nothing is handed on from one hop to the next: credentials are those for this URL's origin, the
proxy's are its own and go to it alone, and cookies come from the jar anew.
"""

from __future__ import annotations

import ssl
from collections.abc import Hashable, Mapping
from typing import Any

from coro.errors import ProxyError
from coro.http.auth import (
    Basic,
    Bearer,
    Digest,
    DigestMemory,
    DigestSession,
    auth_for_mode,
    netrc_auth,
    parse_challenges,
)
from coro.http.codec import ResponseHead
from coro.http.headers import HTTPHeaders
from coro.http.messages import Trace
from coro.http.proxy import PROXY_OPTIONS, Proxy, proxy_for
from coro.http.urls import Target
from coro.stream import IOStream
from coro.tls import client_context, context_for

__all__ = ["Hop", "hop_for", "identity"]

_OPTIONS = frozenset({"auth", "auth_username", "netrc", "cookie_jar", "trace", *PROXY_OPTIONS})


def hop_for(
    target: Target, options: Mapping[str, Any], memory: DigestMemory, replayable: bool
) -> Hop | None:
    """Return the hop to a URL, or None if there is nothing for it to do.

    Arguments:
        target: the URL.
        options: the request's.
        memory: what servers and proxies have given for Digest.
        replayable: whether the request can be sent a second time.
    Raises:
        ValueError: what the options say makes no sense.
    """
    if not target.username and options.keys().isdisjoint(_OPTIONS):
        return None
    return Hop(target, options, memory, replayable)


class Hop:
    """One URL's part of a fetch; see ``hop_for``.

    Attributes:
        proxy: which the request goes through, or None.
        tunnel: the proxy passes on bytes, instead of whole requests.
        connect_authorization: what the caller wants CONNECT to say instead of the proxy's
            credentials, or None.
        again: the request is to be sent once more.
        trace: is told of connections and heads, or None.
    """

    __slots__ = (
        "_auth",
        "_jar",
        "_knows_proxies",
        "_may_answer",
        "_may_answer_proxy",
        "_proxy_session",
        "_refusal",
        "_session",
        "_target",
        "_tls",
        "again",
        "connect_authorization",
        "proxy",
        "trace",
        "tunnel",
    )

    def __init__(
        self, target: Target, options: Mapping[str, Any], memory: DigestMemory, replayable: bool
    ) -> None:
        self._target = target
        self._jar = options.get("cookie_jar")
        self.trace: Trace | None = options.get("trace")
        self._auth = _auth_for(target, options)
        self._tls = options.get("proxy_ssl_options")
        self._refusal: ResponseHead | None = None
        # A challenge is answered once; whoever repeats it does not want these credentials.
        self._may_answer = self._may_answer_proxy = replayable
        self._session: DigestSession | None = None
        self._proxy_session: DigestSession | None = None
        self.again = False
        self.connect_authorization: str | None = None
        self._knows_proxies = not options.keys().isdisjoint(PROXY_OPTIONS)
        self.proxy: Proxy | None = proxy_for(target, options)
        self.tunnel = self.proxy is not None and self.proxy.tunnels(target.scheme)
        if isinstance(self._auth, Digest):
            self._session = memory.session(target.origin, self._auth)
        if self.proxy is not None and not self.tunnel and isinstance(self.proxy.auth, Digest):
            self._proxy_session = memory.session(self.proxy, self.proxy.auth)

    # --- the request -----------------------------------------------------------------------

    def request_target(self) -> str:
        """Return what the request line says (RFC 9112 section 3.2)."""
        target = self._target
        if self.proxy is None or self.tunnel:
            return target.path
        return f"{target.scheme}://{target.authority}{target.path}"

    def add_fields(self, method: str, fields: HTTPHeaders) -> None:
        """Complete a request's own fields.

        Raises:
            ValueError: credentials for a proxy that takes no fields.
        """
        answer = _answer(self._auth, self._session, method, self._target.path)
        if answer is not None:
            fields["Authorization"] = answer
        if self._jar is not None and "Cookie" not in fields:
            cookies = self._jar.header(self._target)
            if cookies is not None:
                fields["Cookie"] = cookies
        if self.proxy is None:
            if self._knows_proxies:
                # It was meant for a proxy that this URL does not go through.
                fields.pop("Proxy-Authorization", None)
            return
        if self.tunnel:
            # What is meant for the proxy must not go on to the server.
            self.connect_authorization = fields.pop("Proxy-Authorization", None)
            if self.connect_authorization is not None and self.proxy.is_socks:
                raise ValueError("a SOCKS proxy takes no Proxy-Authorization")
        elif "Proxy-Authorization" not in fields:
            uri = self.request_target()
            answer = _answer(self.proxy.auth, self._proxy_session, method, uri)
            if answer is not None:
                fields["Proxy-Authorization"] = answer

    def key(self) -> Hashable:
        """Return what tells the connections through this proxy from all others."""
        return (self.proxy, identity(self._tls), self.connect_authorization)

    def proxy_context(self) -> ssl.SSLContext | None:
        """Return the context for TLS with the proxy, if that is reached by TLS."""
        if self.proxy is None or self.proxy.scheme != "https":
            return None
        return client_context() if self._tls is None else context_for(self._tls, server_side=False)

    def send(self, stream: IOStream, reused: bool, head: bytes) -> None:
        """Take note of a request that is about to be sent."""
        if self.trace is not None:
            self.trace.connected(stream, reused)
            self.trace.sent(head)

    # --- the response ----------------------------------------------------------------------

    def take_head(self, head: ResponseHead) -> bool:
        """Look at the head of the final response; tell whether the caller is not to see it.

        Then either ``again`` is set, or ``check`` raises.
        """
        if self.trace is not None:
            self.trace.received(head.raw)
        if head.has_cookies and self._jar is not None:
            self._jar.take(self._target, head.headers.get_list("Set-Cookie"))
        if head.status == 407 and self.proxy is not None and not self.tunnel:
            may_answer, self._may_answer_proxy = self._may_answer_proxy, False
            if may_answer and _took_challenge(self._proxy_session, head, "Proxy-Authenticate"):
                self.again = True
            else:
                self._refusal = head
            return True
        if head.status == 401:
            may_answer, self._may_answer = self._may_answer, False
            self.again = may_answer and _took_challenge(self._session, head, "WWW-Authenticate")
            return self.again
        if self._session is not None:
            self._session.take_info(head.headers.get("Authentication-Info", ""))
        if self._proxy_session is not None:
            self._proxy_session.take_info(head.headers.get("Proxy-Authentication-Info", ""))
        return False

    def check(self, details: Mapping[str, Any]) -> None:
        """Raise if the proxy wanted other credentials than it got.

        Arguments:
            details: what errors tell of the fetch.
        Raises:
            ProxyError: it did.
        """
        head = self._refusal
        if head is not None:
            raise ProxyError(
                f"the proxy {self.proxy}: {head.status} {head.reason[:200]}",
                status=head.status,
                headers=head.headers,
                **details,
            )


def _answer(
    auth: Basic | Bearer | Digest | None, session: DigestSession | None, method: str, uri: str
) -> str | None:
    """Return the value of the field with the credentials, if there is anything to say yet."""
    if isinstance(auth, Digest):
        return None if session is None else session.authorization(method, uri)
    return None if auth is None else auth.authorization()


def _took_challenge(session: DigestSession | None, head: ResponseHead, name: str) -> bool:
    """Whether a refusal has a challenge that can be answered now."""
    if session is None:
        return False
    return session.take_challenge(parse_challenges(head.headers.get_list(name)))


def _auth_for(target: Target, options: Mapping[str, Any]) -> Basic | Bearer | Digest | None:
    """Return the credentials for a server: the URL's, the options', or those of ``.netrc``."""
    mode = options.get("auth_mode")
    if target.username:
        return auth_for_mode(mode, target.username, target.password)
    auth = options.get("auth")
    if auth is not None:
        if isinstance(auth, tuple):
            return Basic(*auth)
        if not isinstance(auth, Basic | Bearer | Digest):
            raise TypeError(f"auth is a Basic, Digest or Bearer, not {type(auth).__name__}")
        return auth
    name = options.get("auth_username")
    if name is not None:
        return auth_for_mode(mode, name, options.get("auth_password"))
    file = options.get("netrc")
    return netrc_auth(target.host, file) if file else None


def identity(option: Any) -> Hashable:
    """A value itself if it can be compared by value, else the object (which is then kept alive)."""
    if isinstance(option, Mapping):
        return frozenset((name, identity(value)) for name, value in option.items())
    return tuple(map(identity, option)) if isinstance(option, list) else option
