"""Real packets with sources that cannot have come in where they did, and refusals of what guests open.

A pod is behind a link that is no uplink.
"""

import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from ipaddress import ip_network
from typing import BinaryIO

import pytest

from fwdaemon.core.exposures import Exposure
from tests.kernel.conftest import Open
from tests.kernel.scene import V4, V6, Plan, answers, count, holding, refuses
from tests.kernel.topology import PORT, Node, Topology, address_words, fresh_node
from tests.lab.place import PATIENCE, wait_until
from tests.unit.forwards import forward, nat, route

_TO_POD = "cali0123"

# Counts forged packets as they come to the host, before connection tracking; and what passes on to a guest, or away
# from the host.
WATCH = """
table inet watch {{
    counter came {{ }}
    counter passed {{ }}
    chain prerouting {{
        type filter hook prerouting priority -300; policy accept;
        {ip} saddr {forged} udp dport {port} counter name came
    }}
    chain forward {{
        type filter hook forward priority 10; policy accept;
        {match} counter name passed
    }}
}}
"""


@pytest.fixture(scope="module", autouse=True)
def acquainted(wires: Topology) -> None:
    """Tell all machines their neighbours: a question from a forged address may stay without an answer, or mislead."""
    for plan in (V4, V6):
        known(wires.host, "eth0", wires.outside, [plan.outside])
        known(wires.outside, "eth0", wires.host, [plan.host, plan.public, plan.other])
    for bridge, guests in (("virbr0", ("mail", "peer")), ("virbr1", ("routed", "far"))):
        for name in guests:
            guest: Node = getattr(wires, name)
            known(wires.host, bridge, guest, [getattr(plan, name) for plan in (V4, V6)])
            number = 122 if bridge == "virbr0" else 123
            known(guest, "eth0", wires.host, [f"192.168.{number}.1", f"2001:db8:{number}::1"], bridge)


def known(node: Node, device: str, neighbour: Node, addresses: Iterable[str], away: str = "eth0") -> None:
    lladdr = mac(neighbour, away)
    node.ip(*(f"neighbour replace {address} dev {device} lladdr {lladdr} nud permanent" for address in addresses))


def watched(machines: Topology, plan: Plan, forged: str, match: str) -> None:
    rules = WATCH.format(ip=ip(plan), forged=forged, port=PORT, match=match)
    machines.host.run("nft", "-f", "-", stdin=rules)


def passed(machines: Topology) -> int:
    return count(machines, "passed", family="inet")


def mac(node: Node, device: str = "eth0") -> str:
    return node.run("ip", "-brief", "link", "show", "dev", device).split()[2]


def ip(plan: Plan) -> str:
    return "ip6" if ":" in plan.mail else "ip"


def network(plan: Plan) -> str:
    return "2001:db8:122::/64" if ":" in plan.mail else "192.168.122.0/24"


def free(plan: Plan) -> str:
    """An address of the guests' network that no guest has, so that what answers is not in the way."""
    return plan.mail[:-2] + "99"


def forge(machines: Topology, node: Node, source: str, to: str) -> None:
    """Send one packet under an address that is not the sender's, and see it come to the host."""
    before = count(machines, "came", family="inet")
    with holding(node, source):
        node.udp(to, PORT, source=source, timeout=0.01)
        wait_until(lambda: count(machines, "came", family="inet") > before, "the forged packet comes to the host")


@pytest.mark.parametrize("where", ["outside", "far"])
def test_a_guests_address_from_elsewhere_passes_no_forward(
    machines: Topology, opened: Open, plan: Plan, where: str
) -> None:
    opened(forward(f"udp *:{PORT}", f"[{plan.mail}]:{PORT}", sources=(network(plan),)))
    watched(machines, plan, free(plan), f'oifname "virbr0" {ip(plan)} daddr {plan.mail}')
    forge(machines, getattr(machines, where), free(plan), plan.public)
    assert passed(machines) == 0
    assert machines.peer.udp(plan.public, PORT, timeout=PATIENCE).text == f"mail {plan.gateway}"
    assert passed(machines) > 0


