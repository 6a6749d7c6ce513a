"""`[[route]]`: addresses routed to a libvirt network's bridge, in and out there and nowhere else."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD, each_backend
from tests.host.test_public_address import gate_is_first
from tests.host.test_reach import url
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, CLIENT6, PUBLIC4, PUBLIC6, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.probe import Answer
from tests.lab.release import LibvirtFirewall

pytestmark = each_backend

PREFIX4, PREFIX6 = "203.0.113.64/29", "2001:db8:64::/64"
ROUTED4, ROUTED6 = "203.0.113.66", "2001:db8:64::66"
PRIVATE4, OTHER4 = "192.168.130.10", "192.168.131.10"
ROUTE = f'[[route]]\nnetwork = "public"\naddresses = ["{PREFIX4}", "{PREFIX6}"]\n'
PATIENCE_S = 2.0


@pytest.fixture
def upstream(host: Host) -> Iterator[None]:
    """The provider routes both prefixes to the host."""
    for prefix, gateway in ((PREFIX4, PUBLIC4), (PREFIX6, PUBLIC6)):
        host.outside.run(["ip", "route", "replace", prefix, "via", gateway])
    yield
    for prefix in (PREFIX4, PREFIX6):
        host.outside.run(["ip", "route", "del", prefix])


@pytest.fixture
def on_link(host: Host) -> Iterator[None]:
    """The provider expects both prefixes on its own link."""
    for prefix in (PREFIX4, PREFIX6):
        host.outside.run(["ip", "route", "replace", prefix, "dev", "eth0"])
    yield
    for prefix in (PREFIX4, PREFIX6):
        host.outside.run(["ip", "route", "del", prefix])


@pytest.fixture
def guest(network: MakeNetwork, lxc_guest: MakeLxcGuest, request: pytest.FixtureRequest) -> LxcGuest:
    """A guest with routed addresses besides its private one; the network's mode may be asked for."""
    network("public", "192.168.130.0/24", mode=getattr(request, "param", "nat"))
    made = lxc_guest("routed", Link("public", (f"{PRIVATE4}/24",)))
    made.run("ip", "address", "add", f"{ROUTED4}/32", "dev", "eth0")
    made.run("ip", "address", "add", f"{ROUTED6}/64", "dev", "eth0")
    return made


def lead_out(guest: LxcGuest) -> None:
    """Give the guest an IPv6 default route, to the bridge's own link-local address."""
    bridge = guest.host.libvirt.bridge("public")

    def gateway() -> str:
        shown = guest.host.run("ip", "-6", "-brief", "address", "show", "dev", bridge, "scope", "link").stdout
        return next((word.partition("/")[0] for word in shown.split() if word.startswith("fe80:")), "")

    wait_until(lambda: gateway() != "", "the bridge has an IPv6 address")
    guest.run("ip", "-6", "route", "replace", "default", "via", gateway(), "dev", "eth0")


def answers(probe: Callable[[], Answer], text: str) -> None:
    wait_until(lambda: probe().text == text, lambda: f"the answer {text!r}, not {probe()}")


@contextmanager
def never_silent_for(seconds: float, probe: Callable[[], Answer]) -> Iterator[None]:
    """Ask all the time; from one answer to the next it takes no longer than that."""
    over, answered = threading.Event(), [time.monotonic()]

    def ask() -> None:
        while not over.wait(0.005):
            if probe().answered:
                answered.append(time.monotonic())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        yield
        count = len(answered)
        wait_until(lambda: len(answered) > count, "it answers at the end")
    finally:
        over.set()
        asking.join(10)
    assert max(later - earlier for earlier, later in pairwise(answered)) < seconds


@pytest.mark.in_turn
@pytest.mark.usefixtures("upstream")
@pytest.mark.parametrize("guest", ["nat", "route", "open"], indirect=True)
def test_routed_guests_are_reached_and_reach_out(host: Host, guest: LxcGuest, daemon: StartDaemon) -> None:
    assert not host.outside.fetch(url(ROUTED4, 80), timeout=0.3).answered
    daemon(HEAD + ROUTE)
    lead_out(guest)
    answers(lambda: host.outside.fetch(url(ROUTED4, 80)), f"routed {CLIENT4}")
    answers(lambda: host.outside.fetch(url(ROUTED6, 80), source=CLIENT6), f"routed {CLIENT6}")
    answers(lambda: host.place.fetch(url(ROUTED4, 80), source=PUBLIC4), f"routed {PUBLIC4}")
    server = host.outside.serve("outside", "tcp", 99)
    try:
        assert guest.place.tcp(CLIENT4, 99, source=ROUTED4).text == f"outside {ROUTED4}"
        assert guest.place.tcp(CLIENT6, 99, source=ROUTED6).text == f"outside {ROUTED6}"
    finally:
        server.stop()


