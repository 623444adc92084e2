"""HTTP/1.1: ``fetch``, the clients, their requests and responses.

From below: ``headers``, ``urls``, ``messages``, ``codec`` (with ``framing``), ``compression``,
``connection``, ``pool``, ``client``.
"""

from __future__ import annotations

from coro.errors import HTTPError
from coro.http.client import AsyncHTTPClient, HTTPClient, fetch
from coro.http.headers import HTTPHeaders
from coro.http.messages import HTTPRequest, HTTPResponse

__all__ = [
    "AsyncHTTPClient",
    "HTTPClient",
    "HTTPError",
    "HTTPHeaders",
    "HTTPRequest",
    "HTTPResponse",
    "fetch",
]
