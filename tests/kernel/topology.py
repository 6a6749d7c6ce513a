"""Network namespaces wired like a host: the network outside it, guests on two bridges, and servers in all of them.

There is no libvirt. Where it would refuse connections to and between guests, and masquerade theirs, a table of the
test does.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from tests.lab.command import run
from tests.lab.etcd import Etcd, running
from tests.lab.place import wait_until
from tests.lab.probe import Prober

_CLONE_NEWNET = 0x40000000  # sched.h
_SERVER = Path(__file__).parents[1] / "lab/serve.py"

_OFF = (
    "ipv6.conf.all.accept_dad",
    "ipv6.conf.default.accept_dad",
    "ipv4.conf.all.rp_filter",
    "ipv4.conf.default.rp_filter",
)

# Every server is on this port.
PORT = 80

# Everything is refused that no gate lets through, apart from what `mail` opens to the outside, and its answers, as
# libvirt lets out what its guests open; and guests of libvirt's usual networks are masqueraded.
_THEIRS = """
table inet theirs {
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname "virbr0" oifname "eth0" ip saddr 192.168.122.50 accept
        iifname "virbr0" oifname "eth0" ip6 saddr 2001:db8:122::50 accept
        oifname "virbr0" ip daddr 192.168.122.50 ct state established,related accept
        oifname "virbr0" ip6 daddr 2001:db8:122::50 ct state established,related accept
        meta l4proto tcp reject with tcp reset
        reject
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "eth0" ip saddr 192.168.0.0/16 masquerade
        oifname "eth0" ip6 saddr 2001:db8:100::/40 masquerade
    }
}
"""
# The same; each table is flushed by being named.
_THEIRS_LEGACY = """
*mangle
COMMIT
*filter
-A FORWARD -s {mail} -i virbr0 -o eth0 -j ACCEPT
-A FORWARD -d {mail} -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p tcp -j REJECT --reject-with tcp-reset
-A FORWARD -j REJECT
COMMIT
*nat
-A POSTROUTING -s {subnet} -o eth0 -j MASQUERADE
COMMIT
"""


@contextmanager
def own_namespace() -> Iterator[None]:
    """Move this thread, and what it starts, into a fresh network namespace, and back afterwards."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _call("unshare", _CLONE_NEWNET)
        yield
        _call("setns", home, _CLONE_NEWNET)
    finally:
        os.close(home)


@contextmanager
def own_etcd() -> Iterator[Etcd]:
    """Run one member of etcd in a network namespace of its own, and move this thread in there meanwhile."""
    with own_namespace():
        run(["ip", "link", "set", "lo", "up"])
        with running(Etcd()) as (member,):
            yield member


def _call(name: str, *arguments: int) -> None:
    # Python has these since 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


@dataclass(frozen=True, slots=True)
class Node(Prober):
    """One machine: probes start in it, and programs run there."""

    name: str

    def run(self, *argv: str, stdin: str = "") -> str:
        """Run a program there; give what it printed."""
        return run(self._enter(argv), stdin=stdin).stdout

    def _enter(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net={self.namespace}", "--", *argv]

    def ip(self, *lines: str) -> None:
        """Carry out each line as a command of `ip`."""
        self.run("ip", "-batch", "-", stdin="\n".join(lines))

    def sysctl(self, *settings: str) -> None:
        """Write settings below `net.`."""
        self.run("sysctl", "-qw", *(f"net.{setting}" for setting in settings))

    def is_linked(self) -> bool:
        """Whether every link that is up has a carrier, and every port of a bridge forwards."""
        shown = json.loads(self.run("ip", "-json", "-details", "link", "show", "up"))
        links = [link for link in shown if link]  # ip prints an empty one in place of each that is down
        ports = [link["linkinfo"]["info_slave_data"] for link in links if "master" in link]
        carried = all(link["operstate"] == "UP" for link in links if link["link_type"] != "loopback")
        return carried and all(port["state"] == "forwarding" for port in ports)

    def pings(self, address: str, timeout: float = 1) -> bool:
        """Whether one echo request is answered within so many seconds."""
        program = ["busybox", "ping", "-c", "1", "-W", f"{timeout:.0f}", address]
        return run(self._enter(program), check=False).returncode == 0

    def serve(self, at_end: ExitStack) -> Iterator["subprocess.Popen[str]"]:
        """Start servers that answer `NAME CLIENT-ADDRESS`, over TCP and UDP; they are ready when they say so."""
        for protocol in ("tcp", "udp"):
            argv = self._enter([sys.executable, str(_SERVER), self.name, protocol, str(PORT)])
            server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)  # noqa: S603  the test chose the words
            at_end.callback(_end, server)
            yield server


def _end(server: "subprocess.Popen[str]") -> None:
    server.terminate()
    server.communicate()


