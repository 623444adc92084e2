"""Forms as a server receives them: those of browsers and clients, and hostile ones."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coro.errors import HTTPInputError
from coro.http import forms
from coro.http.forms import HTTPFile, parse_arguments, parse_multipart
from coro.http.multipart import encode_multipart

KIND = 'multipart/form-data; boundary="b"'


def part(head: str, content: bytes = b"", end: bytes = b"") -> bytes:
    return b"--b\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" + end


def field(name: str, content: bytes) -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"', content)


END = b"--b--\r\n"
FILE = part(
    'content-disposition: form-data; name="f"; filename="a.txt"\r\nContent-Type: text/plain',
    b"a\r\n--a\r\n",
)


class TestForms:
    def test_fields_and_files(self) -> None:
        body = field("x", b"1") + field("x", b"\xff\r\n\r\n2") + FILE + END + b"more"
        arguments, files = parse_multipart(KIND, b"ignored\r\n" + body)
        assert arguments == {"x": [b"1", b"\xff\r\n\r\n2"]}
        assert files == {"f": [HTTPFile("a.txt", b"a\r\n--a\r\n", "text/plain")]}
        file = files["f"][0]
        assert (file["filename"], file["body"]) == ("a.txt", file.body)
        with pytest.raises(KeyError):
            file["headers"]

    def test_none_at_all(self) -> None:
        assert parse_multipart(KIND, END) == ({}, {})

    @pytest.mark.parametrize(
        ("disposition", "name", "filename"),
        [
            ('form-data; name="ä"; filename="grüß €.txt"', "ä", "grüß €.txt"),
            ("form-data; name=n; filename=f", "n", "f"),
            ('Form-Data;filename="f";name="n"', "n", "f"),
            (r'form-data; name="a\"b"; filename="C:\dir\f"', 'a"b', r"C:\dir\f"),
            ('form-data; name="a;b"; filename="%22"', "a;b", "%22"),
            ('form-data; name="n"; filename="../../etc/passwd"', "n", "../../etc/passwd"),
        ],
    )
    def test_names(self, disposition: str, name: str, filename: str) -> None:
        body = part(f"Content-Disposition: {disposition}", b"x") + END
        assert parse_multipart(KIND, body)[1] == {
            name: [HTTPFile(filename, b"x", "application/octet-stream")]
        }

    def test_a_file_that_was_not_chosen_is_an_argument(self) -> None:
        body = part('Content-Disposition: form-data; name="f"; filename=""') + END
        assert parse_multipart(KIND, body) == ({"f": [b""]}, {})

    @pytest.mark.parametrize("kind", ["; boundary=b", ";charset=x; Boundary=b ; y=z"])
    def test_boundaries(self, kind: str) -> None:
        assert parse_multipart("multipart/form-data" + kind, field("a", b"b") + END)[0] == {
            "a": [b"b"]
        }


class TestClients:
    def test_httpx(self) -> None:
        request = httpx.Request(
            "POST",
            "http://a/",
            data={"x": ["1", "2"]},
            files={"f": ("grüß.txt", b"\x00\r\n--", "text/plain")},
        )
        arguments, files = parse_multipart(request.headers["Content-Type"], request.read())
        assert arguments == {"x": [b"1", b"2"]}
        assert files == {"f": [HTTPFile("grüß.txt", b"\x00\r\n--", "text/plain")]}

    @given(
        st.dictionaries(st.text(st.characters(exclude_categories=["C"]), min_size=1), st.binary()),
    )
    @settings(max_examples=100, deadline=None)
    def test_coro(self, contents: dict[str, bytes]) -> None:
        names = [name for name in contents if not set(name) & set('"\\')]
        given = [(name, (name, contents[name], "image/png")) for name in names]
        kind, body, _ = encode_multipart({"x": "y"}, given)
        assert isinstance(body, bytes)
        assert parse_multipart(kind, body) == (
            {"x": [b"y"]},
            {name: [HTTPFile(name, contents[name], "image/png")] for name in names},
        )


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"--b",
            field("a", b"b"),
            b"--c--\r\n",
            b"--b\r\nno head\r\n" + END,
            b"--bc\r\n\r\n" + END,
            part('Content-Disposition: attachment; name="a"') + END,
            part("Content-Disposition: form-data") + END,
            part("Content-Type: text/plain") + END,
            part("") + END,
        ],
    )
    def test_malformed(self, body: bytes) -> None:
        with pytest.raises(HTTPInputError):
            parse_multipart(KIND, body)

    @pytest.mark.parametrize("kind", ["", "; boundary", "; boundary=", f"; boundary={'x' * 71}"])
    def test_no_boundary(self, kind: str) -> None:
        with pytest.raises(HTTPInputError, match="without a boundary"):
            parse_multipart("multipart/form-data" + kind, END)

    def test_the_number_of_parts(self) -> None:
        most = field("a", b"") * forms.MAX_PARTS
        assert len(parse_multipart(KIND, most + END)[0]["a"]) == forms.MAX_PARTS
        with pytest.raises(HTTPInputError, match="more than 100 parts"):
            parse_multipart(KIND, most + field("a", b"") + END)
        with pytest.raises(HTTPInputError, match="more than 100 parts"):
            parse_multipart(KIND, field("a", b"") * 200_000)

    def test_the_head_of_a_part(self) -> None:
        head = 'Content-Disposition: form-data; name="a"\r\nX: '
        room = forms.MAX_PART_HEAD - len(head) - 2
        assert parse_multipart(KIND, part(head + "x" * room) + END)[0] == {"a": [b""]}
        with pytest.raises(HTTPInputError, match="head of a part"):
            parse_multipart(KIND, part(head + "x" * (room + 1)) + END)

    def test_the_number_of_arguments(self) -> None:
        assert len(parse_arguments("a=b&" * 999 + "c=d")["a"]) == 999
        with pytest.raises(HTTPInputError, match="more than 1000 arguments"):
            parse_arguments("a&" * 1000 + "c=d")


def test_a_name_with_many_quotes_is_read_in_one_go() -> None:
    """Nothing is tried over and over."""
    hostile = 'form-data; name="' + '\\"' * 5000
    with pytest.raises(HTTPInputError):
        parse_multipart(KIND, part(f"Content-Disposition: {hostile}"[: forms.MAX_PART_HEAD]) + END)
