"""Pollers (one suite for all of them), the waker, and what else the operating system gives."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coro.net import (
    ERROR,
    READ,
    WRITE,
    EpollPoller,
    Network,
    Poller,
    SelectorPoller,
    Waker,
    bind_sockets,
    bind_unix_socket,
    listening_socket,
    set_nodelay,
    socket_error,
)
from tests.support.virtual import POLLERS

Pair = tuple[socket.socket, socket.socket]

# Only a broken test waits so long.
PATIENCE = 20.0


@pytest.fixture(params=list(POLLERS))
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    poller = POLLERS[request.param]()
    yield poller
    poller.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    yield here, there
    here.close()
    there.close()


class TestPollers:
    def test_readable(self, poller: Poller, pair: Pair) -> None:
        here, there = pair
        poller.register(here.fileno(), READ)
        assert poller.poll(0) == []
        there.send(b"x")
        assert poller.poll(PATIENCE) == [(here.fileno(), READ)]
        # Level-triggered: as long as there is something to read.
        assert poller.poll(0) == [(here.fileno(), READ)]
        here.recv(1)
        assert poller.poll(0) == []

    def test_writable(self, poller: Poller, pair: Pair) -> None:
        here, _ = pair
        poller.register(here.fileno(), WRITE)
        assert poller.poll(PATIENCE) == [(here.fileno(), WRITE)]

    def test_no_events_but_those_asked_for(self, poller: Poller, pair: Pair) -> None:
        here, there = pair
        there.send(b"x")
        poller.register(here.fileno(), WRITE)
        assert poller.poll(PATIENCE) == [(here.fileno(), WRITE)]
        poller.modify(here.fileno(), READ)
        assert poller.poll(PATIENCE) == [(here.fileno(), READ)]
        poller.modify(here.fileno(), READ | WRITE)
        assert poller.poll(PATIENCE) == [(here.fileno(), READ | WRITE)]

    def test_an_empty_mask_tells_no_data(self, poller: Poller, pair: Pair) -> None:
        here, there = pair
        there.send(b"x")
        poller.register(here.fileno(), 0)
        assert poller.poll(0) == []
        poller.modify(here.fileno(), READ)
        assert poller.poll(PATIENCE) == [(here.fileno(), READ)]
        poller.modify(here.fileno(), 0)
        assert poller.poll(0) == []
        with pytest.raises(OSError, match=r"exists|already"):
            poller.register(here.fileno(), READ)
        poller.unregister(here.fileno())
        with pytest.raises((OSError, KeyError)):
            poller.modify(here.fileno(), READ)

    def test_the_end_of_the_other_side(self, poller: Poller, pair: Pair) -> None:
        here, there = pair
        poller.register(here.fileno(), READ)
        there.close()
        ((fd, events),) = poller.poll(PATIENCE)
        assert fd == here.fileno()
        assert events & READ

    def test_an_error_shows_whatever_was_asked_for(self, poller: Poller) -> None:
        reader, writer = os.pipe()
        poller.register(writer, WRITE)
        while poller.poll(0):
            os.write(writer, b"x" * 4096)
        os.close(reader)
        ((fd, events),) = poller.poll(PATIENCE)
        assert fd == writer
        assert events & (WRITE | ERROR)
        poller.unregister(writer)
        os.close(writer)

    def test_twice_is_refused(self, poller: Poller, pair: Pair) -> None:
        here, _ = pair
        poller.register(here.fileno(), READ)
        with pytest.raises(OSError, match=r"exists|already"):
            poller.register(here.fileno(), WRITE)

    def test_unknown_descriptors(self, poller: Poller, pair: Pair) -> None:
        here, _ = pair
        for act in (
            lambda: poller.unregister(here.fileno()),
            lambda: poller.modify(here.fileno(), READ),
        ):
            with pytest.raises((OSError, KeyError)):
                act()

    def test_unregistered_is_silent_and_may_come_back(self, poller: Poller, pair: Pair) -> None:
        here, there = pair
        there.send(b"x")
        poller.register(here.fileno(), READ)
        poller.unregister(here.fileno())
        assert poller.poll(0) == []
        poller.register(here.fileno(), READ)
        assert poller.poll(PATIENCE) == [(here.fileno(), READ)]

    def test_many_at_once(self, poller: Poller) -> None:
        pairs = [socket.socketpair() for _ in range(50)]
        for here, there in pairs:
            poller.register(here.fileno(), READ)
            there.send(b"x")
        events = dict(poller.poll(PATIENCE))
        assert events == {here.fileno(): READ for here, _ in pairs}
        for here, there in pairs:
            poller.unregister(here.fileno())
            here.close()
            there.close()

    def test_a_negative_timeout_does_not_wait_for_ever(self) -> None:
        # epoll's own reading of -1 is "for ever"; the loop never passes a negative one.
        poller = SelectorPoller()
        assert poller.poll(-1) == []
        poller.close()

    def test_default_selector(self, pair: Pair) -> None:
        poller = SelectorPoller()
        assert isinstance(poller._selector, selectors.DefaultSelector)
        poller.close()


class TestWaker:
    @pytest.fixture
    def waker(self) -> Iterator[Waker]:
        waker = Waker()
        yield waker
        waker.close()

    def test_makes_a_poll_return(self, poller: Poller, waker: Waker) -> None:
        poller.register(waker.fileno(), READ)
        assert poller.poll(0) == []
        waker.wake()
        assert poller.poll(PATIENCE) == [(waker.fileno(), READ)]
        waker.drain()
        assert poller.poll(0) == []

    def test_from_another_thread(self, poller: Poller, waker: Waker) -> None:
        poller.register(waker.fileno(), READ)
        thread = threading.Thread(target=waker.wake)
        thread.start()
        assert poller.poll(PATIENCE) == [(waker.fileno(), READ)]
        thread.join()

    def test_a_full_pipe_wakes_as_well(self, poller: Poller, waker: Waker) -> None:
        poller.register(waker.fileno(), READ)
        filled = 0
        with pytest.raises(BlockingIOError):
            while True:
                filled += os.write(waker.write_fileno(), b"x" * 1024)
        assert filled > 4096
        waker.wake()
        assert poller.poll(PATIENCE) == [(waker.fileno(), READ)]
        waker.drain()
        assert poller.poll(0) == []
        waker.wake()
        assert poller.poll(PATIENCE) == [(waker.fileno(), READ)]

    @pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 8192])
    def test_drain_takes_all(self, poller: Poller, waker: Waker, length: int) -> None:
        poller.register(waker.fileno(), READ)
        os.write(waker.write_fileno(), b"x" * length)
        waker.drain()
        assert poller.poll(0) == []

    def test_a_closed_one_wakes_nobody(self) -> None:
        waker = Waker()
        waker.close()
        waker.wake()
        assert waker.fileno() == -1

    def test_takes_the_bytes_of_signals(self, waker: Waker) -> None:
        previous = signal.set_wakeup_fd(waker.write_fileno())
        assert signal.set_wakeup_fd(previous) == waker.write_fileno()


class TestNetwork:
    def test_poller_is_epoll_where_there_is_epoll(self, monkeypatch: pytest.MonkeyPatch) -> None:
        poller = Network().poller()
        assert isinstance(poller, EpollPoller)
        poller.close()
        monkeypatch.delattr("select.epoll")
        fallback = Network().poller()
        assert isinstance(fallback, SelectorPoller)
        fallback.close()

    def test_sockets_do_not_block(self) -> None:
        with Network().socket(socket.AF_INET) as sock:
            assert sock.getblocking() is False
            assert sock.type == socket.SOCK_STREAM
        with Network().socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            assert sock.getblocking() is False
            assert sock.type == socket.SOCK_DGRAM

    def test_close_fd(self) -> None:
        reader, writer = os.pipe()
        Network().close_fd(writer)
        assert os.read(reader, 1) == b""
        os.close(reader)

    def test_numeric_addresses(self) -> None:
        look = Network().getaddrinfo
        assert look("127.0.0.1", 80, socket.AF_UNSPEC, numeric=True) == [
            (socket.AF_INET, ("127.0.0.1", 80))
        ]
        ((family, address),) = look("::1", 80, socket.AF_UNSPEC, numeric=True)
        assert (family, address[:2]) == (socket.AF_INET6, ("::1", 80))

    def test_numeric_takes_no_name(self) -> None:
        with pytest.raises(socket.gaierror):
            Network().getaddrinfo("localhost", 80, socket.AF_UNSPEC, numeric=True)

    def test_the_family_is_kept_to(self) -> None:
        with pytest.raises(socket.gaierror):
            Network().getaddrinfo("::1", 80, socket.AF_INET, numeric=True)

    def test_names_are_looked_up_and_each_address_given_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []
        one = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))
        two = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 80, 0, 0))

        def answer(*args: Any) -> list[Any]:
            asked.append(args)
            return [two, one, two, one]

        monkeypatch.setattr(socket, "getaddrinfo", answer)
        assert Network().getaddrinfo("host.example", 80, socket.AF_UNSPEC, numeric=False) == [
            (socket.AF_INET6, ("2001:db8::1", 80, 0, 0)),
            (socket.AF_INET, ("192.0.2.1", 80)),
        ]
        assert asked[0][:2] == ("host.example", 80)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Every socket that is made from now on."""
    made: list[socket.socket] = []

    class Recording(socket.socket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(socket, "socket", Recording)
    return made


class TestBindSockets:
    def test_each_address_listens_on_the_same_free_port_without_blocking(self) -> None:
        sockets = bind_sockets(0)
        try:
            assert {sock.family for sock in sockets} == {socket.AF_INET, socket.AF_INET6}
            assert len({sock.getsockname()[1] for sock in sockets}) == 1
            for sock in sockets:
                assert sock.getblocking() is False
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
                host = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
                with socket.create_connection((host, sock.getsockname()[1])):
                    sock.accept()[0].close()
        finally:
            for sock in sockets:
                sock.close()

    def test_a_port_that_is_taken_for_the_second_address_is_not_chosen(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (taken,) = bind_sockets(0, "127.0.0.1")
        port = taken.getsockname()[1]
        real = socket.socket.bind
        # What the kernel finds free for the first address, the first time.
        chosen = iter([port])

        def bind(sock: socket.socket, address: Any) -> None:
            if address[1] == 0:
                address = (address[0], next(chosen, 0), *address[2:])
            real(sock, address)

        monkeypatch.setattr(socket.socket, "bind", bind)
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
        with taken:
            sockets = bind_sockets(0, "host.example")
        ports = {sock.getsockname()[1] for sock in sockets}
        for sock in sockets:
            sock.close()
        assert len(sockets) == 2
        assert len(ports) == 1
        assert ports != {port}

    def test_a_machine_without_ipv6_has_to_do_with_ipv4(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
        (sock,) = bind_sockets(0, "host.example")
        sock.close()
        assert sock.family == socket.AF_INET
        del found[1]
        with pytest.raises(OSError, match=r"cannot listen on \[2001:db8::1\]:0: ") as caught:
            bind_sockets(0, "host.example")
        assert caught.value.errno == errno.EADDRNOTAVAIL

    def test_an_address_that_is_in_use_is_named_and_nothing_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (taken,) = bind_sockets(0, "127.0.0.1")
        port = taken.getsockname()[1]
        made = recorded(monkeypatch)
        with taken, pytest.raises(OSError, match=f"cannot listen on .*:{port}: Address") as caught:
            bind_sockets(port)
        assert caught.value.errno == errno.EADDRINUSE
        assert made
        assert {sock.fileno() for sock in made} == {-1}

    def test_family_and_backlog(self) -> None:
        (sock,) = bind_sockets(0, family=socket.AF_INET, backlog=None)
        with sock:
            assert sock.family == socket.AF_INET
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0

    def test_reuse_port(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (one,) = bind_sockets(0, "127.0.0.1", reuse_port=True)
        with one:
            (other,) = bind_sockets(one.getsockname()[1], "127.0.0.1", reuse_port=True)
            other.close()
        monkeypatch.delattr(socket, "SO_REUSEPORT")
        with pytest.raises(ValueError, match="SO_REUSEPORT"):
            bind_sockets(0, "127.0.0.1", reuse_port=True)


class TestBindUnixSocket:
    def test_it_listens_with_its_mode_and_takes_its_file_along(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        sock = bind_unix_socket(path, mode=0o620)
        assert sock.getblocking() is False
        assert stat.S_IMODE(path.stat().st_mode) == 0o620
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            sock.accept()[0].close()
        sock.close()
        assert not path.exists()
        sock.close()

    def test_a_stale_file_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
            dead.listen()
        assert path.is_socket()
        with bind_unix_socket(str(path)), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        assert not path.exists()

    @pytest.mark.parametrize("full", [False, True])
    def test_a_live_one_is_left_alone(self, tmp_path: Path, full: bool) -> None:
        path = tmp_path / "socket"
        with bind_unix_socket(path, backlog=0), socket.socket(socket.AF_UNIX) as filler:
            if full:
                filler.connect(str(path))
            with pytest.raises(OSError, match="somebody listens there") as caught:
                bind_unix_socket(path)
            assert caught.value.errno == errno.EADDRINUSE
            assert path.is_socket()

    def test_a_socket_of_another_type_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            datagrams.bind(str(path))
            with pytest.raises(OSError, match="somebody listens there"):
                bind_unix_socket(path)
        assert path.is_socket()

    @pytest.mark.parametrize("kind", ["file", "directory", "link"])
    def test_anything_else_is_left_alone(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "thing"
        if kind == "file":
            path.write_text("precious")
        elif kind == "directory":
            path.mkdir()
        else:
            path.symlink_to(tmp_path / "nowhere")
        with pytest.raises(FileExistsError, match="not a socket"):
            bind_unix_socket(path)
        assert os.path.lexists(path)

    def test_the_file_of_a_successor_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with bind_unix_socket(path):
            path.unlink()
            successor = bind_unix_socket(path)
        assert path.is_socket()
        successor.close()

    def test_failures_leave_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match=r"cannot listen on .*/nowhere/socket: No such file"):
            bind_unix_socket(tmp_path / "nowhere" / "socket")
        with pytest.raises(OSError, match=r"cannot listen on .*path too long"):
            bind_unix_socket(tmp_path / ("x" * 200))

    @pytest.mark.parametrize("as_bytes", [False, True])
    def test_abstract_names(self, as_bytes: bool) -> None:
        name: Any = f"\0coro-test-{os.getpid()}"
        name = name.encode() if as_bytes else name
        with bind_unix_socket(name), socket.socket(socket.AF_UNIX) as client:
            client.connect(name)
            with pytest.raises(OSError, match=r"cannot listen on @coro-test-.* in use"):
                bind_unix_socket(name)


def test_nodelay_is_for_tcp_and_others_are_left_alone(pair: Pair) -> None:
    set_nodelay(pair[0], True)
    with socket.socket(socket.AF_INET) as sock:
        for value in (True, False):
            set_nodelay(sock, value)
            assert bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is value


def test_socket_error_tells_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = unused.getsockname()
    with Network().socket(socket.AF_INET) as sock:
        assert socket_error(sock) == 0
        with pytest.raises(BlockingIOError):
            sock.connect(address)
        poller = EpollPoller()
        poller.register(sock.fileno(), WRITE)
        ((_, events),) = poller.poll(PATIENCE)
        poller.close()
        assert events & ERROR
        assert os.strerror(socket_error(sock)) == "Connection refused"
        assert socket_error(sock) == 0


class TestListeningSocket:
    def test_it_is_the_one_that_was_handed_over(self) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            listening_socket(os.dup(listener.fileno())) as sock,
        ):
            assert sock.getsockname() == listener.getsockname()
            assert not sock.getblocking()

    def test_others_are_refused_and_left_alone(self, tmp_path: Path) -> None:
        with socket.socket() as deaf, (tmp_path / "file").open("w") as file:
            with pytest.raises(OSError, match="does not listen"):
                listening_socket(deaf.fileno())
            with pytest.raises(OSError):
                listening_socket(file.fileno())
            os.fstat(deaf.fileno())
            os.fstat(file.fileno())
