"""Pollers (one suite for all of them), the waker, and what else the operating system gives."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import threading
from collections.abc import Iterator
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
    listening_sockets,
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


class TestListening:
    def test_each_address_listens_without_blocking(self) -> None:
        v4, v6 = listening_sockets(
            [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0))]
        )
        with v4, v6:
            for sock in (v4, v6):
                assert sock.getblocking() is False
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
            assert v6.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
            with socket.create_connection(v4.getsockname()):
                v4.accept()[0].close()

    def test_one_that_fails_closes_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[socket.socket] = []
        real = socket.socket

        def recording(*args: Any) -> socket.socket:
            made.append(real(*args))
            return made[-1]

        (taken,) = listening_sockets([(socket.AF_INET, ("127.0.0.1", 0))])
        with taken:
            monkeypatch.setattr(socket, "socket", recording)
            with pytest.raises(OSError, match="in use"):
                listening_sockets(
                    [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET, taken.getsockname())]
                )
        assert len(made) == 2
        assert [sock.fileno() for sock in made] == [-1, -1]


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