@pytest.mark.parametrize("where", ["outside", "far"])
def test_a_guests_address_from_elsewhere_passes_no_one_to_one_nat(
    machines: Topology, opened: Open, plan: Plan, where: str
) -> None:
    opened(nat(plan.public, plan.mail))
    watched(machines, plan, free(plan), f'oifname "virbr0" {ip(plan)} daddr {plan.mail}')
    forge(machines, getattr(machines, where), free(plan), plan.public)
    assert passed(machines) == 0
    answers(machines.outside, plan.public, f"mail {plan.outside}")
    assert passed(machines) > 0


def test_a_guests_address_from_outside_enters_no_routed_network(machines: Topology, opened: Open, plan: Plan) -> None:
    opened(route(plan.subnet))
    watched(machines, plan, free(plan), f'oifname "virbr1" {ip(plan)} daddr {plan.routed}')
    forge(machines, machines.outside, free(plan), plan.routed)
    assert passed(machines) == 0
    answers(machines.outside, plan.routed, f"routed {plan.outside}")
    assert passed(machines) > 0


def test_a_routed_address_from_outside_passes_no_forward(machines: Topology, opened: Open, plan: Plan) -> None:
    opened(route(plan.subnet), forward(f"udp *:{PORT}", f"[{plan.mail}]:{PORT}", sources=(plan.subnet,)))
    watched(machines, plan, plan.astray, f'oifname "virbr0" {ip(plan)} daddr {plan.mail}')
    forge(machines, machines.outside, plan.astray, plan.public)
    assert passed(machines) == 0
    assert machines.routed.udp(plan.public, PORT, timeout=PATIENCE).text.startswith("mail ")


def test_an_address_of_the_host_from_outside_passes_no_exposure(machines: Topology, opened: Open, plan: Plan) -> None:
    trusted = map(str, map(ip_network, (plan.other, plan.outside)))
    narrow = forward(f"udp {plan.public}:{PORT}", f"[{plan.mail}]:{PORT}", sources=(network(plan), *trusted))
    opened(narrow, nat(plan.elsewhere, plan.mail), route(plan.subnet))
    watched(machines, plan, f"{{ {plan.gateway}, {plan.other} }}", f"{ip(plan)} daddr {{ {plan.mail}, {plan.routed} }}")
    # Otherwise IPv4 drops such packets by itself.
    machines.host.sysctl("ipv4.conf.eth0.accept_local=1")
    for source in (plan.gateway, plan.other):
        for to in (plan.public, plan.elsewhere, plan.routed):
            forge(machines, machines.outside, source, to)
    machines.host.sysctl("ipv4.conf.eth0.accept_local=0")
    assert passed(machines) == 0
    for to, name in ((plan.public, "mail"), (plan.elsewhere, "mail"), (plan.routed, "routed")):
        assert machines.outside.udp(to, PORT, timeout=PATIENCE).text == f"{name} {plan.outside}"
    for source in (plan.gateway, plan.other):
        for to in (plan.public, plan.elsewhere):
            assert machines.host.udp(to, PORT, source=source, timeout=PATIENCE).text.startswith("mail ")


def test_a_neighbour_does_not_leave_with_the_guests_public_address(
    machines: Topology, opened: Open, plan: Plan
) -> None:
    opened(nat(plan.public, plan.mail, bridge="virbr0", mac=mac(machines.mail)))
    watched(machines, plan, plan.mail, f'oifname "eth0" {ip(plan)} saddr {plan.mail}')
    forge(machines, machines.peer, plan.mail, plan.outside)
    forge(machines, machines.far, plan.mail, plan.outside)
    assert passed(machines) == 0
    answers(machines.mail, plan.outside, f"outside {plan.public}")
    assert passed(machines) > 0


