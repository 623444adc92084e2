"""Content decoders: bounded output, any cut of the input, truncation and junk told."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
import tracemalloc
import zlib
from itertools import pairwise
from typing import Any

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coro.errors import HTTPInputError
from coro.http import compression
from coro.http.compression import (
    BrotliDecoder,
    ContentDecoder,
    DeflateDecoder,
    GzipDecoder,
    StackedDecoder,
    ZstdDecoder,
    decoder_for,
    supported_codings,
)
from tests.support.zstandard import zstd

PLAIN = random.Random(1).randbytes(3000) + b"a" * 100_000


def raw_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


def made(codings: str) -> ContentDecoder:
    decoder = decoder_for(codings)
    assert decoder is not None
    return decoder


def stacked() -> ContentDecoder:
    return made("br, gzip, zstd")


def stack(data: bytes) -> bytes:
    return zstd.compress(gzip.compress(brotli.compress(data, quality=5)))


CODINGS = [
    pytest.param(GzipDecoder, gzip.compress, id="gzip"),
    pytest.param(DeflateDecoder, zlib.compress, id="zlib"),
    pytest.param(DeflateDecoder, raw_deflate, id="raw"),
    pytest.param(BrotliDecoder, lambda data: brotli.compress(data, quality=5), id="br"),
    pytest.param(ZstdDecoder, zstd.compress, id="zstd"),
    pytest.param(stacked, stack, id="stacked"),
]


def decode(decoder: ContentDecoder, pieces: list[bytes], max_length: int = 65536) -> bytes:
    """Run a decoder as a client does, checking the bound of each portion."""
    taken = []
    for piece in pieces:
        out = decoder.decompress(piece, max_length)
        while out or decoder.pending:
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
            # The library of brotli does not tell one fault from another.
            with pytest.raises(HTTPInputError, match=r"after its end|invalid br data"):
                decode(make(), [encode(b"hello") + tail])
            with pytest.raises(HTTPInputError, match="after its end"):
                decode(make(), [encode(b"hello"), tail])

    def test_malformed(self, make, encode):
        with pytest.raises(HTTPInputError, match="invalid"):
            decode(make(), [b"\xff" * 100])

    def test_a_wrong_byte_is_refused_or_goes_unnoticed(self, make, encode):
        data = encode(b"hello, hello, hello")
        for at in range(len(data)):
            try:
                decode(make(), [data[:at], bytes([data[at] ^ 0x5A]), data[at + 1 :]])
            except HTTPInputError:
                pass

    @pytest.mark.parametrize("limit", [0, -1])
    def test_limit_has_to_be_positive(self, make, encode, limit):
        with pytest.raises(ValueError, match="max_length"):
            make().decompress(encode(b"x"), limit)

    def test_bomb_is_taken_in_portions(self, make, encode):
        decoder = make()
        data = encode(bytes(50_000_000))
        tracemalloc.start()
        try:
            out = decoder.decompress(data, 1000)
            assert decoder.pending
            for _ in range(1000):
                assert len(out) <= 1000
                assert out == bytes(len(out))
                out = decoder.decompress(b"", 1000)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000 + 2 * len(data)
        finally:
            tracemalloc.stop()

    def test_data_while_something_is_pending(self, make, encode):
        data = encode(PLAIN)
        decoder = make()
        taken = [decoder.decompress(data[at : at + 100], 50) for at in range(0, len(data), 100)]
        while decoder.pending:
            taken.append(decoder.decompress(b"", 50))
        decoder.finish()
        assert b"".join(taken) == PLAIN

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
        found = {outcome(pieces), outcome(single(bytes(data)))}
        if make is ZstdDecoder and flip is not None:
            # The library compares the announced length with none at all only in one piece.
            found -= {None, b""} if expected in (None, b"") else set()
        assert found <= {expected}
        if flip is None:
            assert expected == plain


@pytest.mark.parametrize("kind", [GzipDecoder, BrotliDecoder, ZstdDecoder])
def test_large_input_in_small_portions_is_linear(kind, monkeypatch):
    """Each window is given to the library a few times at most, however large the input."""
    plain = random.Random(2).randbytes(1_000_000)
    encoders: dict[Any, Any] = {
        GzipDecoder: gzip.compress,
        BrotliDecoder: brotli.compress,
        ZstdDecoder: zstd.compress,
    }
    data = encoders[kind](plain)
    given = 0

    portion = kind._portion

    def counting(self, window, room):
        nonlocal given
        given += len(window)
        return portion(self, window, room)

    monkeypatch.setattr(kind, "_portion", counting)
    assert decode(kind(), [data], 16384) == plain
    assert given <= 4 * len(data)


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


class TestBrotli:
    def test_largest_window(self):
        plain = random.Random(3).randbytes(1_000_000)
        data = brotli.compress(plain + bytes(16_000_000) + plain, lgwin=24, quality=1)
        assert decode(BrotliDecoder(), [data]) == plain + bytes(16_000_000) + plain


def skippable(content: bytes, number: int = 0) -> bytes:
    return bytes([0x50 + number]) + b"\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


def frame_with_window(log: int) -> bytes:
    encoder = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
    return encoder.compress(b"hello") + encoder.flush()


class TestZstd:
    def test_frames_of_every_kind(self):
        data = (
            skippable(b"", 15)
            + zstd.compress(PLAIN)
            + skippable(b"notes" * 1000)
            + zstd.compress(b"")
            + zstd.compress(b"xyz")
            + skippable(b"x")
        )
        for pieces in ([data], single(data)):
            assert decode(ZstdDecoder(), pieces) == PLAIN + b"xyz"

    def test_nothing_but_a_skippable_frame(self):
        assert decode(ZstdDecoder(), [skippable(b"abc")]) == b""

    def test_many_empty_frames_take_many_calls(self):
        decoder = ZstdDecoder()
        calls = 1
        assert decoder.decompress(skippable(b"") * 2000, 1000) == b""
        while decoder.pending:
            assert decoder.decompress(b"", 1000) == b""
            calls += 1
        decoder.finish()
        assert calls > 20

    def test_truncated_later_frame(self):
        for frame in (zstd.compress(b"x"), skippable(b"abc")):
            for cut in range(1, len(frame)):
                with pytest.raises(HTTPInputError, match="middle"):
                    decode(ZstdDecoder(), [zstd.compress(b"x") + frame[:cut]])

    def test_window(self):
        assert decode(ZstdDecoder(), [frame_with_window(23)]) == b"hello"
        with pytest.raises(HTTPInputError, match=r"invalid zstd data: .*memory"):
            decode(ZstdDecoder(), [frame_with_window(24)])

    def test_wrong_checksum(self):
        encoder = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
        data = bytearray(encoder.compress(b"hello") + encoder.flush())
        assert decode(ZstdDecoder(), [bytes(data)]) == b"hello"
        data[-1] ^= 1
        with pytest.raises(HTTPInputError, match="invalid zstd data"):
            decode(ZstdDecoder(), [bytes(data)])


class TestStack:
    def test_the_last_one_is_undone_first(self):
        data = gzip.compress(brotli.compress(b"hello"))
        decoder = made("BR ,, identity,\tx-gzip")
        assert isinstance(decoder, StackedDecoder)
        assert decode(decoder, [data]) == b"hello"

    def test_bomb_inside_a_bomb(self):
        """What lies between takes no more room than the input."""
        data = gzip.compress(gzip.compress(bytes(200_000_000), 9), 9)
        decoder = made("gzip, gzip")
        tracemalloc.start()
        try:
            out = decoder.decompress(data, 65536)
            for _ in range(100):
                assert decoder.pending
                assert len(out) <= 65536
                out = decoder.decompress(b"", 65536)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()

    def test_work_without_output_is_divided(self):
        """A gigabyte of members that are all empty fits into a kilobyte of zstd."""
        data = zstd.compress(gzip.compress(b"") * 100_000)
        decoder = made("gzip, zstd")
        assert decoder.decompress(data, 1000) == b""
        calls = 1
        while decoder.pending:
            assert decoder.decompress(b"", 1000) == b""
            calls += 1
        decoder.finish()
        assert calls > 100

    def test_inner_truncation(self):
        with pytest.raises(HTTPInputError, match="gzip data ends in the middle"):
            decode(made("gzip, zstd"), [zstd.compress(gzip.compress(b"x")[:-1])])

    def test_limit(self):
        assert decode(made(", ".join(["gzip"] * 5)), []) == b""
        with pytest.raises(HTTPInputError, match="encoded 6 times, more than 5"):
            decoder_for(", ".join(["gzip"] * 6))


def test_decoder_for():
    assert isinstance(decoder_for("gzip"), GzipDecoder)
    assert isinstance(decoder_for(" X-GZIP\t"), GzipDecoder)
    assert isinstance(decoder_for("Deflate"), DeflateDecoder)
    assert isinstance(decoder_for("br"), BrotliDecoder)
    assert isinstance(decoder_for("zstd"), ZstdDecoder)
    for coding in ("", "identity", "identity, identity", "compress", "gzip, compress", "brr"):
        assert decoder_for(coding) is None
    assert supported_codings() == ("gzip", "deflate", "br", "zstd")


@pytest.mark.parametrize("coding", ["br", "zstd"])
def test_coding_whose_library_is_missing(coding, monkeypatch):
    left = {name: make for name, make in compression._DECODERS.items() if name != coding}
    monkeypatch.setattr(compression, "_DECODERS", left)
    for value in (coding, f"gzip, {coding}"):
        with pytest.raises(HTTPInputError, match=rf"{coding}.*pip install 'coro-loop\[compression"):
            decoder_for(value)


def test_libraries_that_are_missing_or_too_old():
    program = (
        "import sys, types\n"
        "sys.modules['brotli'] = types.SimpleNamespace(Decompressor=object)\n"
        "sys.modules['backports.zstd'] = sys.modules['compression.zstd'] = None\n"
        "from coro.http import compression, outgoing\n"
        "print(outgoing._ACCEPT_ENCODING, compression.brotli, compression.zstd)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == "gzip, deflate None None\n"
