"""Real packets through the rules of either backend, in network namespaces: 1:1 NATs and routes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from fwdaemon.core.types import Protocol
from fwdaemon.netfilter import Backend
from fwdaemon.resolve.flows import Flow
from tests.kernel.conftest import Open
from tests.kernel.scene import V4, V6, Plan, answers, count, holding, refuses
from tests.kernel.topology import PORT, Topology
from tests.lab.place import wait_until
from tests.unit.forwards import forward, nat, route


def test_without_rules_nothing_is_reachable(machines: Topology, plan: Plan) -> None:
    refuses(machines.outside, plan.mail)
    refuses(machines.outside, plan.routed)
    refuses(machines.peer, plan.outside)
    refuses(machines.routed, plan.outside)
    answers(machines.outside, plan.public, f"host {plan.outside}")


# --- 1:1 NATs --------------------------------------------------------------------------------------------------------


def test_a_public_address_is_the_guest(machines: Topology, opened: Open, plan: Plan) -> None:
    opened(nat(plan.public, plan.mail))
    answers(machines.outside, plan.public, f"mail {plan.outside}")
    answers(machines.outside, plan.other, f"host {plan.outside}")
    refuses(machines.outside, plan.mail)
    refuses(machines.outside, plan.peer)


def test_a_public_address_need_not_be_the_hosts(machines: Topology, opened: Open, plan: Plan) -> None:
    opened(nat(plan.elsewhere, plan.mail))
    answers(machines.outside, plan.elsewhere, f"mail {plan.outside}")
    answers(machines.mail, plan.outside, f"outside {plan.elsewhere}")
    assert machines.host.tcp(plan.elsewhere, PORT).text.startswith("mail ")


def test_the_guest_leaves_with_its_public_address(machines: Topology, opened: Open, plan: Plan) -> None:
    opened(nat(plan.public, plan.mail))
    answers(machines.mail, plan.outside, f"outside {plan.public}")
    refuses(machines.peer, plan.outside)
    refuses(machines.mail, plan.far)


def test_with_two_public_addresses_the_guest_leaves_with_the_first(
    machines: Topology, opened: Open, plan: Plan
) -> None:
    opened(nat(plan.other, plan.mail), nat(plan.public, plan.mail))
    for public in (plan.public, plan.other):
        answers(machines.outside, public, f"mail {plan.outside}")
    answers(machines.mail, plan.outside, f"outside {plan.public}")


def test_guests_reach_each_other_and_themselves_by_public_addresses(
    machines: Topology, opened: Open, plan: Plan
) -> None:
    opened(nat(plan.public, plan.mail))
    answers(machines.peer, plan.public, f"mail {plan.gateway}")
    answers(machines.mail, plan.public, f"mail {plan.public}")
    opened(nat(plan.public, plan.mail), nat(plan.other, plan.far))
    answers(machines.far, plan.public, f"mail {plan.other}")
    answers(machines.mail, plan.other, f"far {plan.public}")


def test_the_host_reaches_the_guest_by_its_public_address(machines: Topology, opened: Open, plan: Plan) -> None:
    opened(nat(plan.public, plan.mail))
    answers(machines.host, plan.public, f"mail {plan.public}")


@pytest.mark.parametrize("somewhere", [True, False])
def test_a_forward_goes_before_a_one_to_one_nat(
    machines: Topology, opened: Open, plan: Plan, *, somewhere: bool
) -> None:
    listen = f"[{plan.public}]" if somewhere else "*"
    opened(nat(plan.public, plan.mail), forward(f"tcp {listen}:{PORT}", f"[{plan.peer}]:{PORT}"))
    assert machines.outside.tcp(plan.public, PORT).text == f"peer {plan.outside}"
    assert machines.outside.udp(plan.public, PORT).text == f"mail {plan.outside}"


def test_the_host_still_answers_for_the_address_on_its_link(machines: Topology, opened: Open) -> None:
    """Neighbour discovery asks the address itself when it knows it, and no NAT may take that."""
    opened(nat(V6.public, V6.mail))
    answers(machines.outside, V6.public, f"mail {V6.outside}")
    outside = machines.outside
    outside.run("ip", "neighbour", "change", V6.public, "dev", "eth0", "nud", "probe")
    wait_until(
        lambda: "REACHABLE" in outside.run("ip", "neighbour", "show", V6.public), "the neighbour confirms itself"
    )


PASSED = """
table ip watch {
    counter passed { }
    chain forward {
        type filter hook forward priority 10; policy accept;
        ip saddr 192.168.122.50 counter name passed
    }
}
"""


def test_nobody_outside_is_taken_for_the_guest(machines: Topology, opened: Open) -> None:
    machines.host.run("nft", "-f", "-", stdin=PASSED)
    opened(nat(V4.public, V4.mail))
    answers(machines.mail, V4.outside, f"outside {V4.public}")
    before = count(machines, "passed")
    with holding(machines.outside, V4.mail):
        machines.outside.udp("192.0.2.1", PORT, source=V4.mail, timeout=0.01)
        answers(machines.outside, V4.other, f"host {V4.outside}")
    assert count(machines, "passed") == before > 0


# --- routes ----------------------------------------------------------------------------------------------------------


def test_a_routed_guest_is_reached_and_reaches_out(machines: Topology, opened: Open, plan: Plan) -> None:
    opened(route(plan.subnet))
    answers(machines.outside, plan.routed, f"routed {plan.outside}")
    answers(machines.routed, plan.outside, f"outside {plan.routed}")
    answers(machines.peer, plan.routed, f"routed {plan.peer}")


def test_a_routed_guest_gets_nowhere_else(machines: Topology, opened: Open, plan: Plan) -> None:
    opened(route(plan.subnet))
    refuses(machines.routed, plan.mail)
    refuses(machines.far, plan.outside)
    refuses(machines.outside, plan.far)


def test_a_routed_address_counts_on_its_own_bridge_only(machines: Topology, opened: Open, plan: Plan) -> None:
    opened(route(plan.subnet))
    with astray(machines, plan.astray):
        assert machines.host.tcp(plan.astray, PORT).text.startswith("peer ")
        refuses(machines.outside, plan.astray)
        assert machines.peer.tcp(plan.outside, PORT, source=plan.astray).outcome == "refused"


@contextmanager
def astray(machines: Topology, address: str) -> Iterator[None]:
    """Lead a routed address to a guest on another bridge."""
    machines.host.ip(f"route add {ip_network(address)} dev virbr0")
    try:
        with holding(machines.peer, address):
            yield
    finally:
        machines.host.ip(f"route delete {ip_network(address)} dev virbr0")


# --- connections that ended ------------------------------------------------------------------------------------------

_FROM_A_PORT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=9, source_address=("", int(sys.argv[3]))):
        print("connected")
except ConnectionRefusedError:
    print("refused")
"""


@pytest.mark.parametrize("number", [1, 3000])
def test_what_a_guest_still_sends_is_refused_however_many_connections_ended(
    machines: Topology, opened: Open, rules: Backend, plan: Plan, number: int
) -> None:
    mail, outside = ip_address(plan.mail), ip_address(plan.outside)
    opened(nat(plan.public, plan.mail))
    ended = Flow(Protocol.TCP, outside, ip_address(plan.public), 4000, mail, 4000, outside, PORT)
    others = (replace(ended, client_port=1000 + other) for other in range(1, number))
    rules.refuse([ended, *others])

    def sent_from(port: int) -> str:
        return machines.mail.run(sys.executable, "-c", _FROM_A_PORT, plan.outside, str(PORT), str(port)).strip()

    assert sent_from(4000) == "refused"
    assert sent_from(4001) == "connected"
