"""What proxies in front of a server say of the client, and which of them are believed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network

from coro.http.headers import HTTPHeaders

__all__ = ["Proxies", "forwarded"]


class Proxies:
    """Peers whose word about the client is taken.

    Arguments:
        places: addresses, networks, or "unix".
    Raises:
        ValueError: one of them is something else.
    """

    def __init__(self, places: Iterable[str]) -> None:
        if isinstance(places, str):
            places = (places,)
        places = {*places}
        self._unix = "unix" in places
        self._networks = [ip_network(place) for place in places - {"unix"}]

    def have(self, ip: str) -> bool:
        """Whether this peer is one of them; "" is one on a unix socket."""
        if not ip:
            return self._unix
        address = ip_address(ip.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


def forwarded(
    headers: HTTPHeaders, ip: str, protocol: str, trusted: frozenset[str]
) -> tuple[str, str]:
    """Return the client's address and protocol as a proxy in front of the server tells them."""
    # The last address that is not a trusted proxy's own.
    for candidate in reversed(headers.get("X-Forwarded-For", ip).split(",")):
        candidate = candidate.strip()
        if candidate not in trusted:
            break
    candidate = headers.get("X-Real-Ip", candidate)
    with contextlib.suppress(ValueError):
        ip = str(ip_address(candidate))
    scheme = headers.get("X-Scheme", headers.get("X-Forwarded-Proto", protocol))
    scheme = scheme.rpartition(",")[2].strip()
    if scheme in ("http", "https"):
        protocol = scheme
    return ip, protocol
