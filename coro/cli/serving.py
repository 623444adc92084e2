"""What ``coro serve`` does: finds what is to be served, and serves it until a signal comes."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import coro
from coro.asgi import ASGIHandler, Lifespan, LifespanError
from coro.errors import format_address
from coro.future import Future
from coro.gen import coroutine
from coro.http import HTTPServer, StaticFiles, log_access
from coro.loop import IOLoop
from coro.net import bind_sockets, bind_unix_socket, listening_socket
from coro.process import STOPPING, fork_processes

__all__ = ["Options", "Service", "find", "serve"]

GRACE_BEYOND = 5.0
"""Seconds that workers have beyond those of their requests, for what the application cleans up."""

BACKLOG = 2048
"""Connections that may wait while the workers are busy."""

# Exit status: the application said that it cannot start.
CANNOT_START = 3


@dataclass(frozen=True)
class Options:
    """What the command line says of the server."""

    host: str
    port: int
    unix: str | None
    unix_mode: int
    fd: int | None
    workers: int
    certfile: str | None
    keyfile: str | None
    access_log: bool
    compress: bool
    trusted: tuple[str, ...]
    root_path: str
    max_body: int
    grace: float


@dataclass(frozen=True)
class Service:
    """What is served: a handler, or an ASGI application."""

    name: str
    handler: Callable[..., Any] | None = None
    app: Callable[..., Any] | None = None


# --- what is to be served ----------------------------------------------------------------------


def find(target: str, interface: str | None, *, listing: bool) -> Service:
    """Return what ``target`` names: the files of a directory, or ``module:attribute``.

    Arguments:
        interface: "asgi" or "handler"; None: find out.
        listing: of a directory: show what it holds.
    Raises:
        click.BadParameter: there is no such thing, or nothing that can be served.
    """
    if os.path.isdir(target):
        return Service(
            f"the files in {Path(target).resolve()}", StaticFiles(target, listing=listing)
        )
    module, colon, path = target.partition(":")
    if not colon or not module or not path:
        raise _bad(
            f"{target!r} is neither a directory nor 'module:attribute', such as 'app:app' for app"
            " in app.py"
        )
    found = _import(module)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise _bad(f"{module} has no attribute {path!r}{_near(found)}") from None
    if not callable(found):
        raise _bad(f"{target} is {found!r:.100}, which cannot be called")
    if interface is None:
        interface = _interface(found)
    if interface is None:
        raise _bad(
            f"{target} takes neither a request alone nor scope, receive and send: if it is an ASGI"
            " application nevertheless, say --interface asgi"
        )
    if interface == "asgi":
        return Service(target, app=found)
    return Service(target, handler=found)


def _bad(text: str) -> click.BadParameter:
    return click.BadParameter(text, param_hint="TARGET")


def _import(module: str) -> Any:
    # As with python -m.
    if sys.path[:1] != [""]:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            # It is there, and lacks something itself.
            raise
        hint = f"; did you mean {module[:-3]}?" if module.endswith(".py") else ""
        raise _bad(f"there is no module {module!r} here or on the path{hint}") from None


def _near(found: Any) -> str:
    """What else could have been meant."""
    names = [name for name, value in vars(found).items() if _is_own(found, name, value)]
    return f"; it has {', '.join(sorted(names)[:10])}" if names else ""


def _is_own(module: Any, name: str, value: Any) -> bool:
    home = getattr(value, "__module__", None)
    return not name.startswith("_") and callable(value) and home == module.__name__


def _interface(found: Callable[..., Any]) -> str | None:
    """Tell an ASGI application (of version 3) and a handler apart, by what they take."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = [
        each
        for each in parameters
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    needed = sum(each.default is each.empty for each in positional)
    if needed <= 3 <= len(positional):
        return "asgi"
    return "handler" if needed <= 1 <= len(positional) else None


# --- serving -----------------------------------------------------------------------------------


