"""A server inside a guest: says back what it is sent, on TCP port 9000 and, with its name in front, on UDP port 9001.

Run in the guest's network namespace as `server.py NAME`, with the standard library only.
"""

import socket
import sys
import threading

TCP_PORT, UDP_PORT = 9000, 9001


def _bound(kind: int, port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET6, kind)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::", port))
    return server


def _echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def _serve_tcp(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _main(name: str) -> None:
    streams, datagrams = _bound(socket.SOCK_STREAM, TCP_PORT), _bound(socket.SOCK_DGRAM, UDP_PORT)
    streams.listen(64)
    threading.Thread(target=_serve_tcp, args=(streams,), daemon=True).start()
    print("ready", flush=True)  # noqa: T201  the parent waits for the word
    while True:
        data, peer = datagrams.recvfrom(65536)
        datagrams.sendto(name.encode() + b" " + data, peer)


if __name__ == "__main__":
    _main(sys.argv[1])
