"""URLs as browsers understand them: the WHATWG URL standard, with IDNA, by a library.

What a fetch needs of a URL is taken apart once and remembered, for crawlers and gateways ask for
the same hosts, and often the same pages, again and again.

One thing is added that browsers lack: the zone of a link-local address, as in
``http://[fe80::1%25eth0]/`` or ``http://[fe80::1%eth0]/``. It names the interface by which this
machine reaches the address, means nothing to anybody else, and is not sent (RFC 9844).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote

import ada_url

from coro.errors import format_address

__all__ = ["LONGEST_KEPT", "Origin", "Target", "format_origin", "join", "parse"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


# Scheme, host and port.
Origin: TypeAlias = tuple[str, str, int]


class Target(NamedTuple):
    """Where a request goes.

    Attributes:
        scheme: "http" or "https".
        host: a name in ASCII, or a literal address without brackets, perhaps with a zone.
        port: the number, also where the URL leaves it out.
        authority: what the ``Host`` field says: host, and port unless it is the scheme's own.
        path: path and query, as the request line says them.
        username, password: from the URL, decoded; empty if there are none.
        url: the normalised URL, without fragment and zone.
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


# Longer URLs, or paths, are made anew each time: those that servers redirect to may be as long as a
# head, and thousands of them would be kept.
LONGEST_KEPT = 2000


def format_origin(origin: Origin) -> str:
    """Write an origin as URLs do, but always with its port."""
    scheme, host, port = origin
    return f"{scheme}://{format_address((host, port))}"


def parse(url: str) -> Target:
    """Take a URL apart.

    Raises:
        ValueError: it is not a URL, or its scheme is neither http nor https.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL is text, not {url!r:.100}")
    return _parse(url) if len(url) <= LONGEST_KEPT else _parse.__wrapped__(url)


@lru_cache(maxsize=4096)
def _parse(url: str) -> Target:
    try:
        bare, zone = _split_zone(url)
        href = ada_url.normalize_url(bare)
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
    if zone:
        host = f"{host}%{zone}"
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

    The fragment of ``base`` is kept if the location has none; its zone, if the host is the same.

    Raises:
        ValueError: the result is not a URL.
    """
    try:
        start, zone = _split_zone(base)
        target, other_zone = _split_zone(location)
        joined = ada_url.join_url(start, target)
        if zone or other_zone:
            joined = _with_zone(joined, other_zone, start, zone)
    except ValueError as error:
        raise ValueError(f"the location {location!r} is not a URL") from error
    fragment = base.partition("#")[2]
    return f"{joined}#{fragment}" if fragment and "#" not in joined else joined


_CREDENTIALS = re.compile(r"(https?://)[^/?#]*@")


def without_credentials(url: str) -> str:
    """Return a URL that ``join`` made, without user name and password."""
    return _CREDENTIALS.sub(r"\1", url, count=1)


_ZONE = re.compile(
    r"(\s*https?:[/\\]{2}(?:[^/\\?#]*@)?\[fe[89ab][0-9a-f]:[0-9a-f:.]*)%(?:25)?+([a-z0-9._~-]+)(?=\])",
    re.IGNORECASE,
)


def _split_zone(url: str) -> tuple[str, str]:
    """Return a URL without the zone of its host, and the zone; "" if there is none."""
    found = _ZONE.match(url) if "%" in url else None
    return (url, "") if found is None else (found[1] + url[found.end() :], found[2])


def _with_zone(url: str, zone: str, base: str, base_zone: str) -> str:
    """Put a zone into a URL: its own, or that of its base, if they have the host in common."""
    host = ada_url.URL(url).hostname
    if not zone and host == ada_url.URL(base).hostname:
        zone = base_zone
    return url.replace(host, f"{host[:-1]}%25{zone}]", 1) if zone else url