def test_a_refusal_of_what_a_guest_opens_holds(machines: Topology, opened: Open, plan: Plan, *, legacy: bool) -> None:
    opened(nat(plan.public, plan.mail, bridge="virbr0", mac=mac(machines.mail)))
    answers(machines.mail, plan.outside, f"outside {plan.public}")
    refuse(machines, plan, legacy=legacy)
    opened(nat(plan.public, plan.mail, bridge="virbr0", mac=mac(machines.mail)))
    assert machines.mail.tcp(plan.outside, PORT, timeout=PATIENCE).outcome == "refused"
    assert machines.mail.udp(plan.outside, PORT, timeout=PATIENCE).text == f"outside {plan.public}"
    answers(machines.outside, plan.public, f"mail {plan.outside}")
    refuses(machines.far, plan.outside)


def test_a_refusal_of_what_a_routed_guest_opens_holds(
    machines: Topology, opened: Open, plan: Plan, *, legacy: bool
) -> None:
    let_out(machines, plan, legacy=legacy)
    opened(route(plan.subnet, let_out=True))
    assert machines.routed.tcp(plan.outside, PORT, source=plan.routed, timeout=PATIENCE).text.startswith("outside ")
    refuse(machines, plan, legacy=legacy, bridge="virbr1")
    opened(route(plan.subnet, let_out=True))
    assert machines.routed.tcp(plan.outside, PORT, source=plan.routed, timeout=PATIENCE).outcome == "refused"
    answer = machines.routed.udp(plan.outside, PORT, source=plan.routed, timeout=PATIENCE)
    assert answer.text == f"outside {plan.routed}"
    answers(machines.outside, plan.routed, f"routed {plan.outside}")
    refuses(machines.far, plan.outside)


def test_a_routed_guest_reaches_a_pod_that_others_refuse_by_an_uplink_alone(
    machines: Topology, opened: Open, plan: Plan, pod: Node
) -> None:
    opened(route(plan.subnet))
    answers(machines.routed, plan.outside, f"outside {plan.routed}")
    refuses(machines.routed, pod_address(plan))
    opened(route(plan.subnet), uplinks=[_TO_POD])
    answers(machines.routed, pod_address(plan), f"{pod.name} {plan.routed}")
    refuses(machines.far, pod_address(plan))


def test_a_one_to_one_guest_reaches_no_pod_that_others_refuse_and_has_its_public_address_by_an_uplink_alone(
    machines: Topology, opened: Open, plan: Plan, pod: Node, *, legacy: bool
) -> None:
    opened(nat(plan.public, plan.mail))
    refuses(machines.mail, pod_address(plan))
    opened(nat(plan.public, plan.mail), uplinks=[_TO_POD])
    refuses(machines.mail, pod_address(plan))
    let_to_pod(machines, plan, legacy=legacy)
    answers(machines.mail, pod_address(plan), f"{pod.name} {plan.public}")
    opened(nat(plan.public, plan.mail))
    answers(machines.mail, pod_address(plan), f"{pod.name} {plan.mail}")


@pytest.fixture(scope="module")
def pod(wires: Topology) -> Iterator[Node]:
    """Give a pod, as Calico wires one: the host has a route to its address alone."""
    host = wires.host
    with ExitStack() as at_end:
        pod = fresh_node(at_end, "pod")
        host.ip(f"link add {_TO_POD} type veth peer name eth0 netns {pod.namespace}", f"link set {_TO_POD} up")
        at_end.callback(host.ip, f"link del {_TO_POD}")
        for plan in (V4, V6):
            address, gateway = pod_address(plan), pod_address(plan)[:-1] + "1"
            host.ip(address_words(str(ip_network(gateway)), _TO_POD), f"route add {address} dev {_TO_POD}")
            pod.ip(address_words(str(ip_network(address)), "eth0"), "link set eth0 up")
            pod.ip(f"route add default via {gateway} dev eth0 onlink")
        wait_until(pod.is_linked, "the link of the pod carries frames")
        for server in pod.serve(at_end):
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
        yield pod


def pod_address(plan: Plan) -> str:
    return "2001:db8:244::5" if ":" in plan.mail else "10.244.0.5"


