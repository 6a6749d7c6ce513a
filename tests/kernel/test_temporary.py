"""What is open for a while ends in the kernel, by either clock, without a daemon."""

import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

from fwdaemon.core.exposures import Forward
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Until
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.nftables.backend import NftablesBackend
from tests.kernel.conftest import Open
from tests.kernel.scene import Plan
from tests.kernel.topology import PORT, Topology
from tests.lab.place import wait_until
from tests.unit.forwards import forward

LONG_S = 3600


def ends(*, wall: int = LONG_S, boottime: float = LONG_S) -> Until:
    """Give an end in so many seconds by each clock; one is behind where the other was set."""
    return Until(int(time.time()) + wall, time.clock_gettime(time.CLOCK_BOOTTIME) + boottime)


def is_open(machines: Topology, address: str) -> Callable[[], bool]:
    return lambda: machines.outside.tcp(address, PORT).text.startswith("mail ")


def test_what_is_open_for_a_while_ends_by_the_clock_on_the_wall(machines: Topology, opened: Open, plan: Plan) -> None:
    """So it does where that was set ahead."""
    opened(replace(forward(f"tcp *:{PORT}", f"[{plan.mail}]:{PORT}"), until=ends(wall=4)))
    assert machines.outside.tcp(plan.public, PORT).text == f"mail {plan.outside}"
    wait_until(lambda: not is_open(machines, plan.public)(), "it is closed")


def test_it_ends_by_the_other_clock(machines: Topology, opened: Open, plan: Plan) -> None:
    """So it does where the one on the wall was put back."""
    listen = f"[{plan.public}]" if ":" in plan.public else plan.public
    opened(replace(forward(f"tcp {listen}:{PORT}", f"[{plan.mail}]:{PORT}"), until=ends(boottime=2)))
    assert is_open(machines, plan.public)()
    wait_until(lambda: not is_open(machines, plan.public)(), "it is closed")


def test_a_range_ends_too_and_what_stays_open_beside_it_does_not(machines: Topology, opened: Open, plan: Plan) -> None:
    """Two forwards of one piece of ports are distinguished by their sources, and have one element."""
    there = f"[{plan.mail}]:{PORT}-{PORT + 1}"
    ranged = forward(f"tcp *:{PORT}-{PORT + 1}", there, sources=(f"{plan.outside}/{plan_bits(plan)}",))
    staying = forward(f"tcp *:{PORT}-{PORT + 1}", f"[{plan.far}]:{PORT}-{PORT + 1}", sources=(f"{plan.peer}",))
    opened(replace(ranged, until=ends(wall=3)), staying)
    assert machines.outside.tcp(plan.public, PORT).text == f"mail {plan.outside}"
    wait_until(lambda: not is_open(machines, plan.public)(), "it is closed")
    assert machines.peer.tcp(plan.public, PORT).text.startswith("far ")


def plan_bits(plan: Plan) -> int:
    return int(ip_address(plan.outside).max_prefixlen)


def opening(until: Until) -> Desired:
    found: Forward = replace(forward("tcp *:8080", "192.168.122.50:80"), until=until)
    return Desired(frozenset({found}))


def test_what_counts_down_is_no_difference(runner: SystemRunner) -> None:
    backend, desired = NftablesBackend(runner), opening(ends())
    assert backend.apply(desired, full=True).changed
    for _ in range(2):
        result = backend.apply(replace(desired), full=True)
        assert (result.changed, result.damaged, result.mended) == (False, frozenset(), frozenset())
    assert not NftablesBackend(runner).apply(desired, full=True).changed


def test_an_element_that_was_taken_away_is_put_back_with_what_is_left(runner: SystemRunner) -> None:
    backend, desired = NftablesBackend(runner), opening(ends())
    backend.apply(desired, full=True)
    for damage in ("flush set ip kvm_portfwd every_address_open", "delete table ip kvm_portfwd"):
        runner.run("nft", "-f", "-", stdin=f"{damage}\n")
        result = backend.apply(desired, full=True)
        assert result.damaged == desired.forwards
        listed = runner.run("nft", "list", "set", "ip", "kvm_portfwd", "every_address_open").stdout
        assert "timeout 59m59s" in listed or "timeout 1h" in listed


def test_another_end_is_written_and_one_that_is_over_can_be_taken_away(runner: SystemRunner) -> None:
    backend = NftablesBackend(runner)
    backend.apply(opening(ends(boottime=0.01)), full=True)
    wait_until(lambda: "elements" not in _listed(runner), "the element has gone")
    assert backend.apply(opening(later := ends()), full=False).changed
    assert f"until {later.wall} or {later.boottime:.0f}" in _listed(runner)
    backend.apply(opening(ends(boottime=0.01)), full=False)
    wait_until(lambda: "elements" not in _listed(runner), "the element has gone")
    assert backend.apply(Desired(), full=False).changed


def _listed(runner: SystemRunner) -> str:
    return runner.run("nft", "list", "set", "ip", "kvm_portfwd", "every_address_open").stdout
