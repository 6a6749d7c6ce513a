"""A server inside a guest: answers `NAME CLIENT-ADDRESS` on one port, over TCP, UDP, SCTP or FTP, on IPv4 and IPv6.

Run as a program in the guest's network namespace, `serve.py NAME PROTOCOL PORT`, with the standard library only, since
the guest's host may be any Debian. It prints `ready` when it listens. Over TCP it then echoes whatever comes, so a test
can see that an established connection still works.
"""

import contextlib
import selectors
import socket
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.lab import sctp

# Python 3.11 has these names on some systems only.
_IPV6_RECVPKTINFO = 49


def _plain(address: str) -> str:
    return address.partition("%")[0].removeprefix("::ffff:")


def _dual_stack(kind: int, port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET6, kind)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::", port))
    return server


def _ready() -> None:
    print("ready", flush=True)  # noqa: T201  the parent waits for the word


def serve_tcp(name: str, port: int) -> None:
    """Greet each connection with a line, then echo."""
    server = _dual_stack(socket.SOCK_STREAM, port)
    server.listen(128)
    _ready()
    while True:
        connection, peer = server.accept()
        threading.Thread(target=_echo, args=(connection, f"{name} {_plain(peer[0])}\n"), daemon=True).start()


def _echo(connection: socket.socket, greeting: str) -> None:
    with connection:
        connection.sendall(greeting.encode())
        while data := connection.recv(4096):
            connection.sendall(data)


def serve_ftp(name: str, port: int) -> None:
    """Greet each control connection, and answer `PASV` with a data connection that greets, then echoes; IPv4 only."""
    server = socket.create_server(("", port))
    _ready()
    while True:
        control, _ = server.accept()
        threading.Thread(target=_control, args=(control, name), daemon=True).start()


def _control(control: socket.socket, name: str) -> None:
    with control, control.makefile("rb") as said:
        control.sendall(f"220 {name}\r\n".encode())
        for _ in said:
            data = socket.create_server((control.getsockname()[0], 0))
            address, port = data.getsockname()
            where = ",".join([*address.split("."), str(port // 256), str(port % 256)])
            control.sendall(f"227 Entering Passive Mode ({where}).\r\n".encode())
            connection, peer = data.accept()
            threading.Thread(target=_echo, args=(connection, f"{name} {peer[0]}\n"), daemon=True).start()


def serve_udp(name: str, port: int) -> None:
    """Answer each datagram from the address it was sent to, which a host with several would not do of itself."""
    server = _dual_stack(socket.SOCK_DGRAM, port)
    server.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    _ready()
    while True:
        _, ancillary, _, peer = server.recvmsg(4096, 1024)
        with contextlib.suppress(OSError):  # a guest may have no way back to the client
            server.sendmsg([f"{name} {_plain(peer[0])}".encode()], _answer_from(ancillary), 0, peer)


def _answer_from(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    # Bytes 16 to 20 are the interface, which routing may choose for the answer.
    return [(level, kind, data[:16] + bytes(4)) for level, kind, data in ancillary]


def serve_sctp(name: str, port: int) -> None:
    """Answer each INIT with an INIT ACK that carries the greeting."""
    selector = selectors.DefaultSelector()
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        raw = socket.socket(family, socket.SOCK_RAW, sctp.PROTOCOL)
        if family == socket.AF_INET6:
            # A router advertisement may have given the guest a second address.
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        selector.register(raw, selectors.EVENT_READ, (raw, version))
    _ready()
    while True:
        for key, _ in selector.select():
            raw, version = key.data
            _answer_init(raw, version, name, port)


def _answer_init(raw: socket.socket, version: int, name: str, port: int) -> None:
    data, ancillary, _, peer = raw.recvmsg(4096, 1024)
    source, destination, chunk, tag, _ = sctp.parse(sctp.without_ip_header(data, version))
    if chunk == sctp.INIT and destination == port:
        greeting = f"{name} {_plain(peer[0])}".encode()
        packet = sctp.packet((port, source), tag, sctp.INIT_ACK, 1, greeting)
        raw.sendmsg([packet], _answer_from(ancillary), 0, (peer[0], 0))


if __name__ == "__main__":
    servers = {"tcp": serve_tcp, "ftp": serve_ftp, "udp": serve_udp, "sctp": serve_sctp}
    servers[sys.argv[2]](sys.argv[1], int(sys.argv[3]))
