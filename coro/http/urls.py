"""URLs as browsers understand them: the WHATWG URL standard, with IDNA, by a library.

What a fetch needs of a URL is taken apart once and remembered, for crawlers and gateways ask for
the same hosts, and often the same pages, again and again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote

import ada_url

from coro.errors import format_address

__all__ = ["Origin", "Target", "format_origin", "join", "parse"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


# Scheme, host and port.
Origin: TypeAlias = tuple[str, str, int]


class Target(NamedTuple):
    """Where a request goes.

    Attributes:
        scheme: "http" or "https".
        host: a name in ASCII, or a literal address without brackets.
        port: the number, also where the URL leaves it out.
        authority: what the ``Host`` field says: host, and port unless it is the scheme's own.
        path: path and query, as the request line says them.
        username, password: from the URL, decoded; empty if there are none.
        url: the normalised URL, without fragment.
        origin: scheme, host and port: what decides whether credentials may be sent along (RFC 6454
            section 4).
    """

    scheme: str
    host: str
    port: int
    authority: str
    path: str
    username: str
    password: str
    url: str
    origin: Origin


def format_origin(origin: Origin) -> str:
    """Write an origin as URLs do, but always with its port."""
    scheme, host, port = origin
    return f"{scheme}://{format_address((host, port))}"


@lru_cache(maxsize=4096)
def parse(url: str) -> Target:
    """Take a URL apart.

    Raises:
        ValueError: it is not a URL, or its scheme is neither http nor https.
    """
    try:
        href = ada_url.normalize_url(url)
    except ValueError as error:
        raise ValueError(f"not a URL: {url!r}; it must look like http://host/path") from error
    # Normal form: scheme://user:password@host:port/path?query#fragment, every part escaped.
    href = href.partition("#")[0]
    scheme, _, rest = href.partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    if default is None:
        scheme = href.partition(":")[0]
        raise ValueError(f"cannot fetch {url!r}: the scheme {scheme!r} is neither http nor https")
    place, _, path = rest.partition("/")
    credentials, _, authority = place.rpartition("@")
    username, _, password = credentials.partition(":")
    host, port = authority, ""
    if not authority.endswith("]"):
        host, _, port = authority.rpartition(":") if ":" in authority else (authority, "", "")
    host = host.removeprefix("[").removesuffix("]")
    number = int(port) if port else default
    return Target(
        scheme,
        host,
        number,
        authority,
        f"/{path}",
        unquote(username),
        unquote(password),
        href,
        (scheme, host, number),
    )


def join(base: str, location: str) -> str:
    """Resolve a ``Location`` against the URL it came from (RFC 9110 section 10.2.2).

    The fragment of ``base`` is kept if the location has none.

    Raises:
        ValueError: the result is not a URL.
    """
    try:
        joined = ada_url.join_url(base, location)
    except ValueError as error:
        raise ValueError(f"the location {location!r} is not a URL") from error
    fragment = base.partition("#")[2]
    return f"{joined}#{fragment}" if fragment and "#" not in joined else joined
