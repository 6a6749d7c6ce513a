"""Real packets through exposures of several kinds at once, and through bridges whose frames pass through netfilter."""

from collections.abc import Iterator

import pytest

from tests.kernel.conftest import Open
from tests.kernel.scene import Plan, answers
from tests.kernel.topology import PORT, Topology
from tests.unit.forwards import forward, nat, route


def test_a_forward_on_every_address_is_not_for_one_that_is_not_the_hosts(
    machines: Topology, opened: Open, plan: Plan
) -> None:
    opened(nat(plan.elsewhere, plan.mail), forward(f"tcp *:{PORT}", f"[{plan.peer}]:{PORT}"))
    answers(machines.outside, plan.elsewhere, f"mail {plan.outside}")
    assert machines.outside.tcp(plan.public, PORT).text == f"peer {plan.outside}"


def test_a_forward_that_masquerades_hides_no_client_of_an_address_that_is_not_the_hosts(
    machines: Topology, opened: Open, plan: Plan
) -> None:
    opened(nat(plan.elsewhere, plan.mail), forward(f"tcp *:{PORT}", f"[{plan.mail}]:{PORT}", masquerade=True))
    assert machines.outside.tcp(plan.elsewhere, PORT).text == f"mail {plan.outside}"
    assert machines.outside.tcp(plan.public, PORT).text == f"mail {plan.gateway}"
    assert machines.peer.tcp(plan.elsewhere, PORT).text == f"mail {plan.gateway}"


def test_a_forward_masquerades_for_one_to_one_guests_too_beside_one_that_does_not(
    machines: Topology, opened: Open, plan: Plan
) -> None:
    opened(
        nat(plan.other, plan.far),
        forward(f"tcp *:{PORT}", f"[{plan.mail}]:{PORT}", masquerade=True),
        forward(f"tcp {shown(plan.public)}:{PORT}", f"[{plan.mail}]:{PORT}"),
    )
    assert machines.far.tcp(plan.host, PORT).text == f"mail {plan.gateway}"
    assert machines.far.tcp(plan.public, PORT).text == f"mail {plan.other}"
    assert machines.outside.tcp(plan.public, PORT).text == f"mail {plan.outside}"
    assert machines.peer.tcp(plan.public, PORT).text == f"mail {plan.gateway}"


def test_a_one_to_one_guest_keeps_its_own_address_where_it_does_not_leave_the_host(
    machines: Topology, opened: Open, plan: Plan
) -> None:
    opened(nat(plan.public, plan.mail), route(plan.subnet))
    answers(machines.mail, plan.routed, f"routed {plan.mail}")


@pytest.fixture
def filtered_bridges(machines: Topology) -> Iterator[Topology]:
    """Let bridged frames pass through netfilter, and guests reach themselves, as the daemon does."""
    _filter_bridges(machines, filtering=1, hairpin="on")
    yield machines
    _filter_bridges(machines, filtering=0, hairpin="off")


def _filter_bridges(machines: Topology, filtering: int, hairpin: str) -> None:
    machines.host.sysctl(*(f"bridge.bridge-nf-call-{name}={filtering}" for name in ("iptables", "ip6tables")))
    for guest in (machines.mail, machines.peer):
        machines.host.run("bridge", "link", "set", "dev", guest.name, "hairpin", hairpin)


def test_guests_keep_their_public_addresses_where_bridges_are_filtered(
    filtered_bridges: Topology, opened: Open, plan: Plan
) -> None:
    mail, peer = filtered_bridges.mail, filtered_bridges.peer
    opened(nat(plan.public, plan.mail), nat(plan.other, plan.peer), forward("tcp *:8080", f"[{plan.mail}]:{PORT}"))
    answers(peer, plan.public, f"mail {plan.other}")
    answers(mail, plan.public, f"mail {plan.public}")
    assert peer.tcp(plan.public, 8080).text == f"mail {plan.other}"


@pytest.mark.parametrize("legacy", [False], indirect=True, ids=["nftables"])
def test_where_the_target_was_taken_away_nothing_is_let_through(machines: Topology, opened: Open, plan: Plan) -> None:
    """The gates let through whatever has the label, and a label cannot be taken back."""
    opened(forward(f"tcp {shown(plan.public)}:{PORT}", f"{shown(plan.mail)}:{PORT}"))
    assert machines.outside.tcp(plan.public, PORT).text == f"mail {plan.outside}"
    assert tracked(machines) == 1
    family = "ip6" if ":" in plan.public else "ip"
    machines.host.run("nft", "flush", "map", family, "kvm_portfwd", "one_address_targets")
    machines.host.run("conntrack", "--flush")
    assert not machines.outside.tcp(plan.public, PORT).text
    assert tracked(machines) == 0


def shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def tracked(machines: Topology) -> int:
    """How many connections to our port are tracked, in either family."""
    listed = [machines.host.run("conntrack", "-L", "-f", family) for family in ("ipv4", "ipv6")]
    return sum(f" dport={PORT} " in line for text in listed for line in text.splitlines())
