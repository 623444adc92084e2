"""TLS contexts, and sockets wrapped in them. The handshake's states live in ``stream``.

Defaults are the safe ones: certificates and host names are checked, TLS 1.2 is the least, and the
protocol offered by ALPN is HTTP/1.1 where HTTP asks for it. A context with the system's authorities
takes milliseconds to make, so equal requirements share one, made when the first needs it.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

__all__ = ["TLSOptions", "client_context", "context_for", "explain", "wrap"]

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
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_certs)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not validate:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if client_cert is not None:
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
    context = ssl.create_default_context(purpose, cafile=given.get("ca_certs"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if "cert_reqs" in given:
        if given["cert_reqs"] == ssl.CERT_NONE:
            context.check_hostname = False
        context.verify_mode = given["cert_reqs"]
    if "certfile" in given:
        context.load_cert_chain(given["certfile"], given.get("keyfile"))
    if "ciphers" in given:
        context.set_ciphers(given["ciphers"])
    if "alpn_protocols" in given:
        context.set_alpn_protocols(given["alpn_protocols"])
    return context


def wrap(
    sock: Any, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
) -> ssl.SSLSocket:
    """Put TLS on a connected socket, which is used up by it; the handshake is still to be done.

    Truncation is told (``suppress_ragged_eofs=False``): an end of the connection without the
    peer's close_notify raises ``ssl.SSLEOFError`` (RFC 8446 section 6.1).

    Arguments:
        sock: a non-blocking socket.
        context: the rules.
        server_side: which side of the handshake to take.
        server_hostname: for clients, the name to send (SNI) and to check.
    Raises:
        ValueError: the context checks host names and none is given.
    """
    return context.wrap_socket(
        sock,
        server_side=server_side,
        server_hostname=server_hostname,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,
    )


def explain(error: BaseException, place: str) -> str:
    """Say in one line why TLS with a place failed.

    Arguments:
        error: an ``ssl.SSLError``, or what else ended the handshake.
        place: the host and port, for people.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {place} is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS with {place} failed: {error.reason.lower().replace('_', ' ')}"
    return f"TLS with {place} failed: {error}"