def serve(service: Service, options: Options) -> int:
    """Serve until a signal comes; return the exit status.

    Raises:
        click.ClickException: the address, the certificate or the like cannot be used.
    """
    server = _make_server(service, options)
    sockets = _bind(options)
    # Who connects from now on is to be answered, also if a worker is told to end while it begins:
    # signals wait until there is something to take them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _wanted())
    try:
        if options.workers > 1:
            _announce(service, sockets, options)
            fork_processes(
                options.workers,
                grace=options.grace + GRACE_BEYOND,
                on_stop=functools.partial(_close, sockets),
            )
        status: int = coro.run(_serve, server, service, sockets, options, mask)
        return status
    finally:
        _close(sockets)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _announce(service: Service, sockets: list[socket.socket], options: Options) -> None:
    """Say that it is ready, and where."""
    for sock in sockets:
        place = format_address(sock.getsockname())
        if sock.family != socket.AF_UNIX:
            place = f"http{'s' if options.certfile else ''}://{place}"
        _tell(f"serving {service.name} on {place}")
    _tell("Ctrl-C ends it")


def _tell(text: str) -> None:
    click.echo(f"coro: {text}", err=True)


def _make_server(service: Service, options: Options) -> HTTPServer:
    tls = None
    if options.certfile is not None:
        tls = {"certfile": options.certfile, "keyfile": options.keyfile}
    if options.access_log:
        # What belongs to the services of others is theirs to log; this is ours.
        log = logging.getLogger("coro.access")
        output = logging.StreamHandler()
        output.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(output)
        log.setLevel(logging.INFO)
    handler: Any = service.handler
    try:
        return HTTPServer(
            handler,
            xheaders=options.trusted or False,
            ssl_options=tls,
            max_body_size=options.max_body,
            stream_body=service.app is not None,
            compress_response=options.compress,
            on_request_end=log_access if options.access_log else None,
        )
    except OSError as error:
        raise click.ClickException(
            f"cannot use the certificate {options.certfile}: {error.strerror or error}"
        ) from error
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--trust-proxy") from error


def _bind(options: Options) -> list[socket.socket]:
    try:
        if options.fd is not None:
            return [listening_socket(options.fd)]
        if options.unix is not None:
            return [bind_unix_socket(options.unix, options.unix_mode, BACKLOG)]
        return bind_sockets(options.port, options.host, backlog=BACKLOG)
    except OSError as error:
        reason = str(error.strerror or error)
        if options.fd is not None:
            reason = f"cannot listen on descriptor {options.fd}: {reason}"
        raise click.ClickException(reason) from error


def _wanted() -> list[int]:
    """The signals that end it: not those that are ignored, as SIGHUP is under nohup."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]


@coroutine
def _serve(
    server: HTTPServer,
    service: Service,
    sockets: list[socket.socket],
    options: Options,
    mask: set[int],
) -> Generator[Any, Any, int]:
    """Serve, in one process."""
    loop = IOLoop.current()
    stopped: Future[None] = Future()
    lifespan = None
    for number in _wanted():
        loop.add_signal_handler(number, functools.partial(_stop, stopped))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if service.app is not None:
        lifespan = Lifespan(service.app)
        try:
            yield lifespan.startup()
        except LifespanError as error:
            _tell(str(error))
            return CANNOT_START
        server.handler = ASGIHandler(service.app, root_path=options.root_path, state=lifespan.state)
    server.add_sockets(sockets)
    if options.workers == 1:
        _announce(service, sockets, options)
    yield stopped
    yield server.shutdown(options.grace)
    if lifespan is not None:
        try:
            yield lifespan.shutdown()
        except LifespanError as error:
            _tell(str(error))
    return 0


def _stop(stopped: Future[None]) -> None:
    """The first signal begins the end, the second one does not wait for it."""
    if stopped.done():
        sys.exit(1)
    stopped.set_result(None)
