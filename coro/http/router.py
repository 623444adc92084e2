"""A small router: which handler answers a request, by its method and path."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import unquote

from coro.http.request import HTTPServerRequest
from coro.http.response import Response

__all__ = ["Router"]

_Handler = TypeVar("_Handler", bound=Callable[..., Any])

_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Router:
    """A handler that hands requests on, by method and path.

        router = Router()

        @router.route("GET", "/rooms/{name}")
        @coroutine
        def room(request, name): ...

        HTTPServer(router)

    A place ``{name}`` stands for one segment of the path, percent-decoded, which the handler gets
    as a keyword argument. Routes are tried in the order in which they were added. HEAD is answered
    by the route of GET. What no route answers may fall to a handler that is mounted above it.
    """

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = []
        # The longest prefix first.
        self._mounted: list[tuple[str, Callable[[HTTPServerRequest], Any]]] = []

    def add(self, method: str, path: str, handler: Callable[..., Any]) -> None:
        """Add a route.

        Raises:
            ValueError: the path does not begin with a slash, or names a place twice.
        """
        if not path.startswith("/"):
            raise ValueError(f"a path begins with a slash, unlike {path!r}")
        parts = _PLACE.split(path)
        names = parts[1::2]
        if len(set(names)) < len(names):
            raise ValueError(f"a name stands twice in {path!r}")
        pattern = re.escape(parts[0])
        for name, text in zip(names, parts[2::2], strict=True):
            pattern += f"(?P<{name}>[^/]+){re.escape(text)}"
        self._routes.append((method, re.compile(pattern), handler))

    def mount(self, prefix: str, handler: Callable[[HTTPServerRequest], Any]) -> None:
        """Let a handler answer whatever lies below a path, by any method, and has no route.

            router.mount("/static", StaticFiles("public", "/static"))

        Raises:
            ValueError: the prefix does not begin with a slash.
        """
        if not prefix.startswith("/"):
            raise ValueError(f"a prefix begins with a slash, unlike {prefix!r}")
        self._mounted.append((prefix.rstrip("/") + "/", handler))
        self._mounted.sort(key=lambda mounted: -len(mounted[0]))

    def route(self, method: str, path: str) -> Callable[[_Handler], _Handler]:
        """Return a decorator that adds a route; see ``add``."""

        def decorate(handler: _Handler) -> _Handler:
            self.add(method, path, handler)
            return handler

        return decorate

    def __call__(self, request: HTTPServerRequest) -> Any:
        """Answer a request: 404 if no route has its path, 405 if none has its method.

        OPTIONS is answered with what there is, where no route has it.
        """
        path, method = request.path, request.method
        allowed: set[str] = set()
        for verb, pattern, handler in self._routes:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if method == verb or (method == "HEAD" and verb == "GET"):
                return handler(request, **{k: unquote(v) for k, v in match.groupdict().items()})
            allowed.add(verb)
        if not allowed:
            for prefix, mounted in self._mounted:
                if path.startswith(prefix):
                    return mounted(request)
            return Response("404 Not Found\n", 404)
        if "GET" in allowed:
            allowed.add("HEAD")
        if method == "OPTIONS":
            # RFC 9110 section 9.3.7.
            allowed.add("OPTIONS")
            return Response(b"", 204, {"Allow": ", ".join(sorted(allowed))})
        # RFC 9110 section 15.5.6.
        return Response("405 Method Not Allowed\n", 405, {"Allow": ", ".join(sorted(allowed))})
