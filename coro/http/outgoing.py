"""From what a caller asks for to what goes onto the wire: encoded requests, redirected requests,
and the options that decide which connection may carry them."""

from __future__ import annotations

import copy
import re
import ssl
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import Any

from coro.http.bodies import in_pieces
from coro.http.codec import encode_fields, encode_request, request_block
from coro.http.compression import supported_codings
from coro.http.encode import check_trailer
from coro.http.framing import OWN_FIELDS
from coro.http.headers import check_value
from coro.http.hop import Hop, identity
from coro.http.messages import HTTPRequest
from coro.http.urls import LONGEST_KEPT, Target, parse
from coro.tls import client_context, context_for

__all__ = [
    "AUTH_OPTIONS",
    "CONNECT_OPTIONS",
    "Outgoing",
    "connection_key",
    "encode",
    "encode_usual",
    "redirected",
    "tls_context",
]

METHODS_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
METHODS_WITH_BODY = frozenset({"POST", "PATCH", "PUT"})

# Methods whose repetition does not change what the server ends up with (RFC 9110 section 9.2.2).
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})

# What describes a body goes when a redirect turns the request into a GET (RFC 9110 section 15.4).
_BODY_FIELDS = ("Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding")
AUTH_OPTIONS = ("auth", "auth_username", "auth_password", "auth_mode", "netrc")
_CREDENTIAL_FIELDS = ("Authorization", "Cookie", "Proxy-Authorization")

# Bytes of a body that leave together with the head.
SENT_AT_ONCE = 64 * 1024

# Fields of a request's own with which there is more to be done than to write them out.
_CHANGING_FIELDS = OWN_FIELDS.union(("User-Agent", "Accept-Encoding", "Connection"))

_ACCEPT_ENCODING = ", ".join(supported_codings())


class Outgoing:
    """A request as it goes onto the wire.

    Arguments:
        method: as in "GET".
        head: the encoded head; with it the body, if that is known as bytes and is sent at once.
        body: the body, if it is sent later.
        producer: writes the body piece by piece through the function it is given, or None.
        length: how many bytes ``producer`` has to write; None: they go out as chunks.
        close: the request says that it is the last one on its connection.
        expects: the server is asked whether it wants the body.
        trailers: fields that follow a body in chunks; a value that is a function is asked then.

    Attributes:
        begun: the producer was asked for the body.
    """

    __slots__ = (
        "begun",
        "body",
        "close",
        "expects",
        "head",
        "length",
        "method",
        "producer",
        "trailers",
        "uploads",
    )

    def __init__(
        self,
        method: str,
        head: bytes,
        producer: Callable[[Callable[[bytes], Any]], Any] | None = None,
        length: int | None = None,
        close: bool = False,
        body: bytes = b"",
        expects: bool = False,
        trailers: Mapping[str, str | Callable[[], str]] | None = None,
    ) -> None:
        self.method = method
        self.head = head
        self.body = body
        self.producer = producer
        self.length = length
        self.close = close
        self.expects = expects
        self.trailers = trailers
        # Whether there is something to be sent after the head.
        self.uploads = producer is not None or bool(body)
        self.begun = False

    @property
    def replayable(self) -> bool:
        """Whether it may be sent again although the server may have seen it."""
        return self.producer is None and self.method in IDEMPOTENT

    @property
    def can_do_without_leave(self) -> bool:
        """Whether a server that will not be asked beforehand can be sent it all the same."""
        return self.expects and not (self.producer is not None and self.begun)


def encode(
    request: HTTPRequest, target: Target, options: Mapping[str, Any], hop: Hop | None = None
) -> Outgoing:
    """Check a request and encode it.

    Raises:
        ValueError: the method and the body do not go together, or something may not be written out.
        KeyError: the method is unknown.
    """
    method = request.method
    body = request.body
    producer = request.body_producer
    if body is not None and producer is not None:
        raise ValueError("give a body or a body_producer, not both")
    if not options["allow_nonstandard_methods"]:
        expected = method in METHODS_WITH_BODY
        if not expected and method not in METHODS_WITHOUT_BODY:
            raise KeyError(f"unknown method {method}")
        if (body is not None or producer is not None) != expected:
            raise ValueError(
                f"Body must {'not ' if expected else ''}be None for method {method} "
                "(unless allow_nonstandard_methods is true)"
            )
    if (
        hop is None
        and method in METHODS_WITHOUT_BODY
        and body is None
        and producer is None
        and not request.trailers
        and len(target.url) <= LONGEST_KEPT
    ):
        head = _usual_head(
            method,
            target.path,
            target.authority,
            options["user_agent"],
            options["decompress_response"],
        )
        if not request.has_headers:
            return Outgoing(method, head)
        if not request.headers.has_any(_CHANGING_FIELDS):
            return Outgoing(method, head[:-2] + encode_fields(request.headers.get_all()) + b"\r\n")
    return _encode_with_fields(request, target, options, hop)


@lru_cache(4096)
def _usual_head(
    method: str, path: str, authority: str, user_agent: str | None, decompress: bool
) -> bytes:
    """Encode a head without fields of the request's own."""
    coding = _ACCEPT_ENCODING if decompress else None
    return encode_request(method, path, request_block(authority, user_agent, coding))


