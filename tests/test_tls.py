"""TLS contexts, safe unless asked otherwise; the pump, on lines in memory; sessions."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from coro import tls
from coro.tls import (
    TLSPump,
    client_context,
    context_for,
    explain,
    keep_session,
    name_peer,
    wrap,
)
from tests.support.authority import Authority


def test_defaults_check_certificate_and_name() -> None:
    context = client_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_equal_requirements_share_a_context(ca: Authority) -> None:
    assert client_context() is client_context()
    assert context_for(None, server_side=False) is client_context()
    assert client_context(ca_certs=str(ca.pem)) is client_context(ca_certs=str(ca.pem))
    assert client_context(ca_certs=str(ca.pem)) is not client_context()
    assert client_context(validate=False) is not client_context()


def test_without_validation_nothing_is_checked() -> None:
    context = client_context(validate=False)
    assert context.verify_mode == ssl.CERT_NONE
    assert not context.check_hostname


def test_a_context_is_taken_as_it_is() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert context_for(context, server_side=False) is context


def test_a_dict_of_options(ca: Authority) -> None:
    own = str(ca.issue("localhost"))
    context = context_for({"certfile": own}, server_side=True)
    assert context.verify_mode == ssl.CERT_NONE
    context = context_for({"cert_reqs": ssl.CERT_NONE}, server_side=False)
    assert context.verify_mode == ssl.CERT_NONE
    context = context_for(
        {"ca_certs": str(ca.pem), "ciphers": "ECDHE+AESGCM", "alpn_protocols": ["x"]},
        server_side=False,
    )
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="'cert_file'"):
        context_for({"cert_file": "x"}, server_side=False)


@pytest.mark.parametrize("options", [None, {}, {"ca_certs": "x"}])
def test_a_server_needs_a_certificate(options: dict[str, str] | None) -> None:
    with pytest.raises(ValueError, match="certfile"):
        context_for(options, server_side=True)


def test_a_name_to_check_is_needed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match="server_hostname"):
        wrap(ours, client_context(), server_side=False)


def test_explanations() -> None:
    untrusted = ssl.SSLCertVerificationError(1, "certificate verify failed")
    untrusted.verify_message = "self-signed certificate"
    assert explain(untrusted, "host.test:443") == (
        "the certificate of host.test:443 is not trusted: self-signed certificate"
    )
    wrong = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    wrong.reason = "WRONG_VERSION_NUMBER"
    assert explain(wrong, "h:1") == (
        "TLS with h:1 failed: wrong version number; what answers there does not speak TLS, it seems"
    )
    other = ssl.SSLError(1, "[SSL: NO_PROTOCOLS_AVAILABLE] no protocols available")
    other.reason = "NO_PROTOCOLS_AVAILABLE"
    assert explain(other, "h:1") == "TLS with h:1 failed: no protocols available"
    assert explain(ConnectionResetError("reset"), "h:1") == "TLS with h:1 failed: reset"


def test_which_file_it_is(ca: Authority, tmp_path: Path) -> None:
    there, missing, wrong = str(ca.pem), str(tmp_path / "missing"), tmp_path / "wrong"
    wrong.write_text("nothing of this")
    cases: list[tuple[Any, type[Exception], Any]] = [
        ({"ca_certs": missing}, FileNotFoundError, missing),
        ({"client_cert": missing}, FileNotFoundError, missing),
        ({"ca_certs": str(wrong)}, ssl.SSLError, wrong),
        ({"client_cert": there, "client_key": missing}, FileNotFoundError, missing),
        ({"client_cert": str(wrong)}, ssl.SSLError, wrong),
    ]
    for options, error, told in cases:
        with pytest.raises(error, match=re.escape(str(told))):
            client_context(**options)
    for options, error, told in (
        ({"ca_certs": missing}, FileNotFoundError, missing),
        ({"certfile": str(wrong)}, ssl.SSLError, wrong),
    ):
        with pytest.raises(error, match=re.escape(str(told))):
            context_for(options, server_side=False)


# --- the pump ----------------------------------------------------------------------------------


class Wire:
    """One end of a line in memory, with a socket's methods.

    Arguments:
        room: how many bytes may be under way from here.
        step: how many bytes one ``send`` takes and one ``recv`` gives, at most.
    """

    def __init__(self, room: int = 10_000_000, step: int = 10_000_000) -> None:
        self.room = room
        self.step = step
        self.arrived = bytearray()
        self.sent = 0
        self.ended = False
        self.peer: Wire

    def send(self, data: bytes) -> int:
        count = min(len(data), self.step, self.room - len(self.peer.arrived))
        if count <= 0:
            raise BlockingIOError
        self.peer.arrived += data[:count]
        self.sent += count
        return count

    def recv(self, size: int) -> bytes:
        count = min(size, self.step)
        chunk = bytes(self.arrived[:count])
        del self.arrived[:count]
        if not chunk and not self.ended:
            raise BlockingIOError
        return chunk

    def getpeername(self) -> str:
        return "wire"


def wires(**limits: int) -> tuple[Wire, Wire]:
    one, other = Wire(**limits), Wire(**limits)
    one.peer, other.peer = other, one
    return one, other


Pumps = tuple[TLSPump, TLSPump]


def pumps(ca: Authority, below: Any = None, *, version: Any = None, session: Any = None) -> Pumps:
    """A client and a server on a line, the handshake still to be done."""
    below = wires() if below is None else below
    contexts = ca.client_context(), ca.server_context()
    if version is not None:
        for context in contexts:
            context.maximum_version = version
    client = TLSPump(below[0], contexts[0], server_hostname="localhost", session=session)
    return client, TLSPump(below[1], contexts[1], server_side=True)


def shake(*ends: TLSPump) -> None:
    waiting = list(ends)
    for _ in range(10_000):
        for end in waiting[:]:
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                end.do_handshake()
                waiting.remove(end)
        if not waiting:
            return
    raise AssertionError("the handshake comes to no end")


def transfer(sender: TLSPump, data: bytes, receiver: TLSPump, size: int = 65536) -> bytes:
    """Send ``data`` as a stream does, and receive whatever comes."""
    got = bytearray()
    at = 0
    while len(got) < len(data):
        if at < len(data):
            with contextlib.suppress(ssl.SSLWantWriteError):
                at += sender.send(data[at:])
        with contextlib.suppress(ssl.SSLWantReadError):
            got += receiver.recv(size)
    assert at == len(data)
    return bytes(got)


VERSIONS = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"]
)
DATA = bytes(range(256)) * 1024


@VERSIONS
@pytest.mark.parametrize("step", [1, 7, 10_000_000])
def test_a_line_that_takes_little_at_once(ca: Authority, version: Any, step: int) -> None:
    client, server = pumps(ca, wires(step=step), version=version)
    shake(client, server)
    assert client.version() == server.version() == version.name.replace("_", ".")
    data = DATA[: 500 * step]
    assert transfer(client, data, server) == data
    assert transfer(server, data, client, size=100) == data


def test_pressure_goes_through(ca: Authority) -> None:
    below = wires(room=10_000)
    client, server = pumps(ca, below)
    shake(client, server)
    before = below[0].sent
    for _ in range(5):
        with pytest.raises(ssl.SSLWantWriteError):
            client.send(DATA)
    # The line is full, and what waits in the pump is no more than one piece.
    assert below[0].sent - before <= 20_000
    assert len(client._unsent) + client._outgoing.pending <= 70_000
    assert transfer(client, DATA, server) == DATA


def test_nothing_is_taken_before_the_last_is_used_up(ca: Authority) -> None:
    below = wires()
    client, server = pumps(ca, below)
    shake(client, server)
    for _ in range(8):
        server.send(DATA)
    there = len(below[0].arrived)
    client.recv(1)
    taken = there - len(below[0].arrived)
    assert taken <= 65536
    while client.pending():
        with contextlib.suppress(ssl.SSLWantReadError):
            client.recv(1000)
    assert there - len(below[0].arrived) == taken


def test_what_was_tried_is_tried_again(ca: Authority) -> None:
    """A ``send`` tells how much went only when all of it went."""
    below = wires(room=1000)
    client, server = pumps(ca, below)
    shake(client, server)
    below[0].room = 100
    for _ in range(2):
        with pytest.raises(ssl.SSLWantWriteError):
            client.send(b"x" * 200)
        with pytest.raises(ssl.SSLWantReadError):
            server.recv(1000)
    assert client.send(b"x" * 200) == 200
    assert server.recv(1000) == b"x" * 200


def test_a_received_buffer(ca: Authority) -> None:
    client, server = pumps(ca)
    shake(client, server)
    server.send(b"abcdef")
    target = bytearray(4)
    assert client.recv_into(memoryview(target)) == 4
    assert client.recv_into(memoryview(target)[:2]) == 2
    assert target == b"efcd"
    with pytest.raises(ssl.SSLWantReadError):
        client.recv_into(memoryview(target))


def test_a_reader_may_have_to_send_first(ca: Authority) -> None:
    """What a read made TLS say goes out, also if the line is full at that moment."""
    below = wires()
    client, server = pumps(ca, below)
    shake(client, server)
    client._unsent = b"?"  # as if new keys had been asked for
    below[0].room = 0
    for _ in range(2):  # the first finds tickets, the second nothing
        with pytest.raises(ssl.SSLWantWriteError):
            client.recv(10)
    server.send(b"all the same")
    assert client.recv(100) == b"all the same"
    below[0].room = 100
    with pytest.raises(ssl.SSLWantReadError):
        client.recv(10)
    assert below[1].arrived == b"?"


def test_a_peer_that_takes_no_answers_is_not_listened_to(ca: Authority) -> None:
    below = wires()
    client, server = pumps(ca, below)
    shake(client, server)
    client._unsent = b"?"
    client._outgoing.write(bytes(100_000))
    below[0].room = 0
    server.send(b"more")
    with pytest.raises(ssl.SSLWantWriteError):
        client.recv(10)
    assert below[0].arrived


# --- the end of it -----------------------------------------------------------------------------


def test_an_end_that_was_announced_and_one_that_was_not(ca: Authority) -> None:
    for announced in (True, False):
        below = wires()
        client, server = pumps(ca, below)
        shake(client, server)
        server.send(b"last")
        if announced:
            server.unwrap()
        assert client.recv(0) == b""
        assert client.recv(10) == b"last"
        below[0].ended = not announced
        for _ in range(3):
            if announced:
                assert client.recv(10) == b""
            else:
                with pytest.raises(ssl.SSLEOFError):
                    client.recv(10)


def test_a_goodbye_leaves_no_tickets_unread(ca: Authority) -> None:
    """The system resets a connection that is closed with bytes unread."""
    below = wires()
    client, server = pumps(ca, below)
    shake(client, server)
    client.send(b"last words")
    assert below[0].arrived
    client.unwrap()
    assert not below[0].arrived
    assert server.recv(100) == b"last words"
    assert server.recv(100) == b""


def test_a_goodbye_on_each_floor(ca: Authority) -> None:
    outer = pumps(ca)
    shake(*outer)
    client, server = pumps(ca, outer)
    shake(client, server)
    client.unwrap()
    assert server.recv(10) == b""
    assert outer[1].recv(10) == b""


@VERSIONS
def test_half_a_close_loses_nothing(ca: Authority, version: Any) -> None:
    below = wires()
    client, server = pumps(ca, below, version=version)
    shake(client, server)
    server.send(b"one record ")
    server.send(b"another ")
    got = client.recv(3)  # the rest of one record and all of another have been received
    client.shutdown(socket.SHUT_WR)
    client.shutdown(socket.SHUT_WR)  # as one whose ciphertext had to wait
    assert server.recv(100) == b""
    server.send(b"a third")
    target = bytearray(4)
    got += target[: client.recv_into(memoryview(target))]
    while client.pending():
        got += client.recv(100)
    got += client.recv(100)
    assert got == b"one record another a third"
    server.unwrap()
    for _ in range(2):
        assert client.recv(100) == b""
    with pytest.raises(ssl.SSLError):
        client.send(b"x")


def test_half_a_close_on_a_full_line(ca: Authority) -> None:
    below = wires()
    client, server = pumps(ca, below)
    shake(client, server)
    below[0].room = len(below[1].arrived)
    with pytest.raises(ssl.SSLWantWriteError):
        client.shutdown(socket.SHUT_WR)
    below[0].room = 1000
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""


def test_only_this_direction_can_be_ended(ca: Authority) -> None:
    client, _ = pumps(ca)
    with pytest.raises(ValueError, match="direction"):
        client.shutdown(socket.SHUT_RDWR)


@VERSIONS
def test_a_handshake_cut_at_each_byte(ca: Authority, version: Any) -> None:
    """Whole it succeeds; cut anywhere, both sides have an error, and not one of them waits."""
    contexts = ca.client_context(), ca.server_context()
    for context in contexts:
        context.maximum_version = version
    cut = 0
    whole = False
    while not whole:
        below = wires()
        client = TLSPump(below[0], contexts[0], server_hostname="localhost")
        server = TLSPump(below[1], contexts[1], server_side=True)
        # What goes to the client ends after so many bytes; then the server's side ends too.
        below[1].room = cut
        told: list[BaseException | None] = [None, None]
        for _ in range(4):
            for at, end in enumerate((client, server)):
                try:
                    end.do_handshake()
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass
                except ssl.SSLError as error:
                    told[at] = error
            below[1].room = cut - below[1].sent
        whole = below[1].sent < cut
        below[0].ended = below[1].ended = True
        for end in (client, server):
            with contextlib.suppress(ssl.SSLWantWriteError):
                if whole:
                    end.do_handshake()
                elif end is client and below[1].sent:
                    with pytest.raises(ssl.SSLError):
                        end.do_handshake()
                        end.recv(1)
        cut += 1
    assert cut > 500


GARBAGE = {
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "zeros": bytes(100),
    "a record of 64 KB": b"\x16\x03\x03\xff\xff" + bytes(100),
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "a warning and nothing": b"\x15\x03\x03\x00\x02\x01\x00",
    "an application's data": b"\x17\x03\x03\x00\x04abcd",
    "SSL 2": b"\x80\x2e\x01\x00\x02" + bytes(41),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("server_side", [False, True])
def test_garbage(ca: Authority, garbage: bytes, server_side: bool) -> None:
    below = wires()
    end = pumps(ca, below)[server_side]
    wire = below[server_side]
    with contextlib.suppress(ssl.SSLWantReadError):
        end.do_handshake()
    wire.arrived += garbage
    wire.ended = True
    with pytest.raises(ssl.SSLError) as caught:
        end.do_handshake()
    assert not isinstance(caught.value, ssl.SSLWantReadError | ssl.SSLWantWriteError)


def test_garbage_in_the_middle_is_told_and_answered(ca: Authority) -> None:
    below = wires()
    client, server = pumps(ca, below)
    shake(client, server)
    server.send(b"good")
    below[0].arrived += b"\x17\x03\x03\x00\x20" + bytes(32)
    sent = below[0].sent
    assert client.recv(10) == b"good"
    with pytest.raises(ssl.SSLError, match=r"(?i)bad record mac"):
        client.recv(10)
    assert below[0].sent > sent
    with pytest.raises(ssl.SSLError, match="alert"):
        server.recv(10)


# --- TLS inside TLS ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [100, 10_000_000])
def test_a_pump_on_a_pump(ca: Authority, step: int) -> None:
    outer = pumps(ca, wires(step=step, room=10_000))
    shake(*outer)
    client, server = pumps(ca, outer)
    shake(client, server)
    data = DATA[: 100 * step]
    assert transfer(client, data, server) == data
    assert transfer(server, data, client) == data
    with contextlib.suppress(ssl.SSLWantReadError):
        client.recv(1)
    assert client.pending() == 0


def test_what_hides_below_is_told(ca: Authority) -> None:
    outer = pumps(ca)
    shake(*outer)
    client, server = pumps(ca, outer)
    shake(client, server)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.recv(1)
    server.send(b"a")
    server.send(b"b")
    assert client.recv(1) == b"a"
    assert client.pending() > 0
    assert client.recv(1) == b"b"


# --- what is agreed on -------------------------------------------------------------------------


def test_what_tls_knows(ca: Authority) -> None:
    below = wires()
    contexts = ca.client_context(), ca.server_context()
    for context in contexts:
        context.set_alpn_protocols(["h2", "http/1.1"])
    client = TLSPump(below[0], contexts[0], server_hostname="127.0.0.1")
    server = TLSPump(below[1], contexts[1], server_side=True)
    assert client.version() is None
    assert "no handshake" in repr(client)
    shake(client, server)
    assert client.selected_alpn_protocol() == "h2"
    assert client.version() == "TLSv1.3"
    assert ("IP Address", "127.0.0.1") in client.getpeercert()["subjectAltName"]
    assert isinstance(client.getpeercert(True), bytes)
    cipher = client.cipher()
    assert cipher is not None
    assert cipher[1] == "TLSv1.3"
    assert server.getpeercert() is None
    assert (client.server_side, server.server_side) == (False, True)
    assert client.server_hostname == "127.0.0.1"
    assert client.context is contexts[0]
    assert not client.session_reused


@pytest.mark.parametrize("half_close", [False, True])
def test_what_is_wrapped_in_what(ca: Authority, half_close: bool) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        wrapped = wrap(
            ours,
            ca.client_context(),
            server_side=False,
            server_hostname="localhost",
            half_close=half_close,
        )
        assert isinstance(wrapped, TLSPump if half_close else ssl.SSLSocket)
        inside = wrap(wrapped, ca.client_context(), server_side=False, server_hostname="::1")
        assert isinstance(inside, TLSPump)
        assert inside.fileno() == wrapped.fileno() != -1
        inside.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert inside.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert inside.family == socket.AF_UNIX
        assert inside.getsockname() == ""
        inside.close()
        assert inside.fileno() == -1


@pytest.mark.parametrize("half_close", [False, True])
def test_a_socket_is_as_it_was_if_a_name_is_missing(ca: Authority, half_close: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ValueError, match="server_hostname"):
            wrap(ours, ca.client_context(), server_side=False, half_close=half_close)
        assert ours.fileno() != -1


def test_servers_do_not_renegotiate(ca: Authority) -> None:
    context = context_for({"certfile": str(ca.issue("localhost"))}, server_side=True)
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_the_peer_is_named() -> None:
    error = ssl.SSLError(1, "[SSL] no")
    name_peer(error, "'a.test' at 10.0.0.1:443")
    assert str(error) == "[SSL] no; the peer is 'a.test' at 10.0.0.1:443"


# --- sessions ----------------------------------------------------------------------------------


def connected(context: ssl.SSLContext, serving: ssl.SSLContext, name: str = "localhost") -> TLSPump:
    """A client that has had its first bytes from the server."""
    below = wires()
    client = wrap(below[0], context, server_side=False, server_hostname=name)
    assert isinstance(client, TLSPump)
    server = TLSPump(below[1], serving, server_side=True)
    shake(client, server)
    server.send(b"hello")
    assert client.recv(10) == b"hello"
    return client


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Any:
    kept: OrderedDict[Any, Any] = OrderedDict()
    monkeypatch.setattr(tls, "_sessions", kept)
    return kept


@VERSIONS
def test_a_session_is_gone_on_with_once(ca: Authority, version: Any, sessions: Any) -> None:
    context, serving = ca.client_context(), ca.server_context()
    context.maximum_version = version
    client = connected(context, serving)
    assert not client.session_reused
    keep_session(client)
    assert len(sessions) == 1
    client = connected(context, serving)
    assert client.session_reused
    assert not connected(context, serving).session_reused
    keep_session(client)
    assert connected(context, serving).session_reused


def test_whom_a_session_serves(ca: Authority, sessions: Any) -> None:
    context, serving = ca.client_context(), ca.server_context()
    keep_session(connected(context, serving))
    assert not connected(context, serving, "127.0.0.1").session_reused
    assert not connected(ca.client_context(), serving).session_reused
    context.check_hostname = False
    assert not connected(context, serving).session_reused
    context.check_hostname = True
    assert connected(context, serving).session_reused


def test_sessions_are_bounded(
    ca: Authority, sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_MOST_SESSIONS", 2)
    context, serving = ca.client_context(), ca.server_context()
    for name in ("localhost", "127.0.0.1", "::1"):
        keep_session(connected(context, serving, name))
    assert [key[3] for key in sessions] == ["127.0.0.1", "::1"]


def test_what_is_no_session_to_keep(ca: Authority, sessions: Any) -> None:
    client, server = pumps(ca)
    keep_session(client)  # nothing yet
    shake(client, server)
    keep_session(server)
    keep_session(client)  # its ticket has not been received
    assert not sessions
