"""HTTP/1.1: ``fetch``, the clients, the server, their requests and responses.

From below: ``headers``, ``urls``, ``messages``, ``codec`` (with ``framing``), ``compression``,
``connection``, ``pool``, ``client``; the server's side: ``incoming``, ``request``, ``response``,
``conditions``, ``files``, ``router``, ``writer``, ``server``.
"""

from __future__ import annotations

from coro.errors import HTTPError
from coro.http.client import AsyncHTTPClient, HTTPClient, fetch
from coro.http.files import StaticFiles
from coro.http.headers import HTTPHeaders
from coro.http.messages import HTTPRequest, HTTPResponse
from coro.http.request import HTTPServerRequest
from coro.http.response import Response
from coro.http.router import Router
from coro.http.server import HTTPServer, log_access
from coro.http.writer import ResponseWriter

__all__ = [
    "AsyncHTTPClient",
    "HTTPClient",
    "HTTPError",
    "HTTPHeaders",
    "HTTPRequest",
    "HTTPResponse",
    "HTTPServer",
    "HTTPServerRequest",
    "Response",
    "ResponseWriter",
    "Router",
    "StaticFiles",
    "fetch",
    "log_access",
]