@lru_cache(4096)
def encode_usual(
    method: str, url: str, user_agent: str | None, decompress: bool, validate: bool
) -> tuple[Target, Hashable, Outgoing] | None:
    """Prepare a request that is a URL and a method; the same ones are sent again and again.

    Arguments:
        user_agent, decompress, validate: the options of these names that every request has.
    Returns:
        What ``parse``, ``connection_key`` and ``encode`` say of it; None if there is more to it.
    Raises:
        ValueError: the URL makes no sense.
    """
    target = parse(url)
    if target.username or method not in METHODS_WITHOUT_BODY:
        return None
    key = connection_key(target, {"validate_cert": validate})
    head = _usual_head(method, target.path, target.authority, user_agent, decompress)
    return target, key, Outgoing(method, head)


def _encode_with_fields(
    request: HTTPRequest,
    target: Target,
    options: Mapping[str, Any],
    hop: Hop | None,
) -> Outgoing:
    method = request.method
    coding = _ACCEPT_ENCODING if options["decompress_response"] else None
    fields = request.headers.copy()
    authority = fields.pop("Host", target.authority)
    make_block = request_block if len(authority) <= LONGEST_KEPT else request_block.__wrapped__
    block = make_block(
        authority,
        None if "User-Agent" in fields else options["user_agent"],
        None if "Accept-Encoding" in fields else coding,
    )
    if hop is not None:
        hop.add_fields(method, fields)
    body = request.body
    producer = request.body_producer
    if request.trailers and body is not None:
        producer, body = in_pieces(body), None
    length = fields.pop("Content-Length", None)
    if length is not None and not re.fullmatch("[0-9]{1,19}", length):
        raise ValueError(f"invalid Content-Length {length!r} (RFC 9110 section 8.6)")
    fields.pop("Transfer-Encoding", None)
    if method == "POST" and "Content-Type" not in fields:
        fields["Content-Type"] = "application/x-www-form-urlencoded"
    content_length = int(length) if length is not None else None
    if body is not None:
        content_length = len(body)
    elif producer is None and method in METHODS_WITH_BODY:
        content_length = 0
    chunked = producer is not None and content_length is None
    expects = request.expect_100_continue and (bool(body) or producer is not None)
    if expects:
        fields["Expect"] = "100-continue"
    if request.trailers:
        if not chunked:
            raise ValueError(
                "trailers follow a body that is sent in chunks, without a Content-Length"
            )
        fields["Trailer"] = _announce(request.trailers)
    later = body is not None and (expects or len(body) > SENT_AT_ONCE)
    head = encode_request(
        method,
        target.path if hop is None else hop.request_target(),
        block,
        list(fields.get_all()),
        content_length=content_length,
        chunked=chunked,
    )
    return Outgoing(
        method,
        head + body if body and not later else head,
        producer,
        content_length,
        body=body if body and later else b"",
        expects=expects,
        trailers=request.trailers,
        close="Connection" in fields
        and re.search(r"(?i)(?<![^\s,])close(?![^\s,])", fields["Connection"]) is not None,
    )


def _announce(trailers: Mapping[str, str | Callable[[], str]]) -> str:
    """Return the value of ``Trailer`` (RFC 9110 section 6.6.2); check what is known of them."""
    for name, value in trailers.items():
        check_trailer(name)
        if not callable(value):
            check_value(name, value)
    return ", ".join(trailers)


def redirected(request: HTTPRequest, code: int, url: str, same_origin: bool) -> HTTPRequest:
    """Return the request that follows a redirect (RFC 9110 section 15.4).

    To another origin go no credentials; those among the options are the caller's to leave out.
    """
    following = copy.copy(request)
    following.url = url
    following.headers = headers = request.headers.copy()
    headers.pop("Host", None)
    if (code == 303 and request.method != "HEAD") or (
        code in (301, 302) and request.method == "POST"
    ):
        following.method = "GET"
        following.body = None
        following.body_producer = None
        following.trailers = None
        for name in _BODY_FIELDS:
            headers.pop(name, None)
    if not same_origin:
        for name in _CREDENTIAL_FIELDS:
            headers.pop(name, None)
    return following


# Besides ``validate_cert``, which every request has.
_TLS_OPTIONS = ("ssl_options", "ca_certs", "client_key", "client_cert")


# What connections are made with; given to ``connect`` under the same names.
CONNECT_OPTIONS = (
    "af",
    "allow_ipv6",
    "unix_socket",
    "resolver",
    "overrides",
    "socket_options",
)


def connection_key(target: Target, options: Mapping[str, Any], hop: Hop | None = None) -> Hashable:
    """What must be equal for a connection to serve another request."""
    if hop is not None and hop.proxy is not None:
        return (connection_key(target, options), hop.key())
    source = options.get("network_interface")
    if not options.keys().isdisjoint(CONNECT_OPTIONS):
        source = (source, *(identity(options.get(name)) for name in CONNECT_OPTIONS))
    if target.scheme == "http":
        return target.origin if source is None else (target.origin, source)
    if options.keys().isdisjoint(_TLS_OPTIONS):
        return (target.origin, source, options["validate_cert"])
    tls = tuple(identity(options.get(name)) for name in _TLS_OPTIONS)
    return (target.origin, source, options["validate_cert"], tls)


def tls_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    given = options.get("ssl_options")
    if given is not None:
        return context_for(given, server_side=False)
    return client_context(
        ca_certs=options.get("ca_certs"),
        client_cert=options.get("client_cert"),
        client_key=options.get("client_key"),
        validate=options["validate_cert"],
    )
