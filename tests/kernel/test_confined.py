"""Real packets on a host that forwards only since an exposure needed it: `virbr1` is no bridge of libvirt's here."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family
from fwdaemon.netfilter import Backend
from tests.kernel.conftest import GATE, GUESTS
from tests.kernel.scene import Plan, answers
from tests.kernel.topology import PORT, Topology
from tests.lab.place import PATIENCE
from tests.unit.forwards import forward, nat, route

SILENCE = 0.5
STATE = Desired(guest_subnets=GUESTS, uplinks=frozenset({"eth0"}), inside=frozenset({"virbr0"}))


@pytest.fixture
def state(machines: Topology, plan: Plan, *, legacy: bool) -> Desired:
    """One forward, on a host where nothing else refuses anything."""
    if legacy:
        for program in ("iptables-legacy", "ip6tables-legacy"):
            machines.host.run(program, "-F", "FORWARD")
    else:
        machines.host.run("nft", "flush", "chain", "inet", "theirs", "forward")
    exposure = forward(f"tcp *:{PORT}", f"[{plan.mail}]:{PORT}")
    return replace(STATE, gates=() if legacy else (GATE,), forwards=frozenset({exposure}))


def test_nothing_else_is_forwarded(machines: Topology, rules: Backend, state: Desired, plan: Plan) -> None:
    assert not rules.apply(state, full=True).faults
    assert machines.outside.tcp(plan.far, PORT, timeout=PATIENCE).text == f"far {plan.outside}"
    machines.host.run("conntrack", "--flush")
    assert not rules.apply(confined(state), full=True).faults
    assert machines.outside.tcp(plan.public, PORT, timeout=PATIENCE).text == f"mail {plan.outside}"
    answers(machines.mail, plan.far, f"far {plan.mail}")
    assert machines.far.tcp(plan.mail, PORT, timeout=PATIENCE).answered
    for probe in (machines.outside.tcp, machines.outside.udp):
        assert probe(plan.far, PORT, timeout=SILENCE).outcome == "timed out"
    assert not machines.outside.pings(plan.far)
    assert machines.far.tcp(plan.outside, PORT, timeout=SILENCE).outcome == "timed out"


def test_nothing_else_comes_in_where_forwarding_was_off_on_one_interface(
    machines: Topology, rules: Backend, state: Desired, plan: Plan
) -> None:
    switched = replace(state, switched=frozenset((family, "eth0") for family in Family))
    assert not rules.apply(switched, full=True).faults
    assert not rules.confined()
    assert rules.switched() == {(Family.of(ip_address(plan.far)), "eth0")}
    assert machines.outside.tcp(plan.public, PORT, timeout=PATIENCE).text == f"mail {plan.outside}"
    answers(machines.mail, plan.far, f"far {plan.mail}")
    # What comes in elsewhere goes where it went before.
    assert machines.far.tcp(plan.mail, PORT, timeout=PATIENCE).answered
    assert machines.far.tcp(plan.outside, PORT, timeout=PATIENCE).answered
    for probe in (machines.outside.tcp, machines.outside.udp):
        assert probe(plan.far, PORT, timeout=SILENCE).outcome == "timed out"
    assert not machines.outside.pings(plan.far)
    assert not rules.apply(switched, full=True).changed
    outside = replace(switched, forwards=frozenset(), nats=frozenset({nat(plan.other, plan.far, bridge="virbr1")}))
    assert not rules.apply(outside, full=True).faults
    answers(machines.outside, plan.other, f"far {plan.outside}")
    answers(machines.far, plan.outside, f"outside {plan.other}")
    assert not rules.apply(state, full=True).faults
    assert not rules.switched()


INTO = frozenset((family, "virbr1") for family in Family)


def test_without_libvirts_rules_an_isolated_network_is_reached_by_exposures_alone(
    machines: Topology, rules: Backend, state: Desired, plan: Plan
) -> None:
    """`virbr1` is the bridge of one here, as after all rules were flushed: libvirt does not put its own back."""
    exposure = forward(f"tcp *:{PORT}", f"[{plan.far}]:{PORT}")
    isolated = replace(state, forwards=frozenset({exposure}), closed=INTO)
    assert not rules.apply(confined(isolated), full=True).faults
    assert machines.outside.tcp(plan.public, PORT, timeout=PATIENCE).text == f"far {plan.outside}"
    for elsewhere in (machines.outside, machines.mail):
        assert elsewhere.tcp(plan.far, PORT, timeout=SILENCE).outcome == "timed out"
        assert not elsewhere.pings(plan.far)
    for to in (plan.outside, plan.mail):
        assert machines.far.tcp(to, PORT, timeout=SILENCE).outcome == "timed out"
    machines.host.run("conntrack", "--flush")
    outward = replace(isolated, forwards=frozenset(), nats=frozenset({nat(plan.other, plan.far, bridge="virbr1")}))
    assert not rules.apply(confined(outward), full=True).faults
    answers(machines.outside, plan.other, f"far {plan.outside}")
    answers(machines.far, plan.outside, f"outside {plan.other}")
    assert machines.outside.tcp(plan.far, PORT, timeout=SILENCE).outcome == "timed out"


def test_without_libvirts_rules_a_hidden_network_is_left_and_not_entered(
    machines: Topology, rules: Backend, state: Desired, plan: Plan
) -> None:
    hidden = replace(state, inside=frozenset({"virbr0", "virbr1"}), closed=INTO)
    switched = replace(hidden, switched=frozenset((family, "eth0") for family in Family))
    for held in (confined(hidden), switched):
        assert not rules.apply(held, full=True).faults
        assert machines.outside.tcp(plan.public, PORT, timeout=PATIENCE).text == f"mail {plan.outside}"
        assert machines.far.tcp(plan.outside, PORT, timeout=PATIENCE).answered
        assert machines.far.tcp(plan.mail, PORT, timeout=PATIENCE).answered
        assert machines.outside.tcp(plan.far, PORT, timeout=SILENCE).outcome == "timed out"
        assert not machines.outside.pings(plan.far)
        # Into `virbr0`, everybody is let, as libvirt does for networks of type route and open.
        assert machines.outside.tcp(plan.mail, PORT, timeout=PATIENCE).answered
        machines.host.run("conntrack", "--flush")


def test_a_route_leads_into_a_hidden_network(machines: Topology, rules: Backend, state: Desired, plan: Plan) -> None:
    exposure = route(plan.subnet, "virbr1")
    hidden = replace(
        state, inside=frozenset({"virbr1"}), closed=INTO, forwards=frozenset(), routes=frozenset({exposure})
    )
    assert not rules.apply(confined(hidden), full=True).faults
    answers(machines.outside, plan.routed, f"routed {plan.outside}")
    assert machines.routed.tcp(plan.outside, PORT, source=plan.routed, timeout=PATIENCE).text.startswith("outside ")
    assert machines.outside.tcp(plan.far, PORT, timeout=SILENCE).outcome == "timed out"


def test_what_an_exposure_is_for_passes_where_a_guest_is_plugged_in_elsewhere(
    machines: Topology, rules: Backend, state: Desired, plan: Plan
) -> None:
    exposure = nat(plan.other, plan.far, bridge="virbr1")
    assert not rules.apply(confined(replace(state, forwards=frozenset(), nats=frozenset({exposure}))), full=True).faults
    answers(machines.outside, plan.other, f"far {plan.outside}")
    answers(machines.far, plan.outside, f"outside {plan.other}")
    assert machines.routed.tcp(plan.outside, PORT, timeout=SILENCE).outcome == "timed out"


def test_routed_guests_on_a_bridge_of_the_hosts_own_are_reached_and_reach_out(
    machines: Topology, rules: Backend, state: Desired, plan: Plan
) -> None:
    exposure = route(plan.subnet, "virbr1")
    assert not rules.apply(
        confined(replace(state, forwards=frozenset(), routes=frozenset({exposure}))), full=True
    ).faults
    answers(machines.outside, plan.routed, f"routed {plan.outside}")
    assert machines.routed.tcp(plan.outside, PORT, source=plan.routed, timeout=PATIENCE).text.startswith("outside ")
    assert machines.far.tcp(plan.outside, PORT, timeout=SILENCE).outcome == "timed out"
    assert machines.outside.tcp(plan.far, PORT, timeout=SILENCE).outcome == "timed out"


def test_the_kernel_tells_where_the_host_is_confined(rules: Backend, state: Desired) -> None:
    assert not rules.apply(state, full=True).faults
    assert not rules.confined()
    assert not rules.apply(confined(state), full=True).faults
    assert rules.confined() == set(Family)
    assert not rules.apply(confined(state), full=True).changed
    assert rules.apply(state, full=True).changed
    assert not rules.confined()


def confined(state: Desired) -> Desired:
    return replace(state, confined=frozenset(Family), kept=frozenset(Family))
