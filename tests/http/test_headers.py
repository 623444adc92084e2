"""HTTPHeaders: the lineage's dictionary, what it lets in, and its lazy form."""

from __future__ import annotations

import copy
import pickle
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coro.errors import HTTPInputError
from coro.http.headers import HTTPHeaders, canonical_name, format_timestamp, is_field_block

TOKEN = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=8)
VALUE = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=12
).map(lambda text: text.strip(" \t"))


class TestDictionary:
    def test_names_in_any_case(self):
        h = HTTPHeaders({"content-TYPE": "text/html"})
        assert h["Content-Type"] == h["CONTENT-type"] == "text/html"
        assert "content-type" in h
        assert list(h) == ["Content-Type"]
        assert len(h) == 1
        assert h.get("missing") is None
        assert 7 not in h
        with pytest.raises(KeyError):
            h["missing"]

    def test_repeated_field(self):
        h = HTTPHeaders()
        h.add("Set-Cookie", "A=B")
        h.add("set-cookie", "C=D")
        assert h["Set-Cookie"] == "A=B,C=D"
        assert h.get_list("SET-COOKIE") == ["A=B", "C=D"]
        assert list(h.get_all()) == [("Set-Cookie", "A=B"), ("Set-Cookie", "C=D")]
        assert len(h) == 1
        h["Set-Cookie"] = "E=F"
        assert h.get_list("Set-Cookie") == ["E=F"]
        del h["set-cookie"]
        assert not h
        assert h.get_list("Set-Cookie") == []

    def test_get_list_gives_a_list_of_the_caller(self):
        h = HTTPHeaders({"A": "1"})
        h.get_list("A").append("2")
        assert h["A"] == "1"

    def test_constructors(self):
        assert HTTPHeaders(a="1")["A"] == "1"
        assert HTTPHeaders({"a": "1", "A": "2"}).get_list("a") == ["2"]
        assert HTTPHeaders([("a", "1"), ("A", "2")]).get_list("a") == ["1", "2"]
        original = HTTPHeaders([("a", "1"), ("a", "2")])
        assert HTTPHeaders(original).get_list("a") == ["1", "2"]
        assert HTTPHeaders(original, b="3")["B"] == "3"
        assert "b" not in original

    def test_dictionary_methods(self):
        h = HTTPHeaders()
        assert h.setdefault("foo", "bar") == "bar"
        assert h.setdefault("FOO", "baz") == "bar"
        h.update({"quux": "xyzzy"})
        assert h.pop("Foo") == "bar"
        assert dict(h.items()) == {"Quux": "xyzzy"}
        h.clear()
        assert not h

    def test_equality_ignores_case_and_order_of_names(self):
        h = HTTPHeaders([("a", "1"), ("b", "2"), ("a", "3")])
        assert h == HTTPHeaders([("B", "2"), ("A", "1"), ("A", "3")])
        assert h == {"A": "1,3", "b": "2"}
        assert h != HTTPHeaders([("a", "3"), ("b", "2"), ("a", "1")])
        assert h != 5
        with pytest.raises(TypeError):
            hash(h)

    def test_str_can_be_parsed_again(self):
        h = HTTPHeaders([("Foo", "1"), ("Foo", "2"), ("Bar", "")])
        assert str(h) == "Foo: 1\nFoo: 2\nBar: \n"
        assert HTTPHeaders.parse(str(h)) == h

    def test_repr_hides_secrets(self):
        text = repr(HTTPHeaders({"Authorization": "Basic c2VjcmV0", "Accept": "*/*"}))
        assert text == "HTTPHeaders([('Authorization', '***'), ('Accept', '*/*')])"

    @pytest.mark.parametrize("lazy", [False, True])
    def test_copies_share_nothing(self, lazy):
        pairs = [("A", "1"), ("A", "2"), ("B", "c")]
        h = HTTPHeaders.from_block(b"A: 1\r\nA: 2\r\nB: c\r\n") if lazy else HTTPHeaders(pairs)
        for twin in (h.copy(), copy.copy(h), copy.deepcopy(h), pickle.loads(pickle.dumps(h))):
            assert type(twin) is HTTPHeaders
            assert list(twin.get_all()) == pairs
            twin.add("A", "3")
            del twin["B"]
            assert list(h.get_all()) == pairs

    def test_adding_does_not_rebuild_what_is_there(self):
        h = HTTPHeaders()
        h.add("X-Foo", "bar")
        values = h._load()["X-Foo"]
        for _ in range(1000):
            h.add("X-Foo", "bar")
        assert h._load()["X-Foo"] is values
        assert len(values) == 1001


