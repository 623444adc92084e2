"""Conditions and ranges of requests, without any server."""

import pytest

from coro.http.conditions import (
    MAX_RANGES,
    check_conditions,
    parse_date,
    select_ranges,
    weaken,
)
from coro.http.headers import HTTPHeaders

OLD, THEN, NEW = (
    "Sun, 06 Nov 1994 08:49:36 GMT",
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "Sun, 06 Nov 1994 08:49:38 GMT",
)
MODIFIED = 784111777.5


class TestDates:
    @pytest.mark.parametrize(
        "text", [THEN, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
    )
    def test_the_three_forms(self, text: str) -> None:
        assert parse_date(text) == 784111777

    @pytest.mark.parametrize(
        "text",
        [
            *(None, "", "tomorrow", "Sun, 06 Nov 1994", "Sun, 99 Foo 1994 08:49:37 GMT", "0"),
            *("Sun, 06 Nov 99999999999 08:49:37 GMT", "1 Jan 1 1:1:1 +9999999999999999999"),
        ],
    )
    def test_what_is_none_harms_nobody(self, text: str | None) -> None:
        found = parse_date(text)
        assert found is None or isinstance(found, int)
        if text in (None, "", "tomorrow", "0"):
            assert found is None


CONDITIONS = [
    # Method, fields, answer for a resource with the tag "a", changed at THEN.
    ("GET", {}, None),
    ("GET", {"If-None-Match": '"a"'}, 304),
    ("HEAD", {"If-None-Match": '"a"'}, 304),
    ("PUT", {"If-None-Match": '"a"'}, 412),
    ("PUT", {"If-None-Match": "*"}, 412),
    ("GET", {"If-None-Match": 'W/"a"'}, 304),
    ("GET", {"If-None-Match": '"b", "c,d" ,"a"'}, 304),
    ("GET", {"If-None-Match": ', ,"a"'}, 304),
    ("GET", {"If-None-Match": '"b"'}, None),
    ("GET", {"If-None-Match": "a"}, None),
    ("GET", {"If-None-Match": '"b "a"'}, None),
    # The date does not count beside a tag.
    ("GET", {"If-None-Match": '"b"', "If-Modified-Since": NEW}, None),
    ("GET", {"If-Modified-Since": THEN}, 304),
    ("GET", {"If-Modified-Since": NEW}, 304),
    ("GET", {"If-Modified-Since": OLD}, None),
    ("GET", {"If-Modified-Since": "whenever"}, None),
    ("PUT", {"If-Modified-Since": NEW}, None),
    ("GET", {"If-Match": '"a"'}, None),
    ("GET", {"If-Match": "*"}, None),
    ("GET", {"If-Match": 'W/"a"'}, 412),
    ("PUT", {"If-Match": '"b"'}, 412),
    ("PUT", {"If-Unmodified-Since": OLD}, 412),
    ("PUT", {"If-Unmodified-Since": THEN}, None),
    ("PUT", {"If-Unmodified-Since": "whenever"}, None),
    ("GET", {"If-Match": '"a"', "If-Unmodified-Since": OLD}, None),
    ("GET", {"If-Match": '"b"', "If-None-Match": '"a"'}, 412),
    ("GET", {"If-Match": '"a"', "If-None-Match": '"a"'}, 304),
]


@pytest.mark.parametrize(("method", "fields", "answer"), CONDITIONS)
def test_conditions(method: str, fields: dict[str, str], answer: int | None) -> None:
    assert check_conditions(method, HTTPHeaders(fields), '"a"', MODIFIED) == answer


def test_conditions_of_what_has_no_validators() -> None:
    headers = HTTPHeaders({"If-None-Match": '"a"', "If-Modified-Since": THEN})
    assert check_conditions("GET", headers, None, None) is None
    assert check_conditions("GET", HTTPHeaders({"If-Match": '"a"'}), None, None) == 412


def test_a_weak_tag_is_not_good_enough_to_change_something() -> None:
    headers = HTTPHeaders({"If-Match": 'W/"a"'})
    assert check_conditions("PUT", headers, 'W/"a"', None) == 412
    headers = HTTPHeaders({"If-None-Match": '"a"'})
    assert check_conditions("GET", headers, 'W/"a"', None) == 304
    assert (weaken('"a"'), weaken('W/"a"')) == ('W/"a"', 'W/"a"')


RANGES = [
    ("bytes=0-0", [(0, 0)]),
    ("bytes=2-5", [(2, 5)]),
    ("Bytes = 2-5", [(2, 5)]),
    ("bytes=2-", [(2, 9)]),
    ("bytes=9-20", [(9, 9)]),
    ("bytes=-3", [(7, 9)]),
    ("bytes=-30", [(0, 9)]),
    ("bytes=0-0, -1", [(0, 0), (9, 9)]),
    ("bytes=5-6,0-1", [(5, 6), (0, 1)]),
    ("bytes=20-,0-1", [(0, 1)]),
    # None of it is there.
    ("bytes=10-", []),
    ("bytes=10-,20-30", []),
    ("bytes=-0", []),
    # No sense, no field.
    ("bytes=5-2", None),
    ("bytes=5-2,0-0", None),
    ("bytes=", None),
    ("bytes=-", None),
    ("bytes=a-b", None),
    ("bytes=1--2", None),
    ("bytes=+1-2", None),
    ("bytes=1-2 3-4", None),
    ("bytes=\xb2-", None),
    ("bytes=0-" + "9" * 5000, None),
    ("seconds=0-1", None),
    ("0-1", None),
    # Overlapping.
    ("bytes=0-5,5-6", None),
    ("bytes=0-,0-", None),
    ("bytes=" + ",".join(f"{n}-{n}" for n in range(10)), [(n, n) for n in range(10)]),
]


@pytest.mark.parametrize(("value", "found"), RANGES, ids=lambda each: str(each)[:30])
def test_ranges(value: str, found: list[tuple[int, int]] | None) -> None:
    assert select_ranges("GET", HTTPHeaders({"Range": value}), 10, '"a"', MODIFIED) == found


@pytest.mark.parametrize("count", [MAX_RANGES, MAX_RANGES + 1])
def test_how_many_ranges(count: int) -> None:
    value = "bytes=" + ",".join(f"{2 * n}-{2 * n}" for n in range(count))
    found = select_ranges("GET", HTTPHeaders({"Range": value}), 1000, None, None)
    assert (found is None) == (count > MAX_RANGES)


@pytest.mark.parametrize(
    ("validator", "honoured"),
    [
        ('"a"', True),
        ('"b"', False),
        ('W/"a"', False),
        (THEN, True),
        (OLD, False),
        (NEW, False),
        ("whatever", False),
    ],
)
def test_if_range(validator: str, honoured: bool) -> None:
    headers = HTTPHeaders({"Range": "bytes=0-1", "If-Range": validator})
    assert (select_ranges("GET", headers, 10, '"a"', MODIFIED) is not None) == honoured


def test_if_range_wants_to_be_sure() -> None:
    weak = HTTPHeaders({"Range": "bytes=0-1", "If-Range": 'W/"a"'})
    assert select_ranges("GET", weak, 10, 'W/"a"', None) is None
    dated = HTTPHeaders({"Range": "bytes=0-1", "If-Range": THEN})
    assert select_ranges("GET", dated, 10, 'W/"a"', None) is None


def test_only_get_has_ranges_and_nothing_has_none() -> None:
    headers = HTTPHeaders({"Range": "bytes=0-1"})
    assert select_ranges("HEAD", headers, 10, None, None) is None
    assert select_ranges("GET", headers, 0, None, None) is None
