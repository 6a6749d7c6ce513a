"""Real packets of who may connect and who may not: sets of sources, and limits for each source."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from fwdaemon.core.admission import Admission, Rate, SourceSet
from fwdaemon.core.exposures import Exposure
from fwdaemon.core.state import Desired, Dropped
from fwdaemon.core.types import Origin, Until
from fwdaemon.explain.gather import Kernel
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.netfilter import Backend
from fwdaemon.nftables.model import TABLE_NAME
from tests.kernel.conftest import GATE, GUESTS, HOMES
from tests.kernel.scene import V4, Plan, answers
from tests.kernel.topology import PORT, Topology, address_words
from tests.lab.command import run
from tests.lab.probe import Answer, Outcome
from tests.unit.forwards import forward, nat, route

HERE = Origin(Path("/etc/portfwd.toml"), 1)
SHORT = 0.3
# So many sources are counted by a limit at once.
MOST = 65_535

Admit = Callable[..., None]


@dataclass
class Counted:
    """The rule system, what was asked of it, and what it counted."""

    rules: Backend
    state: Desired = field(default_factory=Desired)

    def dropped(self) -> Dropped:
        return self.rules.dropped(self.state)


@pytest.fixture
def counted(rules: Backend) -> Counted:
    return Counted(rules)


@pytest.fixture
def admit(machines: Topology, counted: Counted, *, legacy: bool) -> Admit:
    """Open something with sets of these names, and deny to all what is `barred`."""
    del machines
    nothing = Desired(guest_subnets=GUESTS, homes=HOMES, uplinks=frozenset({"eth0"}), gates=() if legacy else (GATE,))

    def open_(*exposures: Exposure, sets: tuple[SourceSet, ...] = (), barred: Admission | None = None) -> None:
        state = replace(nothing.having(exposures), sets=sets, barred=barred)
        counted.state = state
        assert not counted.rules.apply(state, full=True).faults
        assert not counted.rules.apply(state, full=True).changed

    return open_


@pytest.fixture
def third(machines: Topology, plan: Plan) -> Iterator[str]:
    """Give the machine outside one more address, which is not in the set that has its first one."""
    address = {"198.51.100.2": "198.51.100.77", "2001:db8::2": "2001:db8::77"}[plan.outside]
    machines.outside.ip(address_words(address, "eth0"))
    yield address
    machines.outside.ip(f"address delete {ip_network(address)} dev eth0")


def named(name: str, *networks: str) -> SourceSet:
    return SourceSet.of(name, HERE, map(ip_network, networks))


def tcp(machines: Topology, address: str, source: str | None = None) -> Answer:
    return machines.outside.tcp(address, PORT, source=source, timeout=SHORT)


def web(plan: Plan, admission: Admission | None = None, sources: tuple[str, ...] = ()) -> Exposure:
    made = forward(f"tcp *:{PORT}", f"[{plan.mail}]:{PORT}", sources=sources)
    return replace(made, admission=admission)


def over(counted: Counted, served: Exposure, source: str) -> list[int | None]:
    """Give what is told of the sources that are limited, if that is this one, and `explain` says the same of it."""
    by_source = counted.dropped().by_source.get(served.counted_as, {})
    assert by_source.keys() == {ip_address(source)}
    told = Kernel(SystemRunner()).over_limit(counted.state, served.counted_as, ip_address(source))
    assert [*by_source.values()] == [told]
    return [told]


DROPPED = Answer(Outcome.TIMED_OUT)


def test_who_is_in_a_set_that_is_denied_is_dropped_and_others_are_served(
    machines: Topology, admit: Admit, plan: Plan, third: str, counted: Counted
) -> None:
    admit(web(plan, Admission(denied=("bad",))), sets=(named("bad", plan.outside),))
    assert tcp(machines, plan.public, plan.outside) == DROPPED
    assert counted.dropped().by_set["bad"] >= 1
    assert tcp(machines, plan.public, third).text == f"mail {third}"
    assert machines.peer.tcp(plan.public, PORT).text.startswith("mail ")


def test_a_network_of_any_length_is_found(machines: Topology, admit: Admit, plan: Plan, third: str) -> None:
    wide = ip_network((plan.outside, 26 if "." in plan.outside else 122), strict=False)
    admit(web(plan, Admission(denied=("bad",))), sets=(named("bad", str(wide), "192.0.2.1", "2001:db8:9::9"),))
    assert tcp(machines, plan.public, plan.outside) == DROPPED
    assert tcp(machines, plan.public, third).answered


def test_a_set_that_changes_is_changed_alone(machines: Topology, admit: Admit, plan: Plan) -> None:
    served = web(plan, Admission(denied=("bad",)))
    for network, is_denied in (plan.outside, True), ("192.0.2.9", False), (str(ip_network(plan.outside)), True):
        admit(served, sets=(named("bad", network),))
        assert (tcp(machines, plan.public, plan.outside) == DROPPED) is is_denied


def test_only_who_is_in_a_set_of_sources_is_served(machines: Topology, admit: Admit, plan: Plan, third: str) -> None:
    office, other = named("office", plan.outside), str(ip_network(third))
    admit(web(plan, Admission(sets=("office",))), sets=(office,))
    assert tcp(machines, plan.public, plan.outside).text == f"mail {plan.outside}"
    assert tcp(machines, plan.public, third).text == f"host {third}"
    admit(web(plan, Admission(sources=(ip_network(other),), sets=("office",))), sets=(office,))
    assert tcp(machines, plan.public, third).text == f"mail {third}"


def test_an_address_that_is_denied_is_dropped(machines: Topology, admit: Admit, plan: Plan, third: str) -> None:
    admit(web(plan, Admission(deny=(ip_network(plan.outside),))))
    assert tcp(machines, plan.public, plan.outside) == DROPPED
    assert tcp(machines, plan.public, third).text == f"mail {third}"


def test_who_is_barred_reaches_nothing_of_ours_and_all_that_is_the_hosts(
    machines: Topology, admit: Admit, plan: Plan, third: str
) -> None:
    narrow = forward(f"tcp [{plan.public}]:{PORT}", f"[{plan.mail}]:{PORT}")
    exposures = narrow, nat(plan.other, plan.peer), route(plan.subnet)
    admit(*exposures, sets=(named("bad", plan.outside),), barred=Admission(denied=("bad",)))
    for address in (plan.public, plan.other, plan.routed):
        assert tcp(machines, address, plan.outside) == DROPPED
        assert tcp(machines, address, third).answered
    assert tcp(machines, plan.host, plan.outside).text == f"host {plan.outside}"
    assert machines.outside.udp(plan.public, PORT, source=plan.outside).text == f"host {plan.outside}"
    admit(web(plan), sets=(named("bad", plan.outside),), barred=Admission(denied=("bad",)))
    assert tcp(machines, plan.host, plan.outside) == DROPPED


def test_what_is_open_for_a_while_denies_too_and_is_for_sets(
    machines: Topology, admit: Admit, plan: Plan, third: str
) -> None:
    hour = Until(int(time.time()) + 3600, time.clock_gettime(time.CLOCK_BOOTTIME) + 3600)
    opened = replace(forward(f"tcp *:{PORT}", f"[{plan.mail}]:{PORT}"), until=hour)
    bad = named("bad", plan.outside)
    admit(opened, sets=(bad,), barred=Admission(denied=("bad",)))
    assert tcp(machines, plan.public, plan.outside) == DROPPED
    assert tcp(machines, plan.public, third).text == f"mail {third}"
    admit(replace(opened, admission=Admission(sets=("bad",))), sets=(bad,))
    assert tcp(machines, plan.public, plan.outside).text == f"mail {plan.outside}"
    assert tcp(machines, plan.public, third).text == f"host {third}"


def test_one_to_one_addresses_and_routes_deny_by_themselves(
    machines: Topology, admit: Admit, plan: Plan, third: str
) -> None:
    bad = Admission(denied=("bad",))
    exposures = replace(nat(plan.other, plan.mail), admission=bad), replace(route(plan.subnet), admission=bad)
    admit(
        *exposures, forward(f"tcp [{plan.public}]:{PORT}", f"[{plan.peer}]:{PORT}"), sets=(named("bad", plan.outside),)
    )
    for address in (plan.other, plan.routed):
        assert tcp(machines, address, plan.outside) == DROPPED
        assert tcp(machines, address, third).answered
    answers(machines.mail, plan.outside, f"outside {plan.other}")
    assert tcp(machines, plan.public, plan.outside).answered


def test_whom_a_one_to_one_address_or_a_route_does_not_name_reaches_neither_guest_nor_host_there(
    machines: Topology, admit: Admit, plan: Plan, third: str, counted: Counted
) -> None:
    office = Admission(sources=(ip_network(plan.outside),))
    admit(replace(nat(plan.other, plan.mail), admission=office), replace(route(plan.subnet), admission=office))
    for address in (plan.other, plan.routed):
        assert tcp(machines, address, plan.outside).answered
        assert tcp(machines, address, third) == DROPPED
    answers(machines.mail, third, f"outside {plan.other}")
    dropped = counted.dropped().by_exposure
    assert all(dropped[exposure] >= 1 for exposure in counted.state.exposures)


def test_all_ports_of_an_entry_share_its_limits(machines: Topology, admit: Admit, plan: Plan, third: str) -> None:
    once = Admission(rate=Rate(1, "day"), entry="one")
    other = replace(once, entry="other")
    admit(
        web(plan, once),
        replace(forward(f"tcp *:{PORT + 1}", f"[{plan.mail}]:{PORT}"), admission=once),
        replace(forward(f"tcp *:{PORT + 2}", f"[{plan.mail}]:{PORT}"), admission=other),
    )

    def is_served(port: int, source: str = plan.outside) -> bool:
        return machines.outside.tcp(plan.public, port, source=source, timeout=SHORT).answered

    assert [is_served(port) for port in (PORT, PORT + 1, PORT + 2)] == [True, False, True]
    assert is_served(PORT + 1, third)


def test_new_connections_over_the_rate_are_dropped_and_counted_and_others_may_go_on(
    machines: Topology, admit: Admit, plan: Plan, third: str, counted: Counted
) -> None:
    admit(web(plan, Admission(rate=Rate(2, "day"))))
    assert [tcp(machines, plan.public, plan.outside).answered for _ in range(3)] == [True, True, False]
    assert tcp(machines, plan.public, third).answered
    (served,) = counted.state.forwards
    assert counted.dropped().by_exposure[served] >= 1
    (number,) = over(counted, served, plan.outside)
    assert number is None or number >= 1
    assert counted.rules.counters(counted.state)[served] == 3


def test_connections_over_the_most_that_may_be_open_are_dropped_until_one_ends(
    machines: Topology, admit: Admit, plan: Plan, third: str, counted: Counted
) -> None:
    admit(web(plan, Admission(max_open=2)))
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(machines.outside.connect(plan.public, PORT, source=plan.outside))
        assert tcp(machines, plan.public, plan.outside) == DROPPED
        assert tcp(machines, plan.public, third).answered
        (served,) = counted.state.forwards
        assert over(counted, served, plan.outside)
    machines.host.run("conntrack", "-F")
    assert tcp(machines, plan.public, plan.outside).answered


FORGED = ip_address("100.64.0.0")
# First packets of TCP: to an address and a port, from this source and the next ones, so many.
FLOOD = """
import socket, struct, sys
to, port, first, number = socket.inet_aton(sys.argv[1]), *map(int, sys.argv[2:])
head = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0)
sending = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for client in range(number):
    source = struct.pack("!I", first + client)
    fields = [1024, port, 0, 0, 0, 0, 0x5002, 65535, 0, 0]
    total = sum(struct.unpack("!4H", source + to)) + 6 + 20 + sum(fields)
    fields[8] = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    sending.sendto(head + source + to + struct.pack("!10H", *fields), (sys.argv[1], 0))
