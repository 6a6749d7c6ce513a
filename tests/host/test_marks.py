"""Connection marks belong to others: their routing works beside our forwards, and what they write changes nothing here.

What helpers expect (FTP) lives as long as the connection it belongs to; what stops being allowed is ended.
"""

import itertools
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.host.conftest import HEAD, Conversation, Scene, each_backend, entry, filled
from tests.lab.host import CLIENT4, CLIENT4_OTHER_LINK, CLIENT4_SECOND, OTHER_LINK4, PUBLIC4, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until

pytestmark = each_backend

WEB = entry("web", "8000:80 9000", "WEB4")
FAR = entry("far", "9001", "FAR4")
URL = f"http://{PUBLIC4}:8000/"
# What recipes for several uplinks are made of (tc-ctinfo, Shorewall, wiki pages of all distributions).
UPLINK = (
    ("PREROUTING", "-i eth1 -m conntrack --ctstate NEW -j CONNMARK --set-mark 2"),
    ("PREROUTING", "-i virbr0 -j CONNMARK --restore-mark"),
    # The provider drops what leaves by the wrong uplink.
    ("POSTROUTING", f"-o eth0 -m conntrack --ctorigdst {OTHER_LINK4} -j DROP"),
)
# Bits of every kind: ours of earlier versions, and all there are.
WRITTEN = ("--set-mark 7", "--set-mark 0xffffffff", "--save-mark", "--set-mark 0x2000000")
THEIR_DNAT = """
table ip admin {
    chain marking { type filter hook prerouting priority -150
 ct mark set 0xffffffff
 }
    chain pre { type nat hook prerouting priority -100
 tcp dport 9002 dnat to 192.168.122.10:80
 }
}
"""
FTP = """
table ip admin {
    ct helper ftp { type "ftp" protocol tcp
 }
    chain pre { type filter hook prerouting priority -150
 tcp dport 2121 ct helper set "ftp"
 }
}
"""


@pytest.fixture(scope="module", autouse=True)
def _servers(module_guests: tuple[LxcGuest, LxcGuest, LxcGuest]) -> None:
    web, _, far = module_guests
    web.serve_tcp(9000)
    web.serve_ftp(21)
    far.serve_tcp(9001)


@contextmanager
def mangled(host: Host, *rules: tuple[str, str]) -> Iterator[None]:
    """Have the administrator's rules in the table mangle."""
    with ExitStack() as at_end:
        for chain, rule in rules:
            host.run("iptables", "-w", "-t", "mangle", "-A", chain, *rule.split())
            at_end.callback(host.run, "iptables", "-w", "-t", "mangle", "-D", chain, *rule.split())
        yield


@contextmanager
def admins(host: Host, table: str) -> Iterator[None]:
    """Have the administrator's table `ip admin`."""
    host.run("nft", "-f", "-", stdin=table)
    try:
        yield
    finally:
        host.run("nft", "delete", "table", "ip", "admin")


@pytest.mark.in_turn
def test_answers_leave_by_the_uplink_that_the_administrator_marked(shared_scene: Scene) -> None:
    host = shared_scene.host
    shared_scene.daemon(WEB)
    with mangled(host, *UPLINK), ExitStack() as at_end:
        for what in ("rule add fwmark 2 table 102", f"route add default via {CLIENT4_OTHER_LINK} dev eth1 table 102"):
            host.run("ip", *what.split())
            at_end.callback(host.run, "ip", *what.replace(" add ", " del ").split())
        shared_scene.answers(
            lambda: host.outside.fetch(f"http://{OTHER_LINK4}:8000/", source=CLIENT4_SECOND), f"web {CLIENT4_SECOND}"
        )
        shared_scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")


def test_what_others_write_to_marks_closes_nothing(shared_scene: Scene) -> None:
    shared_scene.daemon(WEB)
    for written, chain in itertools.product(WRITTEN, ("PREROUTING", "FORWARD")):
        with mangled(shared_scene.host, (chain, f"-j CONNMARK {written}")):
            shared_scene.answers(lambda: shared_scene.host.outside.fetch(URL), f"web {CLIENT4}")
            told = shared_scene.host.portfwd("explain", f"{PUBLIC4}:8000").stdout
            assert "It works" in told, (written, chain)


def test_what_others_write_to_marks_keeps_no_connection_of_a_forward_that_went(shared_scene: Scene) -> None:
    daemon = shared_scene.daemon(WEB)
    for written in WRITTEN:
        with mangled(shared_scene.host, ("FORWARD", f"-j CONNMARK {written}")):
            conversation = shared_scene.converse(9000)
            assert conversation.goes_on(), written
            daemon.reload_with(filled(HEAD))
            wait_until(lambda: not shared_scene.conversations[-1].goes_on(), f"the connection ends, with {written}")
            daemon.reload_with(filled(HEAD + WEB))


