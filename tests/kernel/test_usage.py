"""What is counted, by both rule systems: connections and not packets, and those that are open and no others."""

from dataclasses import replace

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.state import Desired
from fwdaemon.netfilter import Backend
from fwdaemon.status.records import UsageReader
from fwdaemon.status.rows import Readings
from tests.kernel.conftest import GATE, GUESTS
from tests.kernel.scene import Plan
from tests.kernel.topology import PORT, Topology
from tests.lab.place import wait_until
from tests.unit.forwards import forward, nat, route


class Counting:
    """Exposures in the kernel, and what was counted of them."""

    def __init__(self, rules: Backend, *exposures: Exposure, legacy: bool) -> None:
        outer, gates = frozenset({"eth0"}), () if legacy else (GATE,)
        self.desired = Desired(guest_subnets=GUESTS, uplinks=outer, gates=gates).having(exposures)
        self._reader = UsageReader(rules.counters)
        rules.apply(self.desired, full=True)

    def read(self) -> Readings:
        return self._reader.read(self.desired)

    def open(self, exposure: Exposure) -> int:
        found = self.read().open
        assert found is not None
        return found.get(exposure, (0, None))[0]


def guest(address: str) -> str:
    return f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"


def test_connections_are_counted_and_not_their_packets(
    machines: Topology, rules: Backend, plan: Plan, *, legacy: bool
) -> None:
    web, other = forward("tcp *:8000-8001", guest(plan.peer)), forward("tcp *:9000", guest(plan.peer))
    web = replace(web, target_ports=replace(web.target_ports, last=PORT + 1))
    mail = nat(plan.public, plan.mail)
    counting = Counting(rules, web, other, mail, route(plan.subnet, "br1"), legacy=legacy)
    for _ in range(3):
        assert machines.outside.tcp(plan.other, 8000).answered
    assert machines.outside.tcp(plan.public, PORT).answered
    assert machines.mail.tcp(plan.outside, PORT).answered
    assert counting.read().connections == {web: 3, other: 0, mail: 2}


def test_only_those_that_are_open_are_open(machines: Topology, rules: Backend, plan: Plan, *, legacy: bool) -> None:
    web = forward("tcp *:8000", guest(plan.peer))
    mail = nat(plan.public, plan.mail)
    counting = Counting(rules, web, mail, legacy=legacy)
    assert machines.outside.tcp(plan.other, 8000).answered
    # The guest's side of it may still be about to close.
    wait_until(lambda: counting.open(web) == 0, "the connection has ended")
    with machines.outside.connect(plan.other, 8000, timeout=5), machines.outside.connect(plan.public, PORT, timeout=5):
        assert counting.open(web) == 1
        assert counting.open(mail) == 1
        assert counting.read().connections == {web: 2, mail: 1}
    wait_until(lambda: counting.open(web) == counting.open(mail) == 0, "the connections have ended")


def test_bytes_are_known_only_where_the_kernel_counts_them(
    machines: Topology, rules: Backend, plan: Plan, *, legacy: bool
) -> None:
    web = forward("tcp *:8000", guest(plan.peer))
    counting = Counting(rules, web, legacy=legacy)
    sizes: list[int | None] = []
    for setting in (0, 1):
        machines.host.sysctl(f"netfilter.nf_conntrack_acct={setting}")
        with machines.outside.connect(plan.other, 8000, timeout=5) as connection:
            assert connection.recv(1)
            found = counting.read().open
            assert found is not None
            sizes.append(found[web][1])
    machines.host.sysctl("netfilter.nf_conntrack_acct=0")
    assert sizes[0] is None
    assert sizes[1]