class TestValidation:
    @pytest.mark.parametrize(
        "name",
        ["", "foo bar", "foo\tbar", "foo\nbar", "foo\0bar", "foo ", " foo", "foo:", "é", "Å"],
    )
    def test_bad_names(self, name):
        h = HTTPHeaders()
        for attempt in (h.add, h.__setitem__):
            with pytest.raises(HTTPInputError, match="invalid header name"):
                attempt(name, "bar")
        assert name not in h
        assert not h

    def test_characters_of_values(self):
        for code in range(0x100):
            value = f"bar{chr(code)}baz"
            allowed = code == 0x09 or (code >= 0x20 and code != 0x7F)
            for build in (
                lambda v: HTTPHeaders({"Foo": v}),
                lambda v: HTTPHeaders([("Foo", v)]),
                lambda v: HTTPHeaders(Foo=v),
                lambda v: HTTPHeaders.parse(f"Foo: {v}\r\n"),
            ):
                if allowed:
                    assert build(value)["Foo"] == value
                else:
                    with pytest.raises(HTTPInputError):
                        build(value)

    @pytest.mark.parametrize("value", ["a\u010ab", "a\u010db", "a\u0100b", "a\u2028b", "日本", "€"])
    def test_characters_whose_low_byte_ends_a_line(self, value):
        with pytest.raises(HTTPInputError):
            HTTPHeaders({"Foo": value})

    def test_error_is_a_value_error_too(self):
        with pytest.raises(ValueError, match="X-A"):
            HTTPHeaders({"X-A": "1\r\nX-B: 2"})

    def test_other_types(self):
        assert HTTPHeaders({"A": b"caf\xe9"})["A"] == "caf\xe9"  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"str\(5\)"):
            HTTPHeaders({"Content-Length": 5})  # type: ignore[arg-type]

    def test_space_around_values_goes(self):
        assert HTTPHeaders({"A": " \t1 \t"})["A"] == "1"
        # No space in the sense of HTTP.
        assert HTTPHeaders({"A": "\u00a01\u0085"})["A"] == "\u00a01\u0085"


class TestParse:
    @pytest.mark.parametrize("line", [" baz", "\tbaz", " ", "\t\r\n"])
    def test_folded_lines_are_refused(self, line):
        with pytest.raises(HTTPInputError, match="folded"):
            HTTPHeaders.parse(f"Foo: bar\r\n{line}")
        h = HTTPHeaders({"Foo": "bar"})
        with pytest.raises(HTTPInputError, match="folded"):
            h.parse_line(line)
        assert h == {"Foo": "bar"}

    @pytest.mark.parametrize(
        "text",
        [
            " Foo: bar",
            "Foo: bar\r\n\fasdf",
            "Foo",
            "CR: cr\rMore: more",
            ": x",
            "A : b",
            "A: b\r\n \0",
        ],
    )
    def test_malformed(self, text):
        with pytest.raises(HTTPInputError):
            HTTPHeaders.parse(text)

    def test_line_ends(self):
        h = HTTPHeaders.parse("CRLF: crlf\r\nLF: lf\nMore: more")
        assert list(h.get_all()) == [("Crlf", "crlf"), ("Lf", "lf"), ("More", "more")]
        h.parse_line("")
        h.parse_line("\r\n")
        h.parse_line("Last: 1\r\n")
        assert h["last"] == "1"


class TestWire:
    def test_block(self):
        h = HTTPHeaders.from_block(b"a: 1\r\nX:\r\nA:\t2 \r\nC: caf\xe9:x\r\n")
        assert list(h.get_all()) == [("A", "1"), ("A", "2"), ("X", ""), ("C", "caf\xe9:x")]
        assert not HTTPHeaders.from_block(b"")

    def test_pairs(self):
        h = HTTPHeaders.from_pairs([(b"a", b" 1"), (b"A", b"2"), (b"c", b"caf\xe9")])
        assert list(h.get_all()) == [("A", "1"), ("A", "2"), ("C", "caf\xe9")]

    def test_changing_what_was_received(self):
        h = HTTPHeaders.from_block(b"A: 1\r\n")
        h.add("A", "2")
        h["B"] = "3"
        assert list(h.get_all()) == [("A", "1"), ("A", "2"), ("B", "3")]

    @given(st.lists(st.tuples(TOKEN, VALUE), max_size=8))
    def test_all_ways_in_agree(self, pairs):
        block = b"".join(f"{n}: {v}\r\n".encode("latin-1") for n, v in pairs)
        raw = [(n.encode(), v.encode("latin-1")) for n, v in pairs]
        expected = HTTPHeaders(pairs)
        assert is_field_block(block)
        assert HTTPHeaders.from_block(block) == expected
        assert HTTPHeaders.from_pairs(raw) == expected
        assert list(HTTPHeaders.from_block(block).get_all()) == list(expected.get_all())

    @pytest.mark.parametrize(
        "block", [b"A: 1", b"A: 1\n", b"A : 1\r\n", b"A: \0\r\n", b" A: 1\r\n", b"\r\n", b": 1\r\n"]
    )
    def test_no_field_block(self, block):
        assert not is_field_block(block)


def test_canonical_name():
    assert canonical_name("coNtent-TYPE") == "Content-Type"
    assert canonical_name("ETag") == "Etag"


@pytest.mark.parametrize(
    "when",
    [
        1359312200.503611,
        1359312200,
        time.gmtime(1359312200),
        tuple(time.gmtime(1359312200)),
        datetime(2013, 1, 27, 18, 43, 20),  # without a zone: UTC
        datetime(2013, 1, 27, 18, 43, 20, tzinfo=UTC),
        datetime(2013, 1, 27, 20, 43, 20, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_format_timestamp(when):
    assert format_timestamp(when) == "Sun, 27 Jan 2013 18:43:20 GMT"
