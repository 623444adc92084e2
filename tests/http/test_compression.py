"""Content decoders: bounded output, any cut of the input, truncation and junk told."""

from __future__ import annotations

import gzip
import random
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coro.errors import HTTPInputError
from coro.http.compression import (
    ContentDecoder,
    DeflateDecoder,
    GzipDecoder,
    decoder_for,
    supported_codings,
)

PLAIN = random.Random(1).randbytes(3000) + b"a" * 100_000


def raw_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


CODINGS = [
    pytest.param(GzipDecoder, gzip.compress, id="gzip"),
    pytest.param(DeflateDecoder, zlib.compress, id="zlib"),
    pytest.param(DeflateDecoder, raw_deflate, id="raw"),
]


def decode(decoder: ContentDecoder, pieces: list[bytes], max_length: int = 65536) -> bytes:
    """Run a decoder as a client does, checking the bound of each portion."""
    taken = []
    for piece in pieces:
        out = decoder.decompress(piece, max_length)
        while out:
            assert len(out) <= max_length
            taken.append(out)
            out = decoder.decompress(b"", max_length) if decoder.pending else b""
        assert not decoder.pending
    decoder.finish()
    return b"".join(taken)


def single(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize(("make", "encode"), CODINGS)
class TestEveryCoding:
    @pytest.mark.parametrize("max_length", [7, 1000, 65536, 10**9])
    def test_whole_and_byte_by_byte(self, make, encode, max_length):
        data = encode(PLAIN)
        assert decode(make(), [data], max_length) == PLAIN
        assert decode(make(), single(data), max_length) == PLAIN

    @pytest.mark.parametrize("length", [0, 1, 2, 999, 1000, 1001, 2000])
    def test_output_that_just_fits(self, make, encode, length):
        plain = b"z" * length
        assert decode(make(), [encode(plain)], 1000) == plain

    def test_nothing_at_all(self, make, encode):
        assert decode(make(), []) == b""
        assert decode(make(), [b""]) == b""

    def test_truncation(self, make, encode):
        data = encode(b"hello, hello, hello")
        for cut in range(1, len(data)):
            with pytest.raises(HTTPInputError, match="ends in the middle"):
                decode(make(), [data[:cut]])

    def test_junk_after_the_end(self, make, encode):
        for tail in (b"x", b"junk" * 5000):
            with pytest.raises(HTTPInputError, match="after its end"):
                decode(make(), [encode(b"hello") + tail])
            with pytest.raises(HTTPInputError, match="after its end"):
                decode(make(), [encode(b"hello"), tail])

    def test_malformed(self, make, encode):
        with pytest.raises(HTTPInputError, match="invalid"):
            decode(make(), [b"\xff" * 100])

    @pytest.mark.parametrize("limit", [0, -1])
    def test_limit_has_to_be_positive(self, make, encode, limit):
        with pytest.raises(ValueError, match="max_length"):
            make().decompress(encode(b"x"), limit)

    def test_bomb_is_taken_in_portions(self, make, encode):
        decoder = make()
        out = decoder.decompress(encode(bytes(50_000_000)), 1000)
        assert out == bytes(1000)
        assert decoder.pending

    def test_large_input_in_small_portions_is_linear(self, make, encode):
        data = encode(random.Random(2).randbytes(1_000_000))
        decoder = make()
        given = [0]
        portion = decoder._portion

        def counting(stream, room):
            given[0] += len(decoder._input[decoder._position :][:16384])
            return portion(stream, room)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(decoder), "_portion", lambda _self, *args: counting(*args))
            decode(decoder, [data], 16384)
        # Each window is given to zlib a few times at most, however large the input.
        assert given[0] <= 4 * len(data)

    @given(
        plain=st.binary(max_size=200),
        cuts=st.lists(st.integers(0, 300)),
        flip=st.none() | st.tuples(st.integers(0, 300), st.integers(1, 255)),
    )
    def test_cutting_changes_nothing(self, make, encode, plain, cuts, flip):
        data = bytearray(encode(plain))
        if flip is not None:
            data[flip[0] % len(data)] ^= flip[1]

        def outcome(pieces):
            try:
                return decode(make(), pieces, 50)
            except HTTPInputError:
                return None

        edges = [0, *sorted(c % len(data) for c in cuts), len(data)]
        pieces = [bytes(data[a:b]) for a, b in pairwise(edges)]
        expected = outcome([bytes(data)])
        assert outcome(pieces) == expected
        assert outcome(single(bytes(data))) == expected
        if flip is None:
            assert expected == plain


class TestGzip:
    def test_members_and_padding(self):
        data = gzip.compress(PLAIN) + gzip.compress(b"") + gzip.compress(b"xyz") + bytes(40_000)
        for pieces in ([data], single(data)):
            assert decode(GzipDecoder(), pieces) == PLAIN + b"xyz"

    def test_many_empty_members(self):
        assert decode(GzipDecoder(), [gzip.compress(b"") * 2000]) == b""

    def test_truncated_later_member(self):
        member = gzip.compress(b"x")
        for cut in range(1, len(member)):
            with pytest.raises(HTTPInputError, match="middle"):
                decode(GzipDecoder(), [member + member[:cut]])

    def test_wrong_checksum(self):
        data = bytearray(gzip.compress(b"hello"))
        data[-5] ^= 1
        with pytest.raises(HTTPInputError, match="invalid gzip data"):
            decode(GzipDecoder(), [bytes(data)])


def test_decoder_for():
    assert isinstance(decoder_for("gzip"), GzipDecoder)
    assert isinstance(decoder_for(" X-GZIP\t"), GzipDecoder)
    assert isinstance(decoder_for("Deflate"), DeflateDecoder)
    for coding in ("", "identity", "br", "gzip, gzip"):
        assert decoder_for(coding) is None
    assert supported_codings() == ("gzip", "deflate")