"""


def test_a_flood_from_more_sources_than_a_limit_counts_takes_no_more_memory_and_cuts_off_nobody_who_is_counted(
    machines: Topology, admit: Admit, counted: Counted
) -> None:
    """Who comes later is not limited in nftables, and not served by iptables-legacy."""
    rarely = Admission(rate=Rate(4, "day"), entry="one")
    other = replace(forward(f"tcp *:{PORT + 1}", f"[{V4.mail}]:{PORT + 1}"), admission=rarely)
    admit(web(V4, rarely), other)
    assert machines.outside.tcp(V4.public, PORT, source=V4.outside).answered
    flood(machines, counted, other)
    assert len(sources_counted(counted, other)) == MOST
    assert not counted.dropped().by_source.get(other.counted_as)
    assert machines.outside.tcp(V4.public, PORT, source=V4.outside).answered
    if counted.rules.name == "nftables":
        assert all(machines.peer.tcp(V4.public, PORT).answered for _ in range(5))
    else:
        assert machines.peer.tcp(V4.public, PORT, timeout=SHORT) == DROPPED
    assert len(sources_counted(counted, other)) == MOST


def flood(machines: Topology, counted: Counted, exposure: Exposure) -> None:
    """Have as many sources counted as fit, and send from more; those that a program can add cost less than packets."""
    number = MOST + 100
    if counted.rules.name == "nftables":
        sources = ", ".join(str(FORGED + client) for client in range(MOST - 100))
        where = f"ip {TABLE_NAME} rate.{exposure.counted_as}"
        machines.host.run("nft", "-f", "-", stdin=f"add element {where} {{ {sources} }}\n")
        number = 200
    machines.outside.run("python3", "-c", FLOOD, V4.public, str(PORT + 1), str(int(FORGED) + 1_000_000), str(number))


def sources_counted(counted: Counted, exposure: Exposure) -> list[str]:
    if counted.rules.name == "nftables":
        name = f"rate.{exposure.counted_as}"
        listed = json.loads(run(["nft", "-j", "list", "set", "ip", TABLE_NAME, name]).stdout)
        return [str(element) for element in listed["nftables"][-1]["set"]["elem"]]
    (file,) = Path("/proc/thread-self/net/ipt_hashlimit").iterdir()
    return file.read_text().splitlines()
