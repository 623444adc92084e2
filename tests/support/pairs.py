"""Connected sockets for the present test: the system's, or of the simulated network it runs in."""

from __future__ import annotations

import socket
from typing import Any

from coro.loop import IOLoop
from coro.testing.network import SimNetwork

Pair = tuple[Any, Any]


def tcp_sockets() -> Pair:
    """Two connected sockets, client and server."""
    network = IOLoop.current().network
    (listener,) = network.bind_sockets(0, "127.0.0.1")
    with listener:
        if not isinstance(network, SimNetwork):
            listener.setblocking(True)
            client = socket.create_connection(listener.getsockname())
            return client, listener.accept()[0]
        client = network.socket(socket.AF_INET)
        client.connect_ex(listener.getsockname())
        while not listener.waiting:
            coming = network.next_event()
            assert coming is not None
            network.clock.advance_to(coming)
            network.run_due()
        return client, listener.accept()[0]


def socket_pair() -> Pair:
    """Two connected sockets: a unix socket pair where there is a system."""
    simulated = isinstance(IOLoop.current().network, SimNetwork)
    return tcp_sockets() if simulated else socket.socketpair()