@pytest.mark.in_turn
@pytest.mark.usefixtures("upstream")
def test_nothing_else_there_becomes_reachable(
    host: Host, guest: LxcGuest, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("other", "192.168.131.0/24")
    other = lxc_guest("other", Link("other", (f"{OTHER4}/24",)))
    host.outside.run(["ip", "route", "replace", "192.168.128.0/20", "via", PUBLIC4])
    try:
        daemon(HEAD + ROUTE)
        answers(lambda: host.outside.fetch(url(ROUTED4, 80)), f"routed {CLIENT4}")
        answers(lambda: other.place.fetch(url(ROUTED4, 80)), "routed 192.168.130.1")
        assert not host.outside.fetch(url(PRIVATE4, 80), timeout=0.5).answered
        assert not host.outside.fetch(url(OTHER4, 80), timeout=0.5).answered
        assert not guest.place.tcp(OTHER4, 80, source=ROUTED4, timeout=0.5).answered
        other.run("ip", "address", "add", "203.0.113.67/32", "dev", "eth0")
        assert not other.place.tcp(CLIENT4, 99, source="203.0.113.67", timeout=0.5).answered
    finally:
        host.outside.run(["ip", "route", "del", "192.168.128.0/20"])


@pytest.mark.in_turn
@pytest.mark.usefixtures("on_link")
def test_the_host_answers_for_them_on_the_outer_link(host: Host, guest: LxcGuest, daemon: StartDaemon) -> None:
    running = daemon(HEAD + ROUTE + 'proxy = "eth0"\n')
    lead_out(guest)
    answers(lambda: host.outside.fetch(url(ROUTED4, 80)), f"routed {CLIENT4}")
    answers(lambda: host.outside.fetch(url(ROUTED6, 80), source=CLIENT6), f"routed {CLIENT6}")
    running.terminate()
    host.portfwd("flush")
    host.outside.run(["ip", "neighbour", "flush", "dev", "eth0"])
    assert host.run("ip", "neighbour", "show", "proxy").stdout == ""
    assert not host.outside.fetch(url(ROUTED4, 80), timeout=0.3).answered


@pytest.mark.in_turn
@pytest.mark.usefixtures("upstream", "guest")
def test_restarts_change_nothing_for_long(host: Host, daemon: StartDaemon) -> None:
    def probe() -> Answer:
        return host.outside.fetch(url(ROUTED4, 80), timeout=0.2)

    running = daemon(HEAD + ROUTE)
    answers(probe, f"routed {CLIENT4}")
    with never_silent_for(PATIENCE_S, probe):
        host.libvirt.restart()
        running.wait_log("answers again")
    tap = host.libvirt.virsh("domiflist", "routed").split()[0]
    with never_silent_for(PATIENCE_S, probe):
        host.libvirt.destroy_network("public")
        host.libvirt.start_network("public")
        # libvirt gives running containers no place on the new bridge.
        host.run("ip", "link", "set", tap, "master", host.libvirt.bridge("public"))
    running.wait_log(f"^(added|restored) network public: route {PREFIX4} -> ", start=3)
    answers(probe, f"routed {CLIENT4}")


@pytest.mark.in_turn
@pytest.mark.usefixtures("upstream", "guest")
def test_routes_come_back_and_foreign_ones_stay(host: Host, daemon: StartDaemon) -> None:
    host.run("ip", "route", "add", "203.0.113.128/25", "via", "198.51.100.2", "proto", "static")
    bridge = host.libvirt.bridge("public")
    running = daemon(HEAD + ROUTE)
    answers(lambda: host.outside.fetch(url(ROUTED4, 80)), f"routed {CLIENT4}")
    foreign = host.run("ip", "route", "show").stdout.splitlines()
    host.run("ip", "route", "del", PREFIX4, "dev", bridge)
    running.wait_log(f"^restored network public: route {PREFIX4} -> {bridge}")
    answers(lambda: host.outside.fetch(url(ROUTED4, 80)), f"routed {CLIENT4}")
    assert host.run("ip", "route", "show").stdout.splitlines() == foreign
    running.terminate()
    host.portfwd("flush")
    left = host.run("ip", "route", "show").stdout.splitlines()
    assert left == [line for line in foreign if not line.startswith(PREFIX4)]
    host.run("ip", "route", "del", "203.0.113.128/25")


@pytest.fixture(params=["its own", "open"])
def let_out(network: MakeNetwork, lxc_guest: MakeLxcGuest, request: pytest.FixtureRequest) -> LxcGuest:
    """A guest whose routed addresses libvirt lets out: its network has that very subnet, or no rules."""
    is_own = request.param == "its own"
    network("public", PREFIX4 if is_own else "192.168.130.0/24", mode="route" if is_own else "open")
    made = lxc_guest("routed", Link("public", (f"{ROUTED4}/29" if is_own else f"{PRIVATE4}/24",)))
    if not is_own:
        made.run("ip", "address", "add", f"{ROUTED4}/32", "dev", "eth0")
    return made


ADMIN = """
table inet admin {
    chain forward {
        type filter hook forward priority 10; policy accept;
        iifname "BRIDGE" tcp dport 27 drop
    }
}
"""


@pytest.mark.in_turn
@pytest.mark.usefixtures("upstream")
def test_a_refusal_of_what_a_routed_guest_opens_holds(
    host: Host, let_out: LxcGuest, daemon: StartDaemon, request: pytest.FixtureRequest
) -> None:
    """Ahead of a gate, behind it, and in a native chain with a gate."""
    for port in (25, 26, 27, 28):
        request.addfinalizer(host.outside.serve("outside", "tcp", port).stop)
    bridge = host.libvirt.bridge("public")
    daemon(
        HEAD.replace("[daemon]\n", '[daemon]\ngates = ["inet admin forward"]\n')
        + f"""
[[route]]
network = "public"
addresses = ["{PREFIX4}"]
"""
    )

    def opens(port: int) -> bool:
        return let_out.place.tcp(CLIENT4, port, source=ROUTED4, timeout=0.5).text == f"outside {ROUTED4}"

    answers(lambda: host.outside.fetch(url(ROUTED4, 80)), f"routed {CLIENT4}")
    assert all(map(opens, (25, 26, 27, 28)))
    program = "iptables-legacy" if host.flavour.firewall is LibvirtFirewall.LEGACY else "iptables-nft"
    ahead = ["-i", bridge, "-o", "eth0", "-p", "tcp", "--dport", "28", "-j", "DROP"]
    behind = ["-i", bridge, "-p", "tcp", "--dport", "25", "-j", "DROP"]
    for place, rule in (("1", ahead), ("2", behind)):
        host.run(program, "-w", "-I", "FORWARD", place, *rule)
        request.addfinalizer(partial(host.run, program, "-w", "-D", "FORWARD", *rule))
        wait_until(lambda: gate_is_first(host, program), "no other rule is ahead of the gate")
    host.run("nft", "-f", "-", stdin=ADMIN.replace("BRIDGE", bridge))
    request.addfinalizer(lambda: host.run("nft", "delete", "table", "inet", "admin"))
    wait_until(lambda: "kvm-portfwd" in host.run("nft", "list", "table", "inet", "admin").stdout, "it has a gate")
    assert list(map(opens, (25, 26, 27, 28))) == [False, True, False, False]
    answers(lambda: host.outside.fetch(url(ROUTED4, 80)), f"routed {CLIENT4}")


@pytest.mark.usefixtures("upstream")
def test_a_refusal_of_what_a_routed_guest_opens_holds_where_no_gate_outranks_it(
    host: Host, guest: LxcGuest, daemon: StartDaemon, request: pytest.FixtureRequest
) -> None:
    """Libvirt refuses what comes from these addresses, so a gate lets it out, and outranks rules that are no bans.

    What does hold: by address at the head of a chain, by anything in a chain of `behind`, and where there is no gate.
    """
    for port in (25, 26, 27, 28, 29):
        request.addfinalizer(host.outside.serve("outside", "tcp", port).stop)

    def opens(port: int) -> bool:
        return guest.place.tcp(CLIENT4, port, source=ROUTED4, timeout=0.5).text == f"outside {ROUTED4}"

    bridge = host.libvirt.bridge("public")
    program = "iptables-legacy" if host.flavour.firewall is LibvirtFirewall.LEGACY else "iptables-nft"
    by_address = ["-s", ROUTED4, "-p", "tcp", "--dport", "25", "-j", "DROP"]
    by_port = ["-p", "tcp", "--dport", "26", "-j", "DROP"]
    chained = ["-i", bridge, "-j", "GUESTS-OUT"]
    request.addfinalizer(partial(host.run, program, "-w", "-X", "GUESTS-OUT"))
    request.addfinalizer(partial(host.run, program, "-w", "-F", "GUESTS-OUT"))
    host.run(program, "-w", "-N", "GUESTS-OUT")
    host.run(program, "-w", "-A", "GUESTS-OUT", "-p", "tcp", "--dport", "27", "-j", "REJECT")
    for rule in (by_port, chained, by_address):
        host.run(program, "-w", "-I", "FORWARD", *rule)
        request.addfinalizer(partial(host.run, program, "-w", "-D", "FORWARD", *rule))
    host.run("nft", "-f", "-", stdin=ADMIN.replace("BRIDGE", bridge).replace("27", "28"))
    request.addfinalizer(lambda: host.run("nft", "delete", "table", "inet", "admin"))
    daemon(HEAD + 'behind = ["GUESTS-OUT"]\n' + ROUTE)
    answers(lambda: host.outside.fetch(url(ROUTED4, 80)), f"routed {CLIENT4}")
    assert list(map(opens, (25, 26, 27, 28, 29))) == [False, True, False, False, True]
