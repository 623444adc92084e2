"""uvicorn with httptools, on uvloop or another loop, without an access log."""

import socket
from argparse import Namespace

import uvicorn

from ..hosts import HOSTS, runner
from .application import application
from .subject import main


def serve(listener: socket.socket, options: Namespace) -> None:
    """Run the server."""
    config = uvicorn.Config(
        application,
        http="httptools",
        lifespan="off",
        log_level="critical",
        access_log=False,
        timeout_keep_alive=3600,
    )
    with runner(options.loop) as host:
        host.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main(serve, ("--loop", "uvloop", *(host for host in HOSTS if host != "uvloop")))
