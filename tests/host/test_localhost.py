"""`localhost = true`: forwards answer on 127.0.0.1 and ::1 of the host, and what is for the host alone stays so."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.host.conftest import HEAD, Conversation, Scene, each_backend, entry, rules_have_no_part
from tests.host.test_reach import url
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until

pytestmark = each_backend

LOCAL = HEAD + "localhost = true\n"
WEB = entry("web", "8000:80", "192.168.122.10") + entry("web", "8000:80", "2001:db8:122::10")
OWN4, OWN6 = "192.168.122.1", "2001:db8:122::1"


def takes_loopback_addresses(host: Host) -> list[str]:
    """The interfaces on which the kernel would take packets for 127.0.0.0/8."""
    listed = host.run("sysctl", "--all", "--pattern", r"net\.ipv4\.conf\..*\.route_localnet").stdout
    return [line.split(".")[3] for line in listed.splitlines() if line.endswith("= 1")]


@contextmanager
def accepted(host: Host) -> Iterator[Callable[[], bool]]:
    """Whether the host accepted a connection to a loopback address that came from elsewhere.

    The guest could not tell: its own kernel drops what comes from such an address.
    """
    rule = 'oifname != "lo" ip saddr 127.0.0.0/8 tcp flags & (syn | ack) == syn | ack counter'
    chain = f"chain output {{ type filter hook output priority 300; {rule}; }}"
    host.run("nft", "-f", "-", stdin=f"table ip watched {{ {chain}; }}")
    yield lambda: "packets 0 " not in host.run("nft", "list", "table", "ip", "watched").stdout
    host.run("nft", "delete", "table", "ip", "watched")


def ask_for_loopback(guest: LxcGuest, *ports: int) -> None:
    """Have a guest send what is for 127.0.0.1 to the host."""
    for own in ("127.0.0.1", "127.0.0.0/8"):
        guest.run("ip", "route", "del", "local", own, "dev", "lo", "table", "local")
    guest.run("ip", "route", "add", "127.0.0.1", "via", OWN4)
    guest.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet")
    for port in ports:
        assert not guest.place.tcp("127.0.0.1", port, source="192.168.122.11", timeout=0.5).answered


def listening(host: Host) -> str:
    return host.run("ss", "--no-header", "--listening", "--numeric", "--tcp", "--udp").stdout


@pytest.mark.in_turn
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_forwards_answer_on_the_loopback_addresses(shared_scene: Scene, address: str) -> None:
    scene, place = shared_scene, shared_scene.host.place
    own = OWN6 if ":" in address else OWN4
    server = scene.web.serve_udp(53)
    ports = "8000:80 5300-5310:53-63/udp 900:80"
    scene.daemon(entry("web", ports, "WEB4") + entry("web", ports, "WEB6"), LOCAL)
    scene.answers(lambda: place.fetch(url(address, 8000)), f"web {own}")
    scene.answers(lambda: place.fetch(url(address, 900)), f"web {own}")
    scene.answers(lambda: place.udp(address, 5300), f"web {own}")
    scene.answers(lambda: scene.host.outside.fetch(url(PUBLIC4, 8000)), f"web {CLIENT4}")
    assert not place.tcp(address, 8001).answered
    assert takes_loopback_addresses(scene.host) == []
    server.stop()


@rules_have_no_part
def test_a_large_answer_comes_whole_and_ends(shared_scene: Scene) -> None:
    """The end that closes its side first still gets all that the other has to say."""
    scene = shared_scene
    server = scene.far.serve_tcp(9000)
    scene.daemon(entry("far", "9000", "FAR4"), LOCAL)
    wait_until(lambda: scene.host.place.tcp("127.0.0.1", 9000).answered, "it answers")
    said = b"".join(b"%d\n" % number for number in range(200_000))
    with scene.host.place.connect("127.0.0.1", 9000, timeout=20) as client, client.makefile("rb") as stream:
        assert stream.readline() == b"far 192.168.123.1\n"
        assert _echoed(client, said) == said
    server.stop()


def _echoed(client: socket.socket, said: bytes) -> bytes:
    """Send all, a piece at a time so that no buffer has to hold it, and read what comes back."""
    heard = b""
    for begin in range(0, len(said), 16_384):
        piece = said[begin : begin + 16_384]
        client.sendall(piece)
        while len(heard) < begin + len(piece):
            got = client.recv(65_536)
            assert got, "the connection goes on"
            heard += got
    client.shutdown(socket.SHUT_WR)
    while got := client.recv(65_536):
        heard += got
    return heard


@pytest.mark.parametrize("state", ["running", "wiped", "stopped"])
def test_nobody_else_gets_to_127_0_0_0(shared_scene: Scene, state: str) -> None:
    scene, host = shared_scene, shared_scene.host
    secret = host.place.serve("secret", "tcp", 7777)
    try:
        daemon = scene.start(LOCAL + WEB)
        scene.answers(lambda: host.place.fetch(url("127.0.0.1", 8000)), f"web {OWN4}")
        assert host.place.tcp("127.0.0.1", 7777).text == "secret 127.0.0.1"
        if state != "running":
            daemon.terminate()
        if state == "wiped":
            scene.wipe()
        with accepted(host) as is_accepted:
            ask_for_loopback(scene.neighbour, 7777, 8000)
            assert not is_accepted()
    finally:
        # Others share it: started anew, it has its own routes and settings again.
        scene.neighbour.stop()
        scene.neighbour.start()
        secret.stop()


def test_a_guest_does_not_get_to_the_proxy_even_where_others_route_127_0_0_0(shared_scene: Scene) -> None:
    """Kubernetes turns route_localnet on for all interfaces."""
    scene, host = shared_scene, shared_scene.host
    host.run("sysctl", "-w", "net.ipv4.conf.all.route_localnet=1")
    try:
        scene.start(LOCAL + WEB)
        scene.answers(lambda: host.place.fetch(url("127.0.0.1", 8000)), f"web {OWN4}")
        secret = host.place.serve("secret", "tcp", 7777)
        with accepted(host) as is_accepted:
            ask_for_loopback(scene.neighbour, 8000)
            assert not is_accepted()
            # What others have opened is open: without that, nothing would show that this test could fail.
            scene.neighbour.place.tcp("127.0.0.1", 7777, source="192.168.122.11", timeout=0.5)
            assert is_accepted()
        secret.stop()
    finally:
        host.run("sysctl", "-w", "net.ipv4.conf.all.route_localnet=0")
        scene.neighbour.stop()
        scene.neighbour.start()


@rules_have_no_part
@pytest.mark.parametrize("end", ["reload", "flush", "domain"])
def test_connections_end_with_the_forward_and_nothing_listens_any_more(shared_scene: Scene, end: str) -> None:
    scene, host = shared_scene, shared_scene.host
    server = scene.far.serve_tcp(9000)
    daemon = scene.daemon(entry("far", "9000", "FAR4"), LOCAL)
    wait_until(lambda: host.place.tcp("127.0.0.1", 9000).answered, "it answers")
    conversation = Conversation(host.place, "127.0.0.1", 9000)
    scene.conversations.append(conversation)
    assert conversation.goes_on()
    if end == "reload":
        daemon.reload_with(LOCAL)
    elif end == "flush":
        daemon.terminate()
        host.portfwd("flush")
    else:
        scene.far.stop()
    try:
        wait_until(lambda: not conversation.goes_on(), "the connection ends")
        wait_until(lambda: "127.0.0.1%lo:9000" not in listening(host), "nothing listens any more")
    finally:
        server.stop()
        if end == "domain":
            scene.far.start()


@rules_have_no_part
def test_sources_hold_for_the_host_itself(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    outside = entry("web", "8000:80", "WEB4", 'sources = ["198.51.100.0/24"]')
    everyone = entry("web", "8001:80", "WEB4", 'sources = ["127.0.0.0/8"]')
    scene.daemon(outside + everyone, LOCAL)
    scene.answers(lambda: host.place.fetch(url("127.0.0.1", 8001)), f"web {OWN4}")
    assert not host.place.fetch(url("127.0.0.1", 8000)).answered
    assert not host.place.tcp("127.0.0.1", 8001, source=PUBLIC4).answered


@rules_have_no_part
def test_a_port_that_a_process_has_is_left_to_it_until_it_is_free(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    server = host.place.serve("server", "tcp", 8000)
    try:
        daemon = scene.daemon(entry("web", "8000:80", "WEB4"), LOCAL.replace("true", 'true\nresync = "1s"'))
        daemon.wait_log("tcp port 8000 of 127.0.0.1 does not lead to web: a process of the host listens there")
        assert host.place.tcp("127.0.0.1", 8000).text == "server 127.0.0.1"
        scene.answers(lambda: host.outside.fetch(url(PUBLIC4, 8000)), f"web {CLIENT4}")
    finally:
        server.stop()
    scene.answers(lambda: host.place.fetch(url("127.0.0.1", 8000)), f"web {OWN4}")


@rules_have_no_part
def test_what_an_earlier_version_turned_on_is_turned_off(shared_scene: Scene) -> None:
    host = shared_scene.host
    bridge = host.libvirt.bridge("default")
    for name in (bridge, "eth1"):
        host.run("sysctl", "-w", f"net.ipv4.conf.{name}.route_localnet=1")
    host.run("mkdir", "-p", "/run/kvm-portfwd")
    host.place.run(["sh", "-c", 'printf "%s 0\\n" "$1" >/run/kvm-portfwd/route-localnet', "sh", bridge])
    try:
        shared_scene.start(LOCAL + WEB)
        wait_until(lambda: takes_loopback_addresses(host) == ["eth1"], "only what others turned on is on")
    finally:
        host.run("sysctl", "-w", "net.ipv4.conf.eth1.route_localnet=0")
