"""Which proxy a request goes through: what URLs, options and the environment say; without I/O.

A ``Proxy`` carries its own credentials. So they cannot come apart from it: a redirect that leads to
another proxy takes none of them along, and no request has them among its own fields.

The environment is asked only where a client wants it (``trust_env=True``). It is read as ``curl``
reads it: ``http_proxy``, ``https_proxy`` and ``all_proxy`` by the scheme of the URL, and
``no_proxy`` for the hosts that are reached directly; an empty variable counts as none. Names in
upper case serve too, with one exception: where a web server runs this process for a request (CGI),
``HTTP_PROXY`` is what that request's ``Proxy`` field said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from coro.errors import format_address
from coro.http.auth import Basic, Digest, auth_for_mode
from coro.http.urls import Target, parse

__all__ = ["PROXY_OPTIONS", "Proxy", "environment_proxy", "parse_proxy", "proxy_for"]

# With the port that is meant where none is given.
_PORTS = {
    "http": 80,
    "https": 443,
    "socks4": 1080,
    "socks4a": 1080,
    "socks5": 1080,
    "socks5h": 1080,
}

PROXY_OPTIONS = ("proxy", "proxy_host", "trust_env")
"""The options by which a request may come to a proxy."""

_LONGEST_SOCKS_STRING = 255

_UNFIT = re.compile(r"[\x00-\x20\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and how it knows this client. Equal ones may share a connection.

    Arguments:
        scheme: "http"; "https", TLS to the proxy; "socks4", "socks5": the host's address is looked
            up here; "socks4a", "socks5h": its name is given to the proxy.
        host: name, or literal address without brackets.
        port: the number.
        auth: credentials for the proxy, which nobody else gets to see.

    Raises:
        ValueError: credentials that the scheme cannot send.
    """

    scheme: str
    host: str
    port: int
    auth: Basic | Digest | None = None

    def __post_init__(self) -> None:
        if not self.is_socks or self.auth is None:
            return
        if isinstance(self.auth, Digest):
            raise ValueError(f"a {self.scheme} proxy knows no Digest authentication")
        if self.scheme.startswith("socks4") and self.auth.password:
            raise ValueError(f"a {self.scheme} proxy takes a username, and no password")
        for text in (self.auth.username, self.auth.password):
            if len(text.encode()) > _LONGEST_SOCKS_STRING:
                raise ValueError("SOCKS has room for 255 bytes in a username and in a password")

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS, and not HTTP."""
        return self.scheme.startswith("socks")

    def tunnels(self, scheme: str) -> bool:
        """Whether it passes on bytes for URLs of this scheme, instead of whole requests."""
        return self.is_socks or scheme == "https"

    def __str__(self) -> str:
        """Return scheme, host and port: fit for a log."""
        return f"{self.scheme}://{format_address((self.host, self.port))}"


def parse_proxy(url: str, auth_mode: str | None = None) -> Proxy:
    """Read a proxy's URL: ``http://user:password@host:port``; ``http://`` may be left out.

    Arguments:
        url: user and password percent-encoded where they have characters that mean something.
        auth_mode: "basic" or "digest".
    Raises:
        ValueError: it is no such URL; its text is not shown, for it may hold a password.
    """
    if _UNFIT.search(url):
        raise ValueError("a space or a control character in the URL of a proxy")
    found = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*)://", url)
    scheme, rest = (found[1].lower(), url[found.end() :]) if found else ("http", url)
    if scheme not in _PORTS:
        raise ValueError(f"unknown kind of proxy {scheme!r}: known are {', '.join(_PORTS)}")
    try:
        target, other = parse(f"http://{rest}"), parse(f"https://{rest}")
    except ValueError:
        target = None
    if target is None or target.path != "/" or "#" in rest:
        raise ValueError("not the URL of a proxy; it must look like http://user:password@host:port")
    # Where a port is given, it is the same for both schemes.
    port = target.port if target.port == other.port else _PORTS[scheme]
    if port == 0:
        raise ValueError("port 0 in the URL of a proxy")
    auth = None
    if target.username or target.password:
        auth = auth_for_mode(auth_mode, target.username, target.password)
    return Proxy(scheme, target.host, port, auth)


def proxy_for(target: Target, options: Mapping[str, Any]) -> Proxy | None:
    """Return the proxy for a request, or None: none.

    Arguments:
        target: where the request goes.
        options: ``proxy`` (a URL, a ``Proxy``, or False for none), or the lineage's ``proxy_host``,
            ``proxy_port``, ``proxy_username``, ``proxy_password`` and ``proxy_auth_mode``; else
            ``trust_env``.
    Raises:
        ValueError: what they say makes no sense.
    """
    given, host = options.get("proxy"), options.get("proxy_host")
    mode = options.get("proxy_auth_mode")
    if given is not None:
        if given is False or isinstance(given, Proxy):
            return given or None
        if not isinstance(given, str):
            raise TypeError(f"proxy is a URL, a Proxy or False, not {type(given).__name__}")
        return parse_proxy(given, mode)
    if host is not None:
        if options.get("proxy_port") is None:
            raise ValueError("proxy_host needs a proxy_port")
        name = options.get("proxy_username")
        place = format_address((host, options["proxy_port"]))
        proxy = parse_proxy(f"http://{place}")
        if proxy.auth is not None:
            raise ValueError("proxy_host is a name alone; there is proxy_username, too")
        if name is None:
            return proxy
        auth = auth_for_mode(mode, name, options.get("proxy_password"))
        return Proxy(proxy.scheme, proxy.host, proxy.port, auth)
    if not options.get("trust_env"):
        return None
    url = environment_proxy(target.scheme, target.host, os.environ)
    if url is None:
        return None
    try:
        return parse_proxy(url, mode)
    except ValueError as error:
        raise ValueError(f"in the environment's proxy for {target.scheme}: {error}") from None


# --- the environment -----------------------------------------------------------------------


def environment_proxy(scheme: str, host: str, environ: Mapping[str, str]) -> str | None:
    """Return what the environment says about URLs of a scheme and a host: a URL, or None."""
    exempt = environ.get("no_proxy") or environ.get("NO_PROXY")
    if exempt and _Exemptions.of(exempt).cover(host):
        return None
    url = environ.get(f"{scheme}_proxy")
    if not url and not (scheme == "http" and "REQUEST_METHOD" in environ):
        url = environ.get(f"{scheme}_proxy".upper())
    return url or environ.get("all_proxy") or environ.get("ALL_PROXY") or None


class _Exemptions:
    """What ``no_proxy`` lists: names, which stand for all below them too, addresses, networks."""

    def __init__(self, text: str) -> None:
        self._all = text.strip() == "*"
        self._names: list[str] = []
        self._networks: list[IPv4Network | IPv6Network] = []
        for entry in re.split(r"[,\s]+", text):
            entry = entry.strip(".").lower()
            try:
                self._networks.append(ip_network(re.sub(r"[\[\]]", "", entry), strict=False))
            except ValueError:
                if entry:
                    self._names.append(entry)

    @staticmethod
    @lru_cache(16)
    def of(text: str) -> _Exemptions:
        """Read the variable, which hardly ever changes."""
        return _Exemptions(text)

    def cover(self, host: str) -> bool:
        """Whether a host is reached directly."""
        if self._all:
            return True
        host = host.rstrip(".").lower()
        try:
            address = ip_address(host)
        except ValueError:
            return any(host == name or host.endswith(f".{name}") for name in self._names)
        return any(address in network for network in self._networks)