def test_no_mark_opens_anything_or_has_a_connection_of_others_ended(shared_scene: Scene) -> None:
    """A download of a neighbour's, with every bit of the mark set, while forwards come and go."""
    host = shared_scene.host
    daemon = shared_scene.daemon(WEB + FAR)
    with admins(host, THEIR_DNAT):
        shared_scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")
        assert not host.outside.fetch(f"http://{PUBLIC4}:9002/").answered
        server = host.outside.serve("outside", "tcp", 7000)
        download = Conversation(shared_scene.neighbour.place, CLIENT4, 7000)
        assert download.goes_on()
        daemon.reload_with(filled(HEAD + WEB))
        daemon.wait_log("^removed far: ")
        daemon.terminate()
        shared_scene.daemon(WEB)
        assert download.goes_on()
        download.close()
        server.stop()


@dataclass(frozen=True, slots=True)
class Ftp:
    """A session: its control connection, and one for data."""

    control: socket.socket
    data: Conversation

    @classmethod
    def begun(cls, scene: Scene) -> "Ftp":
        outside = scene.host.outside
        wait_until(lambda: outside.tcp(PUBLIC4, 2121).answered, "the FTP server answers")
        control = outside.connect(PUBLIC4, 2121)
        said = control.makefile("rb")
        said.readline()
        control.sendall(b"PASV\r\n")
        found = re.search(r"\((\d+),(\d+),(\d+),(\d+),(\d+),(\d+)\)", said.readline().decode())
        assert found
        numbers = [int(number) for number in found.groups()]
        address = ".".join(map(str, numbers[:4]))
        assert address == PUBLIC4, "the helper writes the address that the client knows"
        return cls(control, Conversation(outside, address, 256 * numbers[4] + numbers[5]))

    def end(self) -> None:
        self.data.close()
        self.control.close()


def test_data_connections_of_ftp_live_as_long_as_their_control_connection(shared_scene: Scene) -> None:
    neighbour, ftp = entry("neighbour", "9003", "NEIGHBOUR4"), entry("web", "2121:21", "WEB4")
    with admins(shared_scene.host, FTP):
        daemon = shared_scene.daemon(ftp + neighbour)
        session = Ftp.begun(shared_scene)
        shared_scene.neighbour.serve_tcp(9003)
        other = shared_scene.converse(9003)
        assert session.data.goes_on()
        shared_scene.neighbour.stop()
        daemon.wait_log("^removed neighbour: ")
        wait_until(lambda: not other.goes_on(), "what went through the other forward ends")
        assert session.data.goes_on()
        daemon.terminate()
        daemon = shared_scene.daemon(ftp + neighbour)
        assert session.data.goes_on()
        daemon.reload_with(filled(HEAD))
        wait_until(lambda: not session.data.goes_on(), "the data connection ends with its forward")
        session.end()
    shared_scene.neighbour.start()


# --- whatever stops being allowed is ended ---------------------------------------------------------------------------


def _flushed(scene: Scene) -> None:
    scene.host.portfwd("flush")


def _nothing(scene: Scene) -> None:
    del scene


@pytest.mark.parametrize(
    ("head", "after"),
    [
        pytest.param(HEAD, _flushed, id="flush"),
        pytest.param(f'{HEAD}on_stop = "remove"\n', _nothing, id="on_stop = remove"),
        pytest.param(f'{HEAD}on_stop = "remove"\nlabel = 0\n', _nothing, id="with another label"),
        pytest.param(f"{HEAD}label = 127\n", _flushed, id="flush with another label"),
    ],
)
def test_taking_everything_away_ends_connections(
    shared_scene: Scene, head: str, after: Callable[[Scene], None]
) -> None:
    daemon = shared_scene.daemon(WEB, head)
    conversation = shared_scene.converse(9000)
    assert conversation.goes_on()
    daemon.terminate()
    after(shared_scene)
    wait_until(lambda: not conversation.goes_on(), "the connection ends")
    assert shared_scene.host.own_rules() == ""


def test_binding_a_forward_to_an_interface_ends_what_may_have_come_by_another(shared_scene: Scene) -> None:
    daemon = shared_scene.daemon(WEB + FAR)
    conversation, other = shared_scene.converse(9000), shared_scene.converse(9001)
    daemon.reload_with(filled(HEAD + entry("web", "8000:80 9000", "WEB4", 'interface = "eth1"') + FAR))
    wait_until(lambda: not conversation.goes_on(), "the connection ends")
    assert other.goes_on()
