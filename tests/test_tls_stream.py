"""Streams over TLS: an ``ssl.SSLSocket`` and the pump through one suite, and peers that misbehave.

The peer is one of coro's streams where it behaves. Where it is to cut, to stay silent or to lie, it
is a ``Peer``: the ssl module's TLS on memory, with the ciphertext in the test's hands.
"""

from __future__ import annotations

import functools
import gc
import io
import itertools
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro.errors import CancelledError, StreamClosedError, TimeoutError
from coro.gen import coroutine, timeout
from coro.loop import IOLoop
from coro.stream import IOStream, SSLIOStream
from coro.tls import TLSPump
from tests.support.authority import Authority
from tests.support.leaks import count_fds
from tests.support.virtual import closing_loop, turns

NAME = "localhost"

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=list(VERSIONS))
sides = pytest.mark.parametrize("server_side", [False, True], ids=["client", "server"])


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


@pytest.fixture(params=[False, True], ids=["socket", "pump"])
def half_close(request: Any) -> bool:
    """Which of the two makes TLS: the socket, or the pump, without which is no half-close."""
    return bool(request.param)


@pytest.fixture
def plain(loop: IOLoop) -> Iterator[Callable[..., tuple[IOStream, IOStream]]]:
    """``plain(**limits)``: two connected streams; the limits are the first one's."""
    made: list[Any] = []

    def make(**limits: Any) -> tuple[IOStream, IOStream]:
        ours, theirs = socket.socketpair()
        pair = IOStream(ours, **limits), IOStream(theirs)
        made.extend(pair)
        return pair

    yield make
    for stream in made:
        if stream.socket is not None:
            stream.close()


@pytest.fixture
def opened() -> Iterator[list[IOStream]]:
    """Streams to close when the test is over."""
    streams: list[IOStream] = []
    yield streams
    for stream in streams:
        stream.close()


@pytest.fixture
def tls(loop: IOLoop, plain: Any, ca: Authority, half_close: bool, opened: Any) -> Any:
    """``client, server = yield from tls()``: two streams after the handshake; the first varies."""

    def make(
        client: ssl.SSLContext | None = None,
        server: ssl.SSLContext | None = None,
        name: str = NAME,
        below: Any = None,
        **limits: Any,
    ) -> Any:
        one, other = below or plain(**limits)
        pair = yield [
            one.start_tls(False, client or ca.client_context(), name, half_close=half_close),
            other.start_tls(True, server or ca.server_context()),
        ]
        opened.extend(pair)
        kind = TLSPump if half_close or isinstance(one, SSLIOStream) else ssl.SSLSocket
        assert isinstance(pair[0].socket, kind)
        return pair

    return make


def run(loop: IOLoop, body: Callable[[], Any]) -> Any:
    return loop.run_sync(coroutine(body))