def let_to_pod(machines: Topology, plan: Plan, *, legacy: bool) -> None:
    """Let guests open connections to the pod, as an administrator does who wants that."""
    if legacy:
        program = "ip6tables-legacy" if ":" in plan.mail else "iptables-legacy"
        machines.host.run(program, *f"-I FORWARD -i virbr0 -o {_TO_POD} -j ACCEPT".split())
    else:
        machines.host.run("nft", f'insert rule inet theirs forward iifname "virbr0" oifname "{_TO_POD}" accept')


@pytest.mark.parametrize("refusal", ["of its address", "of a port", "of a port behind the gate"])
@pytest.mark.parametrize("kind", ["one to one", "routed"])
def test_a_refusal_stops_what_a_guest_has_open(  # noqa: PLR0913  its cases have that many sides
    machines: Topology, opened: Open, plan: Plan, kind: str, refusal: str, *, legacy: bool
) -> None:
    exposure: Exposure = nat(plan.public, plan.mail, bridge="virbr0")
    guest, address, bridge = machines.mail, plan.mail, "virbr0"
    if kind == "routed":
        let_out(machines, plan, legacy=legacy)
        guest, address, exposure, bridge = machines.routed, plan.routed, route(plan.subnet, let_out=True), "virbr1"
    opened(exposure)
    with guest.connect(plan.outside, PORT, source=address) as connection, connection.makefile("rb") as told:
        assert told.readline().startswith(b"outside ")
        assert tell(connection, told, b"heard\n") == b"heard\n"
        if refusal == "of its address":
            ban(machines, plan, address, legacy=legacy)
        else:
            refuse(machines, plan, legacy=legacy, bridge=bridge, behind=refusal.endswith("gate"))
        opened(exposure)
        connection.settimeout(1)
        with pytest.raises((TimeoutError, ConnectionResetError)):
            tell(connection, told, b"lost\n")


def tell(connection: socket.socket, told: BinaryIO, line: bytes) -> bytes:
    """Send a line, and give what comes back."""
    connection.sendall(line)
    return told.readline()


def ban(machines: Topology, plan: Plan, address: str, *, legacy: bool) -> None:
    """Refuse a guest, as an administrator does by an insert at the head of a forward chain."""
    if legacy:
        program = "ip6tables-legacy" if ":" in plan.mail else "iptables-legacy"
        machines.host.run(program, *f"-I FORWARD -s {address} -j DROP".split())
    else:
        machines.host.run("nft", f"insert rule inet theirs forward {ip(plan)} saddr {address} drop")


def let_out(machines: Topology, plan: Plan, *, legacy: bool) -> None:
    """Let out what routed guests open, and in what answers that, as libvirt does for the subnets of a network."""
    if legacy:
        program = "ip6tables-legacy" if ":" in plan.mail else "iptables-legacy"
        for rule in ("-s {} -i virbr1", "-d {} -o virbr1 -m conntrack --ctstate ESTABLISHED"):
            machines.host.run(program, *f"-I FORWARD {rule.format(plan.subnet)} -j ACCEPT".split())
    else:
        for match in ('iifname "virbr1" {} saddr {}', 'oifname "virbr1" ct state established {} daddr {}'):
            rule = f"insert rule inet theirs forward {match.format(ip(plan), plan.subnet)} accept"
            machines.host.run("nft", "-f", "-", stdin=rule)


def refuse(machines: Topology, plan: Plan, *, legacy: bool, bridge: str = "virbr0", behind: bool = False) -> None:
    """Refuse guests' connections to one port, as an administrator does who keeps them from sending mail.

    The rule names no source: one that does would be a ban, and stay ahead of a gate. It comes first, or `behind` that.
    """
    if legacy:
        program = "ip6tables-legacy" if ":" in plan.mail else "iptables-legacy"
        rule = f"-I FORWARD {1 + behind} -i {bridge} -o eth0 -p tcp --dport {PORT} -j REJECT --reject-with tcp-reset"
        machines.host.run(program, *rule.split())
    else:
        match = f'iifname "{bridge}" oifname "eth0" tcp dport {PORT}'
        where = "add rule inet theirs forward index 0" if behind else "insert rule inet theirs forward"
        machines.host.run("nft", "-f", "-", stdin=f"{where} {match} reject with tcp reset")
