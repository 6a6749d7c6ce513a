"""Programs of the host reach guests at the loopback address, by sockets of the keepers."""

import socket
import threading
from contextlib import ExitStack, suppress

import pytest

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.state import Desired
from tests import sentences
from tests.kernel.host_side import MakeHost, apply, without_forwarding
from tests.kernel.links import Links
from tests.lab.place import wait_until
from tests.unit.forwards import forward


@pytest.fixture
def links(links: Links) -> Links:
    return without_forwarding(links)


def answering(at_end: ExitStack, kind: socket.SocketKind, address: str) -> int:
    """Answer what comes to an address with the same in capitals; gives the port."""
    serving = at_end.enter_context(socket.socket(socket.AF_INET, kind))
    serving.bind((address, 0))
    if kind is socket.SOCK_STREAM:
        serving.listen()
    act = _answer_streams if kind is socket.SOCK_STREAM else _answer_datagrams
    threading.Thread(target=act, args=(serving,), daemon=True).start()
    port: int = serving.getsockname()[1]
    return port


def _answer_streams(serving: socket.socket) -> None:
    while True:
        try:
            connection, _ = serving.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            while said := connection.recv(4096):
                connection.sendall(said.upper())


def _answer_datagrams(serving: socket.socket) -> None:
    while True:
        try:
            said, client = serving.recvfrom(4096)
            serving.sendto(said.upper(), client)
        except OSError:
            return


def at_loopback(port: int) -> tuple[str, int]:
    return "127.0.0.1", port


def is_answered(client: str) -> bool:
    """Whether a program that connects from this address is; it ends by a reset or at once otherwise."""
    with socket.socket() as asking:
        asking.settimeout(10)
        asking.bind((client, 0))
        try:
            asking.connect(at_loopback(8000))
            asking.sendall(b"hello")
            return asking.recv(100) == b"HELLO"
        except (ConnectionResetError, BrokenPipeError):
            return False


def local(*exposures: Exposure) -> Desired:
    return Desired(localhost=True).having(exposures)


def test_programs_of_the_host_reach_guests_at_the_loopback_address(
    links: Links, begin: MakeHost, at_end: ExitStack
) -> None:
    del links
    stream, datagram = (answering(at_end, kind, "192.168.123.1") for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
    tcp, udp = forward("tcp *:8000", f"192.168.123.1:{stream}"), forward("udp *:8000", f"192.168.123.1:{datagram}")
    host = begin()
    assert not apply(host, local(tcp, udp)).faults
    with socket.create_connection(at_loopback(8000), timeout=10) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(at_loopback(8000))
        for word in (b"one", b"two"):
            client.send(word)
            assert client.recv(100) == word.upper()
    # Another target for one of them ends its connections, and those of the other go on.
    with socket.create_connection(at_loopback(8000), timeout=10) as client:
        client.sendall(b"on")
        assert client.recv(100) == b"ON"
        assert not apply(host, local(tcp)).faults
        client.sendall(b"and on")
        assert client.recv(100) == b"AND ON"
        assert not apply(host, Desired()).faults
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(at_loopback(8000), timeout=10).close()


def test_a_guest_that_does_not_answer_refuses_its_clients(links: Links, begin: MakeHost) -> None:
    del links
    host = begin()
    apply(host, local(forward("tcp *:8000", "192.168.123.1:9"), forward("udp *:8000", "192.168.123.1:9")))
    assert not is_answered("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(at_loopback(8000))
        client.send(b"hello")
        client.send(b"hello")
    host.close()


def test_a_client_outside_the_sources_is_not_served(links: Links, begin: MakeHost, at_end: ExitStack) -> None:
    del links
    port = answering(at_end, socket.SOCK_STREAM, "192.168.123.1")
    host = begin()
    apply(host, local(forward("tcp *:8000", f"192.168.123.1:{port}", sources=("127.0.0.1/32",))))
    assert is_answered("127.0.0.1")
    assert not is_answered("127.0.0.2")


def test_a_port_that_a_process_has_is_named_and_taken_once_it_is_free(
    links: Links, begin: MakeHost, at_end: ExitStack
) -> None:
    del links
    host, state = begin(), local(forward("tcp *:8000", "192.168.123.1:9"))
    taken = at_end.enter_context(socket.create_server(at_loopback(8000)))
    fault = "tcp port 8000 of 127.0.0.1 does not lead to web1: a process of the host listens there"
    assert sentences.faults(apply(host, state)) == (fault,)
    assert sentences.faults(apply(host, state, full=False)) == (fault,)
    taken.close()
    wait_until(lambda: not apply(host, state).faults, "the port is free")
