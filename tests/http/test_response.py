"""What a response may not say: nothing is written that could be read as more than was meant."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coro.http.encode import encode_last_chunk
from coro.http.response import Response, encode_head


def head(response: Response) -> bytes:
    return encode_head(response, b"Date: now\r\n", content_length=0)


PLACES: dict[str, Callable[[str], bytes]] = {
    "value": lambda text: head(Response(headers={"X": text})),
    "name": lambda text: head(Response(headers={text: "x"})),
    "reason": lambda text: head(Response(reason=text)),
    "content type": lambda text: head(Response(content_type=text)),
    "redirect": lambda text: head(Response.redirect("/" + text)),
    "trailer": lambda text: encode_last_chunk([("X", text)]),
    "name of a trailer": lambda text: encode_last_chunk([(text, "x")]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "text",
    ["a\rb", "a\nb", "a\r\nX: y", "a\0b", "a\x0bb", "a\x7fb", "a\u010ab", "a\u010db", "a\u0100b"],
    ids=ascii,
)
def test_what_ends_a_line_or_seems_to(place: str, text: str) -> None:
    """Characters whose low byte is one of these among them."""
    with pytest.raises(ValueError, match=r"\S"):
        PLACES[place](text)


@pytest.mark.parametrize("status", [99, 1000, "200", "200 OK\r\nX: y"])
def test_a_status_that_is_none(status: int) -> None:
    with pytest.raises(ValueError, match="three digits"):
        head(Response(status=status))


def test_what_may_be_said() -> None:
    told = head(Response(status=299, reason="grün", headers={"X": "a\tä", "Date": "then"}))
    assert told.decode("latin-1") == (
        "HTTP/1.1 299 grün\r\nX: a\tä\r\nDate: then\r\nContent-Length: 0\r\n\r\n"
    )
