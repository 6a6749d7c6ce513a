"""Inner networks beside the guests, of which nothing is to be reachable, and ways to take the rules away."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.host.conftest import HEAD, entry
from tests.host.test_reach import url
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.probe import Outcome
from tests.lab.release import LibvirtFirewall

INNER, INNER_GATEWAY, GUEST = "192.0.2.2", "192.0.2.1", "192.168.140.10"
INNER6, INNER_GATEWAY6, GUEST6 = "2001:db8:2::2", "2001:db8:2::1", "2001:db8:140::10"
WEB = HEAD + entry("confined", "8000:80", GUEST)
WEB6 = HEAD + entry("confined", "8000:80", GUEST6)
SWITCH, SWITCH6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"
SWITCH_ETH0 = "net.ipv4.conf.eth0.forwarding"
RECORD, RECORD_ETH0 = (f"/run/kvm-portfwd/forwarding{which}.json" for which in ("", "-ipv4"))


def plug(host: Host, name: str, number: int) -> None:
    host.run("ip", "netns", "add", name)
    host.run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    host.run("ip", "link", "set", name, "master", "lan0", "up")
    within = ("ip", "-netns", name)
    host.run(*within, "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
    host.run(*within, "address", "add", f"2001:db8:2::{number}/64", "dev", "eth0", "nodad")
    host.run(*within, "link", "set", "eth0", "up")
    for gateway in (INNER_GATEWAY, INNER_GATEWAY6):
        host.run(*within, "route", "replace", "default", "via", gateway)


def reached(host: Host, inner: str = INNER) -> bool:
    """Whether the inner machine, on which nothing listens, sends a refusal."""
    return host.outside.tcp(inner, 80, timeout=0.5).outcome is Outcome.REFUSED


def serves(host: Host) -> None:
    wait_until(lambda: host.outside.fetch(url(PUBLIC4, 8000)).text == f"confined {CLIENT4}", "the guest answers")


def command(host: Host, *words: str) -> str:
    return host.portfwd(*words, check=False).stdout


def tells_of_it(host: Host) -> None:
    """Check that `status` shows it, and that `explain` names what refuses the outside."""
    assert "forwarding     off for IPv4 before kvm-portfwd: " in command(host, "status")
    assert json.loads(command(host, "status", "--json"))["confined"] == [4]
    report = json.loads(command(host, "explain", f"{INNER}:80", "--from", CLIENT4, "--json"))
    assert report["cause"] == "confined"
    assert report["sentence"].startswith("This is on purpose: IPv4 forwarding was off before kvm-portfwd")


# Answers with what it was sent.
ECHO = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while told := self.request.recv(100):
            self.request.sendall(told)
server = socketserver.ThreadingTCPServer(("0.0.0.0", 81), Echo)
print("ready")
server.serve_forever()
"""


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(1)
    connection.sendall(b"ended")
    try:
        connection.recv(100)
    except TimeoutError:
        return True
    return False


@contextmanager
def locked(host: Host) -> Iterator[None]:
    """Hold iptables' lock, so that no helper does while its daemon is stopped."""
    holder = host.popen("sh", "-c", "exec 9>>/run/xtables.lock && flock 9 && echo locked && exec sleep 98765")
    holder.wait_line("^locked$")
    try:
        yield
    finally:
        holder.stop()


def flush_ours(host: Host) -> None:
    """Take away ours alone, whatever holds iptables' lock: libvirt keeps its networks by its own rules."""
    legacy = host.flavour.firewall is LibvirtFirewall.LEGACY
    by_another_lock = "env XTABLES_LOCKFILE=/run/another.lock iptables-legacy -F KVMPF_FWD"
    host.run(*(by_another_lock if legacy else "nft delete table ip kvm_portfwd").split())


def flush_everything(host: Host) -> None:
    if host.flavour.firewall is LibvirtFirewall.LEGACY:
        for table in ("filter", "nat", "mangle"):
            host.run("iptables-legacy", "-w", "-t", table, "-F")
    else:
        host.run("nft", "flush", "ruleset")


def tells_of_eth0(host: Host) -> None:
    """Check the same where it was off on one interface alone."""
    assert "forwarding     off for IPv4 on eth0 before kvm-portfwd: " in command(host, "status")
    status = json.loads(command(host, "status", "--json"))
    assert (status["confined"], status["confined_interfaces"]) == ([], ["eth0"])
    report = json.loads(command(host, "explain", f"{INNER}:80", "--from", CLIENT4, "--json"))
    assert report["cause"] == "confined"
    assert report["sentence"].startswith(f"This is on purpose: {SWITCH_ETH0} was 0 before kvm-portfwd")