def contexts(ca: Authority, version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return contexts for both sides that speak one version of TLS only."""
    pair = ca.client_context(), ca.server_context()
    for context in pair:
        context.minimum_version = context.maximum_version = version
    return pair


class Peer:
    """TLS on memory over a plain stream, whose ciphertext the test may cut, keep or spoil.

    Arguments:
        wire: a plain stream that the ciphertext goes by.
        context: the rules.
        server_side: which side of the handshake to take.
        cut: end the connection once so many bytes of ciphertext were sent.
    """

    def __init__(
        self, wire: IOStream, context: ssl.SSLContext, server_side: bool, cut: int | None = None
    ) -> None:
        self.wire = wire
        self.left = cut
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server_side else NAME
        self.tls = context.wrap_bio(self._in, self._out, server_side, name)

    def flush(self) -> Any:
        """Send what there is; return whether the peer may go on."""
        data = self._out.read()
        if self.left is not None and len(data) >= self.left:
            yield self.wire.write(data[: self.left])
            self.left = 0
            self.wire.socket.shutdown(socket.SHUT_WR)
            return False
        if self.left is not None:
            self.left -= len(data)
        if data:
            yield self.wire.write(data)
        return True

    def receive(self) -> Any:
        """Take in what comes next; return whether anything does."""
        try:
            data = yield self.wire.read_bytes(65536, partial=True)
        except StreamClosedError:
            return False
        self._in.write(data)
        return True

    def _until(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                result = call()
            except ssl.SSLWantReadError:
                if not (yield from self.flush()) or not (yield from self.receive()):
                    return None
            else:
                yield from self.flush()
                return result

    def shake(self) -> Any:
        """Shake hands, as far as that goes."""
        yield from self._until(self.tls.do_handshake)

    def read(self) -> Any:
        """Return the next plaintext; None where the wire ends."""
        return (yield from self._until(lambda: self.tls.read(65536)))

    def encrypt(self, data: bytes) -> bytes:
        """Return the ciphertext of some bytes, which must go out next."""
        self.tls.write(data)
        return self._out.read()

    def goodbye(self) -> bytes:
        """Return the ciphertext of close_notify."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        return self._out.read()


@pytest.fixture
def against(loop: IOLoop, plain: Any, ca: Authority, half_close: bool, opened: Any) -> Any:
    """``stream, peer = yield from against()``: a stream, and a ``Peer``, after the handshake."""

    def make(
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, server_side: bool = False, **limits: Any
    ) -> Any:
        client, server = contexts(ca, version)
        one, other = plain(**limits)
        peer = Peer(other, client if server_side else server, not server_side)
        context = server if server_side else client
        name = None if server_side else NAME
        shaking = one.start_tls(server_side, context, name, half_close=half_close)
        yield from peer.shake()
        stream = yield shaking
        opened.append(stream)
        return stream, peer

    return make


def warnings_of(caplog: Any) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


# --- who the peer is ---------------------------------------------------------------------------


@versions
def test_both_say_the_same_of_themselves(
    loop: IOLoop, tls: Any, ca: Authority, version: ssl.TLSVersion
) -> None:
    client_context, server_context = contexts(ca, version)
    client_context.set_alpn_protocols(["h2", "http/1.1"])
    server_context.set_alpn_protocols(["http/1.1"])

    def body() -> Any:
        client, server = yield from tls(client_context, server_context)
        for stream in (client, server):
            assert stream.socket.version() == version.name.replace("_", ".")
            assert stream.socket.selected_alpn_protocol() == "http/1.1"
            assert stream.socket.session_reused is False
        assert client.socket.cipher() == server.socket.cipher()
        assert client.socket.server_hostname == NAME
        names = {value for _, value in client.socket.getpeercert()["subjectAltName"]}
        assert NAME in names
        assert isinstance(client.socket.getpeercert(True), bytes)
        assert server.socket.getpeercert() is None

    run(loop, body)


def test_no_protocol_in_common(loop: IOLoop, tls: Any, ca: Authority) -> None:
    client_context, server_context = ca.client_context(), ca.server_context()
    client_context.set_alpn_protocols(["x"])

    def body() -> Any:
        client, server = yield from tls(client_context, server_context)
        assert client.socket.selected_alpn_protocol() is None
        assert server.socket.selected_alpn_protocol() is None

    run(loop, body)


@pytest.mark.parametrize(
    ("name", "sent"), [(NAME, NAME), ("127.0.0.1", None), ("::1", None)], ids=["name", "v4", "v6"]
)
def test_the_name_that_is_sent(
    loop: IOLoop, tls: Any, ca: Authority, name: str, sent: str | None
) -> None:
    """Names go out as SNI; addresses do not (RFC 6066 section 3), but are checked all the same."""
    context = ca.server_context()
    seen: list[Any] = []
    context.sni_callback = lambda _tls, name, _context: seen.append(name)

    def body() -> Any:
        yield from tls(None, context, name)

    run(loop, body)
    assert seen == [sent]


@pytest.mark.parametrize("name", ["other.test", "127.0.0.2", "::2"])
@versions
def test_another_name_than_the_certificate_s(
    loop: IOLoop,
    plain: Any,
    ca: Authority,
    half_close: bool,
    caplog: Any,
    name: str,
    version: ssl.TLSVersion,
) -> None:
    one, other = plain()
    client_context, server_context = contexts(ca, version)
    peer = Peer(other, server_context, True)
    before = count_fds()

    def body() -> Any:
        shaking = one.start_tls(False, client_context, name, half_close=half_close)
        try:
            yield from peer.shake()
        except ssl.SSLError as error:
            # It is told why.
            assert error.reason is not None
            assert "ALERT" in error.reason
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch") as caught:
            yield shaking
        assert name in str(caught.value)
        assert caught.value.verify_message

    run(loop, body)
    # The peer may have noticed already.
    assert count_fds() < before
    (warning,) = warnings_of(caplog)
    assert warning.startswith("SSL Error")
    assert name in warning


def test_an_authority_that_nobody_trusts(
    loop: IOLoop, plain: Any, ca: Authority, half_close: bool, caplog: Any
) -> None:
    one, other = plain()
    peer = Peer(other, ca.server_context(), True)

    def body() -> Any:
        shaking = one.start_tls(False, None, NAME, half_close=half_close)
        with pytest.raises(ssl.SSLError):
            yield from peer.shake()
        with pytest.raises(
            ssl.SSLCertVerificationError, match="unable to get local issuer"
        ) as caught:
            yield shaking
        assert NAME in str(caught.value)

    run(loop, body)
    assert len(warnings_of(caplog)) == 1


def asks_for_a_certificate(ca: Authority, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = contexts(ca, version)[1]
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(str(ca.pem))
    return context


@versions
def test_a_client_s_certificate(
    loop: IOLoop, tls: Any, ca: Authority, version: ssl.TLSVersion
) -> None:
    client_context, _ = contexts(ca, version)
    client_context.load_cert_chain(str(ca.issue("client.test")))

    def body() -> Any:
        _, server = yield from tls(client_context, asks_for_a_certificate(ca, version))
        assert server.socket.getpeercert()["subjectAltName"] == (("DNS", "client.test"),)

    run(loop, body)


@versions
def test_a_client_without_a_certificate(
    loop: IOLoop, plain: Any, ca: Authority, half_close: bool, version: ssl.TLSVersion, opened: Any
) -> None:
    """With TLS 1.3 the client's handshake is over before it can be refused; a read tells it."""
    one, other = plain()

    def body() -> Any:
        ours = one.start_tls(False, contexts(ca, version)[0], NAME, half_close=half_close)
        theirs = other.start_tls(True, asks_for_a_certificate(ca, version))
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            yield theirs
        if version == ssl.TLSVersion.TLSv1_3:
            stream = yield ours
            opened.append(stream)
            with pytest.raises(StreamClosedError) as caught:
                yield stream.read_bytes(1)
            assert isinstance(caught.value.real_error, ssl.SSLError)
            assert "CERTIFICATE_REQUIRED" in caught.value.real_error.reason
        else:
            with pytest.raises(ssl.SSLError, match="ALERT"):
                yield ours

    run(loop, body)


@pytest.mark.parametrize("whole", [True, False], ids=["first write", "later write"])
def test_a_write_to_a_peer_that_has_refused(
    loop: IOLoop, plain: Any, ca: Authority, half_close: bool, opened: Any, whole: bool
) -> None:
    """It fails for the reason that the peer gave, not because the connection is broken by then."""
    one, other = plain()
    version = ssl.TLSVersion.TLSv1_3

    def body() -> Any:
        ours = one.start_tls(False, contexts(ca, version)[0], NAME, half_close=half_close)
        theirs = other.start_tls(True, asks_for_a_certificate(ca, version))
        with pytest.raises(ssl.SSLError):
            yield theirs
        stream = yield ours
        opened.append(stream)
        if not whole:
            yield
        with pytest.raises(StreamClosedError) as caught:
            yield stream.write(b"hello")
        assert isinstance(caught.value.real_error, ssl.SSLError)
        assert "CERTIFICATE_REQUIRED" in caught.value.real_error.reason

    run(loop, body)


# --- sessions ----------------------------------------------------------------------------------


@pytest.fixture
def reconnect(loop: IOLoop, tls: Any) -> Callable[..., bool]:
    """``reconnect(...)``: connect, exchange a byte, close; return whether a session was reused."""

    def make(client: ssl.SSLContext, server: ssl.SSLContext, name: str = NAME) -> bool:
        def body() -> Any:
            ours, theirs = yield from tls(client, server, name)
            yield theirs.write(b"x")
            assert (yield ours.read_bytes(1)) == b"x"
            reused = ours.socket.session_reused
            assert theirs.socket.session_reused is reused
            ours.close()
            theirs.close()
            return reused

        return bool(run(loop, body))

    return make


@versions
def test_a_session_is_gone_on_with(ca: Authority, reconnect: Any, version: ssl.TLSVersion) -> None:
    client, server = contexts(ca, version)
    assert [reconnect(client, server) for _ in range(4)] == [False, True, True, True]


@versions
def test_a_session_is_for_one_context_and_one_name(
    ca: Authority, reconnect: Any, version: ssl.TLSVersion
) -> None:
    client, server = contexts(ca, version)
    assert not reconnect(client, server)
    assert not reconnect(client, server, "127.0.0.1")
    assert not reconnect(contexts(ca, version)[0], server)
    assert reconnect(client, server)
    assert reconnect(client, server, "127.0.0.1")


@versions
def test_a_session_that_the_server_does_not_know(
    ca: Authority, reconnect: Any, version: ssl.TLSVersion
) -> None:
    client, server = contexts(ca, version)
    assert not reconnect(client, server)
    assert not reconnect(client, contexts(ca, version)[1])
    assert reconnect(client, server) in (False, True)  # which of both servers the session is of


# --- handshakes that fail ----------------------------------------------------------------------


@sides
def test_a_silent_peer(
    loop: IOLoop, plain: Any, ca: Authority, half_close: bool, server_side: bool, caplog: Any
) -> None:
    one, other = plain()
    fds, handlers = count_fds(), loop.statistics()["handlers"]
    context = ca.server_context() if server_side else ca.client_context()
    began = loop.time()

    def body() -> Any:
        with pytest.raises(TimeoutError), timeout(5):
            yield one.start_tls(
                server_side, context, NAME if not server_side else None, half_close=half_close
            )

    run(loop, body)
    assert loop.time() - began == pytest.approx(5)
    assert (count_fds(), loop.statistics()["handlers"]) == (fds - 1, handlers)
    assert warnings_of(caplog) == []

    def see_the_end() -> Any:
        with pytest.raises(StreamClosedError):
            yield other.read_bytes(100_000)

    run(loop, see_the_end)


def test_the_handshake_is_waited_for_once(
    loop: IOLoop, plain: Any, ca: Authority, half_close: bool, opened: Any
) -> None:
    one, other = plain()

    def body() -> Any:
        ours = one.start_tls(False, ca.client_context(), NAME, half_close=half_close)
        theirs = other.start_tls(True, ca.server_context(), half_close=half_close)
        for future in (ours, theirs):
            with pytest.raises(RuntimeError, match="waited for already"):
                future.stream.wait_for_handshake()
        for stream in (yield [ours, theirs]):
            opened.append(stream)
            assert (yield stream.wait_for_handshake()) is stream
            assert (yield stream.wait_for_handshake()) is stream

    run(loop, body)


def test_a_cancelled_wait_closes_the_socket(
    loop: IOLoop, plain: Any, ca: Authority, half_close: bool
) -> None:
    one, _ = plain()
    before = count_fds()

    def body() -> Any:
        shaking = one.start_tls(False, ca.client_context(), NAME, half_close=half_close)
        yield
        stream = shaking.stream
        assert shaking.cancel()
        assert stream.closed()
        with pytest.raises(CancelledError):
            yield shaking
        with pytest.raises(StreamClosedError):
            yield stream.wait_for_handshake()

    run(loop, body)
    assert count_fds() == before - 1


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(100),
    "ones": b"\xff" * 100,
    "alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "data": b"\x17\x03\x03\x00\x10" + bytes(16),
    "too long": b"\x16\x03\x01\xff\xff" + bytes(100),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
@sides
def test_garbage_instead_of_a_handshake(
    loop: IOLoop,
    plain: Any,
    ca: Authority,
    half_close: bool,
    server_side: bool,
    garbage: bytes,
    caplog: Any,
) -> None:
    one, other = plain()
    before = count_fds()
    context = ca.server_context() if server_side else ca.client_context()

    def body() -> Any:
        name = None if server_side else NAME
        shaking = one.start_tls(server_side, context, name, half_close=half_close)
        yield other.write(garbage)
        with pytest.raises(ssl.SSLError):
            yield shaking

    run(loop, body)
    assert count_fds() == before - 1
    (warning,) = warnings_of(caplog)
    assert warning.startswith("SSL Error")


@versions
@sides
def test_a_handshake_cut_short(
    loop: IOLoop,
    plain: Any,
    ca: Authority,
    half_close: bool,
    version: ssl.TLSVersion,
    server_side: bool,
    caplog: Any,
) -> None:
    """It fails, or if only tickets are missing the first read does; nothing is left of either."""
    fds = count_fds()
    failed: list[int] = []
    secured: list[int] = []

    def body(cut: int) -> Any:
        client, server = contexts(ca, version)
        ours, theirs = (server, client) if server_side else (client, server)
        one, other = plain()
        peer = Peer(other, theirs, not server_side, cut)
        name = None if server_side else NAME
        shaking = one.start_tls(server_side, ours, name, half_close=half_close)
        yield from peer.shake()
        if peer.left:
            stream = yield shaking
            stream.close()
            other.close()
            return False
        try:
            stream = yield shaking
        except StreamClosedError as error:
            assert isinstance(error.real_error, ssl.SSLEOFError)
            failed.append(cut)
        else:
            reading = stream.read_until_close()
            with pytest.raises(StreamClosedError) as caught:
                yield reading
            assert isinstance(caught.value.real_error, ssl.SSLEOFError)
            stream.close()
            secured.append(cut)
        other.close()
        return True

    step = 7
    for cut in itertools.count(0, step):
        if not run(loop, functools.partial(body, cut)):
            break
        assert count_fds() == fds
    assert len(failed) * step > 200
    # A signature has some bytes more or less each time.
    assert not secured or failed[-1] < secured[0] + 10
    assert warnings_of(caplog) == []


@versions
def test_a_client_that_has_left_when_its_handshake_is_done(
    loop: IOLoop,
    plain: Any,
    ca: Authority,
    half_close: bool,
    opened: Any,
    version: ssl.TLSVersion,
) -> None:
    """What it said is there to be read, though the server's last words go nowhere."""
    one, other = plain()
    client, server = contexts(ca, version)

    def body() -> Any:
        peer = Peer(other, client, False)
        shaking = one.start_tls(True, server, half_close=half_close)
        if version == ssl.TLSVersion.TLSv1_3:
            # Its own last flight and all the rest leave in one piece.
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            yield from peer.flush()
            yield from peer.receive()
            peer.tls.do_handshake()
        else:
            yield from peer.shake()
        other.socket.send(peer.encrypt(b"short visit") + peer.goodbye())
        other.close()
        stream = yield shaking
        opened.append(stream)
        assert (yield stream.read_until_close()) == b"short visit"

    run(loop, body)


# --- what start_tls refuses --------------------------------------------------------------------


def test_plaintext_from_before_the_upgrade(
    loop: IOLoop, plain: Any, ca: Authority, half_close: bool
) -> None:
    """What an attacker has put behind the answer to STARTTLS is not the secured peer's."""
    one, other = plain()

    def body() -> Any:
        yield other.write(b"220 go ahead\r\n250 injected\r\n")
        assert (yield one.read_until(b"\r\n")) == b"220 go ahead\r\n"
        with pytest.raises(ValueError, match="not idle"):
            one.start_tls(False, ca.client_context(), NAME, half_close=half_close)
        assert (yield one.read_until(b"\r\n")) == b"250 injected\r\n"

    run(loop, body)


@pytest.mark.parametrize("what", ["read", "write", "soon", "closed"])
def test_what_is_under_way_at_the_upgrade(
    loop: IOLoop, plain: Any, ca: Authority, half_close: bool, what: str
) -> None:
    one, other = plain()

    def body() -> Any:
        pending = None
        if what == "read":
            pending = one.read_bytes(1)
        elif what == "write":
            pending = one.write(b"x" * 4_000_000)
        elif what == "soon":
            one.write_soon(b"x")
        else:
            one.close()
        with pytest.raises(ValueError, match="not idle"):
            one.start_tls(False, ca.client_context(), NAME, half_close=half_close)
        if what == "read":
            yield other.write(b"x")
            assert (yield pending) == b"x"
        elif what == "write":
            yield [pending, other.read_bytes(4_000_000)]
        elif what == "soon":
            assert (yield other.read_bytes(1)) == b"x"

    run(loop, body)


@pytest.mark.parametrize(
    ("server_side", "options", "name"),
    [(True, None, None), (False, None, None), (False, {"no_such": 1}, NAME)],
    ids=["no certificate", "no name", "no such option"],
)
def test_options_that_do_not_suffice(
    loop: IOLoop, plain: Any, half_close: bool, server_side: bool, options: Any, name: str | None
) -> None:
    """The stream is as it was."""
    one, other = plain()

    def body() -> Any:
        with pytest.raises((ValueError, TypeError)):
            one.start_tls(server_side, options, name, half_close=half_close)
        yield [one.write(b"a"), other.write(b"b")]
        assert (yield [one.read_bytes(1), other.read_bytes(1)]) == [b"b", b"a"]

    run(loop, body)


def test_the_old_stream_is_of_no_use(loop: IOLoop, plain: Any, tls: Any) -> None:
    def body() -> Any:
        one, other = plain()
        called: list[str] = []
        one.set_close_callback(lambda: called.append("closed"))
        client, server = yield from tls(below=(one, other))
        for use in (lambda: one.read_bytes(1), one.read_until_close, lambda: one.write(b"x")):
            with pytest.raises(StreamClosedError, match="gone over to TLS"):
                yield use()
        one.watch()
        with pytest.raises(ValueError, match="not idle"):
            one.start_tls(False)
        one.close()
        yield client.write(b"x")
        assert (yield server.read_bytes(1)) == b"x"
        assert called == []
        client.close()
        yield
        yield
        assert called == ["closed"]

    run(loop, body)


# --- traffic -----------------------------------------------------------------------------------


def pattern(size: int) -> bytes:
    """Bytes whose order shows."""
    return b"".join(b"%07d " % number for number in range(size // 8))


@versions
def test_both_ways_at_once(loop: IOLoop, tls: Any, ca: Authority, version: ssl.TLSVersion) -> None:
    """Far more than the buffers between them hold, in pieces of many sizes."""
    data = pattern(3_000_000)

    def body() -> Any:
        pair = yield from tls(*contexts(ca, version))
        for stream in pair:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)

        @coroutine
        def send(stream: IOStream) -> Any:
            at = 0
            for size in itertools.cycle((1, 16384, 16385, 100, 300_000, 65536)):
                if at >= len(data):
                    break
                writing = stream.write(data[at : at + size])
                at += size
                if size == 100:
                    yield writing
            yield writing

        got = yield [
            send(pair[0]),
            send(pair[1]),
            pair[0].read_bytes(len(data)),
            pair[1].read_bytes(len(data)),
        ]
        assert got[2] == got[3] == data

    run(loop, body)


def test_a_writer_waits_for_its_reader(loop: IOLoop, tls: Any) -> None:
    """What a writer may have under way is bounded, whichever TLS it is."""
    size = 8_000_000

    def body() -> Any:
        client, server = yield from tls()
        writing = client.write(bytes(size))
        for _ in range(20):
            yield
        assert not writing.done()
        taken = size - client.unsent()
        assert taken < 2_000_000
        for _ in range(20):
            yield
        assert size - client.unsent() == taken
        assert (yield server.read_bytes(size)) == bytes(size)
        yield writing

    run(loop, body)


def test_a_reader_who_does_not_read(loop: IOLoop, tls: Any) -> None:
    """One chunk at most is taken for a read that nobody asked for."""

    def body() -> Any:
        client, server = yield from tls(read_chunk_size=4096)
        client.set_close_callback(lambda: None)
        writing = server.write(bytes(4_000_000))
        for _ in range(20):
            yield
        assert not writing.done()
        assert len(client._received) <= 2 * 16384
        assert len((yield client.read_bytes(4_000_000))) == 4_000_000
        yield writing

    run(loop, body)


@pytest.mark.parametrize("chunk", [1, 100, 16384, None])
def test_bytes_that_the_descriptor_does_not_show(loop: IOLoop, against: Any, chunk: Any) -> None:
    """Many records in one piece, and the whole of it inside of TLS after the first read."""
    messages = [b"%03d\n" % number for number in range(100)] + [b"x" * 20_000 + b"\n"]

    def body() -> Any:
        stream, peer = yield from against(read_chunk_size=chunk)
        yield peer.wire.write(b"".join(map(peer.encrypt, messages)))
        for message in messages:
            assert (yield stream.read_until(b"\n")) == message

    run(loop, body)


def test_hidden_bytes_for_a_read_that_begins_later(loop: IOLoop, against: Any) -> None:
    def body() -> Any:
        stream, peer = yield from against(read_chunk_size=10)
        yield peer.wire.write(peer.encrypt(b"0123456789abcdef"))
        assert (yield stream.read_bytes(4)) == b"0123"
        for _ in range(3):
            yield
        assert (yield stream.read_bytes(12)) == b"456789abcdef"

    run(loop, body)


def test_others_have_their_turn(loop: IOLoop, against: Any) -> None:
    """However much is there, one wake-up takes a bounded part of it."""

    def body() -> Any:
        stream, peer = yield from against()
        ticks = []

        def tick() -> None:
            ticks.append(len(stream._received))
            if stream.reading():
                loop.add_callback(tick)

        data = b"".join(peer.encrypt(bytes(16384)) for _ in range(100))
        writing = peer.wire.write(data)
        loop.add_callback(tick)
        yield [stream.read_bytes(100 * 16384), writing]
        steps = [after - before for before, after in itertools.pairwise(ticks)]
        assert max(steps) <= 256 * 1024
        assert len(ticks) > 6

    run(loop, body)


def test_records_byte_by_byte(loop: IOLoop, against: Any) -> None:
    def body() -> Any:
        stream, peer = yield from against()
        reading = stream.read_bytes(6)
        for byte in peer.encrypt(b"abc") + peer.encrypt(b"def"):
            assert not reading.done()
            yield peer.wire.write(bytes([byte]))
            yield
        assert (yield reading) == b"abcdef"
        yield stream.write(b"answer")
        assert (yield from peer.read()) == b"answer"

    run(loop, body)


def test_an_empty_record_is_no_end(loop: IOLoop, against: Any) -> None:
    """Some peers send one now and then, against attacks on old ciphers."""

    def body() -> Any:
        stream, peer = yield from against(ssl.TLSVersion.TLSv1_2)
        reading = stream.read_bytes(1)
        yield peer.wire.write(peer.encrypt(b""))
        for _ in range(3):
            yield
        assert not reading.done()
        yield peer.wire.write(peer.encrypt(b"x"))
        assert (yield reading) == b"x"

    run(loop, body)


class Crosswise(TLSPump):
    """A pump that demands for each read a write first, and for each write a read, when told to."""

    read_wants = 0  # how often yet
    write_wants = False

    def recv(self, size: int) -> bytes:
        if self.read_wants:
            self.read_wants -= 1
            raise ssl.SSLWantWriteError
        return super().recv(size)

    def send(self, data: Any) -> int:
        if self.write_wants:
            self.write_wants = False
            raise ssl.SSLWantReadError
        return super().send(data)


@pytest.fixture
def crosswise(loop: IOLoop, plain: Any, ca: Authority, opened: Any) -> Any:
    def make() -> Any:
        one, other = plain()
        pump = Crosswise(one.socket, ca.client_context(), server_hostname=NAME)
        stream = SSLIOStream(pump)
        opened.append(stream)
        one._forget_events()
        one.socket = None
        one._end()
        pair = yield [
            stream.wait_for_handshake(),
            other.start_tls(True, ca.server_context()),
        ]
        opened.extend(pair)
        return pair

    return make


def test_a_read_that_has_to_write(loop: IOLoop, crosswise: Any) -> None:
    def body() -> Any:
        stream, other = yield from crosswise()
        for word in (b"one", b"two"):
            reading = stream.read_bytes(3)
            stream.socket.read_wants = 1
            yield other.write(word)
            assert (yield reading) == word
        assert not stream.socket.read_wants
        yield
        # Nobody has anything to write: that event would come in each turn.
        assert not stream._registration.events & 0x004

    run(loop, body)


def test_a_read_that_has_to_write_waits_for_that(loop: IOLoop, crosswise: Any) -> None:
    """As long as nothing can be written, the bytes that are there to be read wake nobody."""

    def body() -> Any:
        stream, other = yield from crosswise()
        writing = stream.write(bytes(8_000_000))
        reading = stream.read_bytes(1)
        for _ in range(3):
            yield
        stream.socket.read_wants = 100
        yield other.write(b"x")
        for _ in range(20):
            yield
        assert stream.socket.read_wants == 99
        stream.socket.read_wants = 0
        yield [writing, other.read_bytes(8_000_000)]
        assert (yield reading) == b"x"

    run(loop, body)


def test_a_write_that_has_to_read(loop: IOLoop, crosswise: Any) -> None:
    def body() -> Any:
        stream, other = yield from crosswise()
        stream.socket.write_wants = True
        writing = stream.write(b"word")
        for _ in range(3):
            yield
        assert not stream.socket.write_wants
        yield other.write(b"!")
        yield writing
        assert (yield other.read_bytes(4)) == b"word"
        assert (yield stream.read_bytes(1)) == b"!"

    run(loop, body)


# --- the end -----------------------------------------------------------------------------------


@versions
@sides
@pytest.mark.parametrize("polite", [True, False])
def test_an_end_with_and_without_goodbye(
    loop: IOLoop, against: Any, version: ssl.TLSVersion, server_side: bool, polite: bool
) -> None:
    def read_all(kind: str) -> Any:
        def body() -> Any:
            stream, peer = yield from against(version, server_side)
            ends = peer.encrypt(b"all of it") + (peer.goodbye() if polite else b"")
            if kind == "until_close":
                reading = stream.read_until_close()
            else:
                reading = stream.read_bytes(100)
            yield peer.wire.write(ends)
            peer.wire.socket.shutdown(socket.SHUT_WR)
            if polite and kind == "until_close":
                assert (yield reading) == b"all of it"
                assert stream.error is None
            else:
                with pytest.raises(StreamClosedError) as caught:
                    yield reading
                if polite:
                    assert caught.value.real_error is None
                else:
                    assert isinstance(caught.value.real_error, ssl.SSLEOFError)
                assert (yield stream.read_bytes(9)) == b"all of it"
            assert stream.closed()

        return body

    for kind in ("until_close", "bytes"):
        run(loop, read_all(kind))


@pytest.mark.parametrize("polite", [True, False])
def test_an_end_that_came_before_the_read(loop: IOLoop, against: Any, polite: bool) -> None:
    """A stream that noticed it while nobody read tells every read of it, as often as asked."""

    def body() -> Any:
        stream, peer = yield from against()
        stream.set_close_callback(lambda: None)
        yield peer.wire.write(peer.encrypt(b"part") + (peer.goodbye() if polite else b""))
        peer.wire.socket.shutdown(socket.SHUT_WR)
        for _ in range(5):
            yield
        if polite:
            assert (yield stream.read_until_close()) == b"part"
            assert (yield stream.read_until_close()) == b""
        else:
            for _ in range(2):
                with pytest.raises(StreamClosedError) as caught:
                    yield stream.read_until_close()
                assert isinstance(caught.value.real_error, ssl.SSLEOFError)
            assert (yield stream.read_bytes(4)) == b"part"

    run(loop, body)


def test_a_record_cut_at_each_byte(loop: IOLoop, against: Any) -> None:
    def body(cut: int) -> Any:
        stream, peer = yield from against()
        yield peer.wire.write(peer.encrypt(b"whole"))
        ends = peer.encrypt(b"cut short") + peer.goodbye()
        reading = stream.read_until_close()
        yield peer.wire.write(ends[:cut])
        peer.wire.socket.shutdown(socket.SHUT_WR)
        if cut == len(ends):
            assert (yield reading) == b"wholecut short"
            stream.close()
            peer.wire.close()
            return False
        with pytest.raises(StreamClosedError) as caught:
            yield reading
        assert isinstance(caught.value.real_error, ssl.SSLEOFError)
        record = len(ends) - 24  # close_notify of TLS 1.3: 5 + 2 + 1 + 16
        expected = b"whole" if cut < record else b"wholecut short"
        assert (yield stream.read_bytes(100, partial=True)) == expected
        peer.wire.close()
        return True

    before = count_fds()
    for cut in itertools.count():
        if not run(loop, functools.partial(body, cut)):
            break
        assert count_fds() == before
    assert cut > 24


@pytest.mark.parametrize("at", [0, 3, 5, 12, -1], ids=["type", "length", "first", "body", "tag"])
def test_a_record_that_was_tampered_with(loop: IOLoop, against: Any, at: int, caplog: Any) -> None:
    def body() -> Any:
        stream, peer = yield from against()
        record = bytearray(peer.encrypt(b"something"))
        record[at] ^= 0x40
        reading = stream.read_bytes(9)
        yield peer.wire.write(bytes(record) + bytes(20_000))
        with pytest.raises(StreamClosedError) as caught:
            yield reading
        assert isinstance(caught.value.real_error, ssl.SSLError)
        assert stream.closed()
        with pytest.raises(ssl.SSLError, match="ALERT"):
            yield from peer.read()

    run(loop, body)
    assert len(warnings_of(caplog)) == 1


@versions
def test_close_says_goodbye_and_does_not_wait(
    loop: IOLoop, against: Any, version: ssl.TLSVersion
) -> None:
    """The peer, of whom no word comes, reads all of it and a clean end."""

    def body() -> Any:
        stream, peer = yield from against(version)
        yield stream.write(b"last words")
        before = count_fds()
        stream.close()
        assert count_fds() == before - 1
        assert (yield from peer.read()) == b"last words"
        assert (yield from peer.read()) == b""

    run(loop, body)


def test_close_with_bytes_unsent_is_no_clean_end(loop: IOLoop, against: Any) -> None:
    """The peer can tell that something is missing; and a close that cannot send does not wait."""

    def body() -> Any:
        stream, peer = yield from against()
        writing = stream.write(bytes(4_000_000))
        stream.close()
        with pytest.raises(StreamClosedError):
            yield writing
        assert stream.unsent()
        got = 0
        while data := (yield from peer.read()):
            got += len(data)
        assert data is None
        assert got < 4_000_000

    run(loop, body)


def test_both_close_at_once(loop: IOLoop, tls: Any, caplog: Any) -> None:
    def body() -> Any:
        client, server = yield from tls()
        client.close()
        server.close()
        for stream in (client, server):
            with pytest.raises(StreamClosedError):
                yield stream.read_bytes(1)
            with pytest.raises(StreamClosedError):
                yield stream.write(b"x")

    run(loop, body)
    assert warnings_of(caplog) == []


def test_the_peer_s_close_is_noticed_by_an_idle_stream(loop: IOLoop, tls: Any) -> None:
    def body() -> Any:
        client, server = yield from tls()
        closed: list[bool] = []
        client.set_close_callback(lambda: closed.append(True))
        yield
        server.close()
        for _ in range(4):
            yield
        assert closed == [True]
        assert client.error is None

    run(loop, body)


# --- one direction, and none -------------------------------------------------------------------


def test_half_a_close_needs_the_pump(loop: IOLoop, plain: Any, ca: Authority, opened: Any) -> None:
    """The error says how to ask for it; nothing else has happened."""

    def body() -> Any:
        one, other = plain()
        pair = yield [
            one.start_tls(False, ca.client_context(), NAME),
            other.start_tls(True, ca.server_context()),
        ]
        opened.extend(pair)
        with pytest.raises(io.UnsupportedOperation, match="tls_half_close=True"):
            pair[0].send_eof()
        yield pair[0].write(b"x")
        assert (yield pair[1].read_bytes(1)) == b"x"

    run(loop, body)


# A socket's own TLS has no half-close.
with_pump = pytest.mark.parametrize("half_close", [True], ids=["pump"])


@versions
@sides
@pytest.mark.parametrize("size", [0, 10, 3_000_000])
@with_pump
def test_half_a_close(
    loop: IOLoop, against: Any, version: ssl.TLSVersion, server_side: bool, size: int
) -> None:
    """It comes behind all that was written; what the peer goes on to say is read."""

    def body() -> Any:
        stream, peer = yield from against(version, server_side)
        yield peer.wire.write(peer.encrypt(b"early "))  # unread when the goodbye goes out
        writing = stream.write(bytes(size))
        ending = stream.send_eof()
        assert stream.send_eof() is ending
        with pytest.raises(StreamClosedError):
            yield stream.write(b"more")
        got = 0
        while data := (yield from peer.read()):
            got += len(data)
        assert data == b""
        assert got == size
        yield [writing, ending]
        yield peer.wire.write(peer.encrypt(b"late"))
        assert (yield stream.read_bytes(10)) == b"early late"
        reading = stream.read_until_close()
        yield peer.wire.write(peer.encrypt(b"last") + peer.goodbye())
        assert (yield reading) == b"last"
        assert stream.error is None

    run(loop, body)


@versions
@with_pump
def test_half_a_close_in_the_middle_of_a_read(
    loop: IOLoop, against: Any, version: ssl.TLSVersion
) -> None:
    """Nothing is lost of a record that was read in part, nor of those behind it."""

    def body() -> Any:
        stream, peer = yield from against(version, read_chunk_size=4)
        yield peer.wire.write(peer.encrypt(b"first record") + peer.encrypt(b", second"))
        assert (yield stream.read_bytes(4)) == b"firs"
        yield stream.send_eof()
        assert (yield stream.read_bytes(16)) == b"t record, second"

    run(loop, body)


@with_pump
def test_the_answer_to_half_a_close_may_be_cut(loop: IOLoop, against: Any) -> None:
    def body() -> Any:
        stream, peer = yield from against()
        yield stream.send_eof()
        yield peer.wire.write(peer.encrypt(b"some of it"))
        reading = stream.read_until_close()
        peer.wire.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(StreamClosedError) as caught:
            yield reading
        assert isinstance(caught.value.real_error, ssl.SSLEOFError)

    run(loop, body)


def tcp_streams() -> tuple[IOStream, IOStream]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return IOStream(ours), IOStream(theirs)


@pytest.fixture
def over_tcp(loop: IOLoop, tls: Any) -> Any:
    """``client, server = yield from over_tcp()``: where a connection can be reset."""

    return lambda: tls(below=tcp_streams())


@pytest.mark.parametrize("kind", ["bytes", "until_close"])
def test_abort(loop: IOLoop, over_tcp: Any, kind: str, caplog: Any) -> None:
    """No goodbye is said, and the peer does not take what it got for all there was."""

    def body() -> Any:
        client, server = yield from over_tcp()
        yield client.write(b"some of it")
        yield server.read_bytes(4)
        reading = server.read_bytes(100) if kind == "bytes" else server.read_until_close()
        own = client.read_until_close()
        client.abort()
        with pytest.raises(StreamClosedError) as caught:
            yield own
        assert isinstance(caught.value.real_error, ConnectionAbortedError)
        with pytest.raises(StreamClosedError) as caught:
            yield reading
        # Before 3.11.9, Python's ssl module takes a reset for a mere end.
        assert isinstance(caught.value.real_error, ConnectionResetError | ssl.SSLEOFError)

    before = count_fds()
    run(loop, body)
    assert count_fds() == before
    assert warnings_of(caplog) == []


def test_what_an_abort_sends(loop: IOLoop, ca: Authority, half_close: bool) -> None:
    """Nothing but a reset, whatever waits to be sent."""

    def body() -> Any:
        one, other = tcp_streams()
        # TLS 1.3 would leave tickets unread, and the system resets such a connection by itself.
        client, server = contexts(ca, ssl.TLSVersion.TLSv1_2)
        peer = Peer(other, server, True)
        shaking = one.start_tls(False, client, NAME, half_close=half_close)
        yield from peer.shake()
        stream = yield shaking
        writing = stream.write(bytes(8_000_000))
        stream.abort()
        with pytest.raises(StreamClosedError):
            yield writing
        with pytest.raises(StreamClosedError) as caught:
            yield other.read_bytes(8_000_000)
        assert isinstance(caught.value.real_error, ConnectionResetError)

    run(loop, body)


def test_an_abort_in_the_handshake(
    loop: IOLoop, plain: Any, ca: Authority, half_close: bool, caplog: Any
) -> None:
    one, _ = plain()
    before = count_fds()

    def body() -> Any:
        shaking = one.start_tls(False, ca.client_context(), NAME, half_close=half_close)
        yield
        shaking.stream.abort()
        with pytest.raises(StreamClosedError):
            yield shaking

    run(loop, body)
    assert count_fds() == before - 1
    assert warnings_of(caplog) == []


# --- connecting --------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def connecting(loop: IOLoop, ca: Authority, half_close: bool, opened: Any) -> Any:
    """``connecting()``: a stream that has TLS as soon as it is connected."""

    def make() -> SSLIOStream:
        sock = loop.network.socket(socket.AF_INET)
        stream = SSLIOStream(sock, ssl_options=ca.client_context(), half_close=half_close)
        opened.append(stream)
        return stream

    return make


def test_connect_and_write_at_once(
    loop: IOLoop,
    connecting: Any,
    listener: socket.socket,
    ca: Authority,
    half_close: bool,
    opened: Any,
) -> None:
    """What is written before the handshake waits for it."""

    def body() -> Any:
        stream = connecting()
        opening = stream.connect(listener.getsockname(), NAME)
        writing = stream.write(b"hello")
        other = yield IOStream(listener.accept()[0]).start_tls(True, ca.server_context())
        opened.append(other)
        assert (yield opening) is stream
        assert isinstance(stream.socket, TLSPump if half_close else ssl.SSLSocket)
        yield writing
        assert (yield other.read_bytes(5)) == b"hello"

    run(loop, body)


def test_a_connect_without_a_name_to_check(
    loop: IOLoop, connecting: Any, listener: socket.socket
) -> None:
    before = count_fds()

    def body() -> Any:
        with pytest.raises(StreamClosedError) as caught:
            yield connecting().connect(listener.getsockname())
        assert isinstance(caught.value.real_error, ValueError)

    run(loop, body)
    assert count_fds() == before


@pytest.mark.parametrize("count", range(4))
def test_a_connect_that_is_cancelled_at_any_turn(
    loop: IOLoop, connecting: Any, listener: socket.socket, count: int
) -> None:
    before = count_fds()

    def body() -> Any:
        stream = connecting()
        opening = stream.connect(listener.getsockname(), NAME)
        for _ in range(count):
            yield
        assert opening.cancel()
        assert stream.closed()

    run(loop, body)
    assert count_fds() == before


# --- TLS in TLS --------------------------------------------------------------------------------


def test_tls_in_tls(loop: IOLoop, tls: Any) -> None:
    data = pattern(400_000)

    def body() -> Any:
        outer = yield from tls()
        inner = yield from tls(below=outer)
        assert outer[0].closed()
        for one, other in (inner, inner[::-1]):
            got = yield [one.write(data), other.read_bytes(len(data))]
            assert got[1] == data
        ends = inner[1].read_until_close()
        yield inner[0].write(b"last")
        inner[0].close()
        assert (yield ends) == b"last"

    before = count_fds()
    run(loop, body)
    assert count_fds() == before


def test_tls_in_tls_in_tls_in_small_pieces(loop: IOLoop, tls: Any, plain: Any) -> None:
    def body() -> Any:
        pair = plain(read_chunk_size=100)
        for stream in pair:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
        for _ in range(3):
            pair = yield from tls(below=pair)
        data = pattern(200_000)
        for one, other in (pair, pair[::-1]):
            got = yield [one.write(data), other.read_bytes(len(data))]
            assert got[1] == data

    run(loop, body)


def test_the_outer_tls_ends_without_goodbye(loop: IOLoop, against: Any, ca: Authority) -> None:
    """An end of the inner TLS that only the outer one has said is none."""

    def body() -> Any:
        stream, peer = yield from against()
        shaking = stream.start_tls(False, ca.client_context(), NAME)
        yield peer.wire.write(peer.goodbye())
        peer.wire.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(StreamClosedError) as caught:
            yield shaking
        assert isinstance(caught.value.real_error, ssl.SSLEOFError)

    run(loop, body)


@with_pump
def test_half_a_close_inside_of_tls(loop: IOLoop, tls: Any) -> None:
    """The inner TLS alone ends; the outer one goes on to carry the other direction."""

    def body() -> Any:
        outer = yield from tls()
        one, other = yield from tls(below=outer)
        writing = other.write(bytes(1_000_000))
        yield one.send_eof()
        assert len((yield one.read_bytes(1_000_000))) == 1_000_000
        yield writing
        assert (yield other.read_until_close()) == b""
        assert other.error is None

    run(loop, body)


def test_a_silent_peer_inside_of_tls(loop: IOLoop, tls: Any, ca: Authority) -> None:
    def body() -> Any:
        outer, _ = yield from tls()
        before = count_fds()
        with pytest.raises(TimeoutError), timeout(5):
            yield outer.start_tls(False, ca.client_context(), NAME)
        assert count_fds() == before - 1

    run(loop, body)


# --- lifetimes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["own", "peer", "truncated", "error", "handshake", "cancel"])
def test_no_circles(loop: IOLoop, plain: Any, ca: Authority, half_close: bool, ending: str) -> None:
    client, server = ca.client_context(), ca.server_context()

    def body() -> Any:
        ours, theirs = socket.socketpair()
        one, other = IOStream(ours), IOStream(theirs)
        shaking = one.start_tls(False, client, NAME, half_close=half_close)
        try:
            if ending == "handshake":
                yield other.write(b"garbage")
                yield shaking
            elif ending == "cancel":
                yield
                shaking.cancel()
                yield shaking
            one, other = yield [shaking, other.start_tls(True, server, half_close=half_close)]
            reading = one.read_bytes(5)
            if ending == "peer":
                other.close()
            elif ending == "truncated":
                other.socket.setblocking(True)
                IOStream._close_socket(other)
                other.socket = ours
            else:
                one.close(ValueError("x") if ending == "error" else False)
            yield reading
        except (StreamClosedError, ssl.SSLError, CancelledError):
            pass
        finally:
            one.close()
            other.close()
            ours = theirs = one = other = shaking = reading = None  # type: ignore[assignment]

    run(loop, body)  # what is made once only is made
    gc.collect()
    gc.disable()
    try:
        run(loop, body)
        turns(loop, 3)
        assert gc.collect() == 0
    finally:
        gc.enable()
