"""``Router``: methods, paths, and what no route answers."""

from types import SimpleNamespace
from typing import Any

import pytest

from coro.http import Router


@pytest.fixture
def router() -> Router:
    router = Router()
    router.add("GET", "/", lambda request: "root")
    router.add("GET", "/rooms/{name}", lambda request, name: ("get", name))
    router.add("PUT", "/rooms/{name}", lambda request, name: ("put", name))
    router.add("GET", "/a.b/{x}/{y}.txt", lambda request, x, y: (x, y))
    return router


def ask(router: Router, method: str, path: str) -> Any:
    request: Any = SimpleNamespace(method=method, path=path)
    return router(request)


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("GET", "/", "root"),
        ("GET", "/rooms/tea%2Fpot", ("get", "tea/pot")),
        ("HEAD", "/rooms/x", ("get", "x")),
        ("PUT", "/rooms/x", ("put", "x")),
        ("GET", "/a.b/1/2.txt", ("1", "2")),
    ],
)
def test_a_route_is_found(router: Router, method: str, path: str, answer: Any) -> None:
    assert ask(router, method, path) == answer


@pytest.mark.parametrize("path", ["/rooms/", "/rooms/a/b", "/aXb/1/2.txt", "/a.b/1/2.txt\n", "*"])
def test_no_route_is_404(router: Router, path: str) -> None:
    assert ask(router, "GET", path).status == 404


def test_another_method_is_405_and_told_which(router: Router) -> None:
    answer = ask(router, "DELETE", "/rooms/x")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, PUT")


def test_options_tells_which_methods_there_are(router: Router) -> None:
    answer = ask(router, "OPTIONS", "/rooms/x")
    assert (answer.status, answer.headers["Allow"]) == (204, "GET, HEAD, OPTIONS, PUT")
    assert ask(router, "OPTIONS", "/rooms/a/b").status == 404
    router.add("OPTIONS", "/rooms/{name}", lambda request, name: name)
    assert ask(router, "OPTIONS", "/rooms/x") == "x"


@pytest.mark.parametrize("path", ["rooms", "/{a}/{a}"])
def test_a_path_that_makes_no_sense(path: str) -> None:
    with pytest.raises(ValueError, match=r"slash|twice"):
        Router().add("GET", path, print)


def test_the_decorator_returns_the_handler() -> None:
    router = Router()
    assert router.route("GET", "/p")(print) is print