@dataclass(frozen=True, slots=True)
class Topology:
    """The machines; this thread is on `host`.

    `mail` and `peer` are on `virbr0`, `routed` and `far` on `virbr1`; the address of `routed` is a public one. What is
    outside sends everything to the host.
    """

    host: Node
    outside: Node
    mail: Node
    peer: Node
    routed: Node
    far: Node

    def reset(self, *, legacy: bool) -> None:
        """Forget all connections, and all rules but theirs."""
        self.host.run("nft", "-f", "-", stdin="flush ruleset" + ("" if legacy else _THEIRS))
        if legacy:
            self.host.run("iptables-legacy-restore", stdin=_theirs("192.168.0.0/16", "192.168.122.50"))
            self.host.run("ip6tables-legacy-restore", stdin=_theirs("2001:db8:100::/40", "2001:db8:122::50"))
        self.host.run("conntrack", "--flush")


def _theirs(subnet: str, mail: str) -> str:
    return _THEIRS_LEGACY.format(subnet=subnet, mail=mail)


@contextmanager
def wired() -> Iterator[Topology]:
    """Wire all machines; this thread is on the host meanwhile."""
    with ExitStack() as at_end:
        at_end.enter_context(own_namespace())
        host = fresh_node(at_end, "host", "/proc/thread-self/ns/net")
        nodes = [fresh_node(at_end, name) for name in ("outside", "mail", "peer", "routed", "far")]
        everything = Topology(host, *nodes)
        _wire(everything)
        for node in (host, *nodes):
            wait_until(node.is_linked, f"the links of {node.name} carry frames")
        servers = [server for node in (host, *nodes) for server in node.serve(at_end)]
        for server in servers:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
        yield everything


def fresh_node(at_end: ExitStack, name: str, namespace: str = "") -> Node:
    descriptor = os.open(namespace, os.O_RDONLY) if namespace else _fresh()
    at_end.callback(os.close, descriptor)
    node = Node(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), name)
    # An address can be used at once, and from anywhere.
    node.sysctl(*(f"{name}=0" for name in _OFF))
    return node


def _fresh() -> int:
    """Open a namespace that lives as long as it is open, or used."""
    result: Future[int] = Future()

    def make() -> None:
        with own_namespace():
            result.set_result(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    thread = Thread(target=make, name="lab-namespace")
    thread.start()
    thread.join()
    return result.result(timeout=0)


def _wire(machines: Topology) -> None:
    host = machines.host
    host.sysctl("ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1", "ipv4.icmp_ratelimit=0", "ipv6.icmp.ratelimit=0")
    host.ip("link set lo up", f"link add eth0 type veth peer name eth0 netns {machines.outside.namespace}")
    host.ip(*_plugged("virbr0", machines.mail, machines.peer), *_plugged("virbr1", machines.routed, machines.far))
    # Or frames between guests of a bridge pass through the rules twice.
    host.sysctl("bridge.bridge-nf-call-iptables=0", "bridge.bridge-nf-call-ip6tables=0")
    _address(host, "eth0", "198.51.100.1/24", "2001:db8::1/64")
    _address(host, "virbr0", "192.168.122.1/24", "2001:db8:122::1/64")
    _address(host, "virbr1", "192.168.123.1/24", "2001:db8:123::1/64")
    host.ip("route add 203.0.113.64/29 dev virbr1", "route add 2001:db8:64::/64 dev virbr1")
    host.ip("route add default via 198.51.100.2", "route add default via 2001:db8::2")
    _address(machines.outside, "eth0", "198.51.100.2/24", "2001:db8::2/64")
    machines.outside.ip("route add default via 198.51.100.1", "route add default via 2001:db8::1")
    _guest(machines.mail, 122, "192.168.122.50/24", "2001:db8:122::50/64")
    _guest(machines.peer, 122, "192.168.122.51/24", "2001:db8:122::51/64")
    _guest(machines.routed, 123, "203.0.113.66/32", "2001:db8:64::66/128")
    _guest(machines.far, 123, "192.168.123.60/24", "2001:db8:123::60/64")


def _plugged(bridge: str, *guests: Node) -> Iterator[str]:
    yield f"link add {bridge} type bridge"
    for guest in guests:
        yield f"link add {guest.name} type veth peer name eth0 netns {guest.namespace}"
        yield f"link set {guest.name} master {bridge} up"


def _address(node: Node, device: str, *addresses: str) -> None:
    node.ip(*(address_words(address, device) for address in addresses), f"link set {device} up")


def address_words(address: str, device: str) -> str:
    """Write the command that adds an address.

    With accept_dad off, the kernel still holds an IPv6 address back until a work queue of its gets to it; bind() fails
    meanwhile.
    """
    return f"address add {address} dev {device}" + (" nodad" if ":" in address else "")


def _guest(node: Node, network: int, *addresses: str) -> None:
    _address(node, "eth0", *addresses)
    node.ip(
        f"route replace default via 192.168.{network}.1 dev eth0 onlink",
        f"route replace default via 2001:db8:{network}::1 dev eth0 onlink",
    )
