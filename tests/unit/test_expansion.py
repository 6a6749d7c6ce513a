"""What patterns and automatic ports come to: who gets which port, keeps it, and who waits."""

import json
from collections.abc import Collection, Iterable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon import config as configuration
from fwdaemon.audit import causes
from fwdaemon.config.model import Config
from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    GuestInterface,
    Inventory,
    LearnedAddress,
    Occupied,
)
from fwdaemon.core.report import Cause, Reason, ReasonKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import PortRange, Protocol
from fwdaemon.errors import ConfigError
from fwdaemon.resolve.expansion import KEPT_FOR_S, Assignments, AutoPort, Before, Held, Pool, aged
from fwdaemon.resolve.placement import Placer, desired_state
from fwdaemon.resolve.snapshot import Grace, Stop
from tests.unit.test_placing import DEFAULT, HOST

HEAD = '[daemon]\nauto_ports = "20000-20009"\n'


def entry(domain: str, *ports: str, more: str = "") -> str:
    return f"[[forward]]\ndomain = '{domain}'\nports = {json.dumps(ports)}\n{more}\n"


def domain(number: int, name: str = "", *, running: bool = True, instance: int = 0) -> Domain:
    learned = (LearnedAddress(ip_address(f"192.168.122.{100 + number}"), AddressSource.LEASE),)
    nic = GuestInterface(f"52:54:00:00:00:{number:02x}", "default", "virbr0", f"vnet{number}", learned)
    found = Domain(name or f"ci-{number}", UUID(int=number), running, (nic,) if running else ())
    return replace(found, instance=instance or number) if running else found


def host(*domains: Domain) -> Inventory:
    return Inventory(domains, (DEFAULT,), (HOST,))


def config(text: str) -> Config:
    return configuration.parse({Path("portfwd.toml"): HEAD + text})


def lines(desired: Desired) -> list[str]:
    return sorted(f"{item.domain}: {item.listens_at()} -> {item.leads_to()}" for item in desired.forwards)


def reasons(desired: Desired) -> list[str]:
    return [f"{item.owner.name}: {causes.why(item.reason)}" for item in desired.waiting]


def test_a_pattern_is_every_running_domain_of_such_a_name() -> None:
    domains = domain(1), domain(2, running=False), domain(3, "CI-3"), domain(4, "web")
    desired = desired_state(config(entry("ci-*", "8000-8001:80-81")), host(*domains))
    assert lines(desired) == ["ci-1: tcp *:8000-8001 -> 192.168.122.101:80-81"]
    assert reasons(desired) == ["ci-2: the domain is not running"]


@pytest.mark.parametrize("name", ["ci*", "[x", "a?b", 'a"; } flush ruleset\n*', "[[x]]"])
def test_a_name_with_signs_of_a_pattern_is_written_in_brackets_or_by_its_uuid(name: str) -> None:
    escaped = name.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")
    quoted = '"' + escaped.replace('"', '\\"').replace("\n", "\\n") + '"'
    others = domain(2, "ci-2"), domain(3, "a.b"), domain(4, "x")
    text = f'[[forward]]\ndomain = {quoted}\nports = ["80"]\n'
    assert lines(desired_state(config(text), host(domain(1, name), *others)))[0].endswith("-> 192.168.122.101:80")
    assert len(lines(desired_state(config(text), host(domain(1, name), *others)))) == 1
    by_uuid = entry(str(UUID(int=1)), "80")
    assert len(lines(desired_state(config(by_uuid), host(domain(1, name), *others)))) == 1


def test_an_entry_by_name_goes_before_a_pattern_even_while_its_domain_is_off() -> None:
    text = entry("ci-*", "80", "81") + entry("ci-9", "80:8080")
    for running in (False, True):
        desired = desired_state(config(text), host(domain(1), domain(9, running=running)))
        assert "ci-1: tcp *:81 -> 192.168.122.101:81" in lines(desired)
        assert not any(line.startswith("ci-1: tcp *:80 ") for line in lines(desired))
        assert "ci-1: port 80 is claimed by domain ci-9 (portfwd.toml:9)" in reasons(desired)


def test_who_came_first_keeps_a_port_and_the_next_one_gets_it_when_it_goes() -> None:
    placer, read = Placer({}), config(entry("ci-*", "80"))
    assert lines(placer.place(read, host(domain(2)))) == ["ci-2: tcp *:80 -> 192.168.122.102:80"]
    both = placer.place(read, host(domain(1), domain(2)))
    assert lines(both) == ["ci-2: tcp *:80 -> 192.168.122.102:80"]
    assert reasons(both) == ["ci-1: port 80 is claimed by domain ci-2 (portfwd.toml:5)"]
    later = placer.place(read, host(domain(1), domain(2, running=False)))
    assert lines(later) == ["ci-1: tcp *:80 -> 192.168.122.101:80"]
    stopped = Reason(ReasonKind.DOMAIN, "ci-2", "stopped")
    assert causes.of_start(next(iter(later.forwards)), both, [stopped]) == Cause((stopped,))


def test_of_those_found_together_the_one_that_libvirt_started_first_has_it() -> None:
    desired = desired_state(config(entry("ci-*", "80")), host(domain(1, instance=7), domain(2, instance=3)))
    assert lines(desired) == ["ci-2: tcp *:80 -> 192.168.122.102:80"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('listen = "198.51.100.7"', 'listen = "198.51.100.8"'),
        ('interface = "eth0"', 'interface = "eth1"'),
        ('sources = ["203.0.113.0/25"]', 'sources = ["203.0.113.128/25"]'),
        ("", 'listen = "198.51.100.8"'),
    ],
)
def test_what_is_told_apart_is_no_claim_of_two(one: str, other: str) -> None:
    text = entry("ci-1*", "80", more=one) + entry("ci-2*", "80", more=other)
    assert len(lines(desired_state(config(text), host(domain(1), domain(2))))) == 2


def test_each_domain_has_a_port_of_its_own_and_keeps_it() -> None:
    placer, read = Placer({}), config(entry("ci-*", "auto:22", "auto:53/tcp+udp"))
    first = placer.place(read, host(domain(1)))
    own = {item.ports.first for item in first.forwards}
    assert len(own) == 2  # TCP and UDP of one port share the number
    assert [item.moved for item in placer.assigned] == [None] * 3
    placer.place(read, host(*(domain(number) for number in range(1, 6))))
    for other in (domain(1, running=False), domain(1)):
        again = placer.place(read, host(other, domain(7)))
    assert {item.ports.first for item in again.forwards if item.domain == "ci-1"} == own
    assert placer.assigned == ()


def test_the_files_claim_goes_first_and_the_automatic_one_moves_and_is_told() -> None:
    placer = Placer({})
    before = next(iter(placer.place(config(entry("ci-*", "auto:22")), host(domain(1))).forwards)).ports.first
    moved = placer.place(config(entry("ci-*", "auto:22") + entry("web", f"{before}:80")), host(domain(1)))
    after = next(iter(moved.forwards)).ports.first
    assert after != before
    assert [(item.moved, item.port, str(item.claimed)) for item in placer.assigned] == [
        (before, after, "portfwd.toml:9")
    ]


def test_a_port_on_which_a_process_listens_is_not_assigned() -> None:
    loopback = ip_address("127.0.0.1")
    busy = [Occupied(Protocol.TCP, loopback, port, passing=True) for port in range(20000, 20009)]
    desired = desired_state(config(entry("ci-1", "auto:22")), host(domain(1)), before=Before(occupied=lambda: busy))
    assert lines(desired) == ["ci-1: tcp *:20009 -> 192.168.122.101:22"]


def test_where_no_port_is_left_domains_that_are_gone_give_theirs_up_the_longest_gone_first() -> None:
    placer, read = Placer({}), config(entry("ci-*", "auto:22/tcp+udp"))
    had = [domain(number) for number in range(1, 11)]
    placer.place(read, host(*had), 0.0)
    ports = {item.domain.int: held.port for item, held in placer.ports.items()}
    stopped = domain(4, running=False)
    placer.place(read, host(stopped, *had[:2], *had[4:]), 10.0)  # without the third
    placer.place(read, host(stopped, *had[:1], *had[4:]), 20.0)  # and without the second
    one = placer.place(read, host(stopped, *had[:1], *had[4:], domain(11)), 30.0)
    assert {(item.protocol, item.ports.first) for item in one.forwards if item.domain == "ci-11"} == {
        (Protocol.TCP, ports[3]),
        (Protocol.UDP, ports[3]),
    }
    assert {item.domain.int for item in placer.ports} == {1, 2, *range(4, 12)}
    full = placer.place(read, host(stopped, *had[:1], *had[4:], *map(domain, (11, 12, 13))), 40.0)
    assert {item.ports.first for item in full.forwards if item.domain == "ci-12"} == {ports[2]}
    assert set(reasons(full)) >= {"ci-13: no port of auto_ports (20000-20009) is free"}
    assert {held.port for item, held in placer.ports.items() if item.domain.int == 4} == {ports[4]}


def test_where_the_kernel_does_not_tell_who_waits_no_port_is_assigned_anew() -> None:
    placer, read = Placer({}, Before(occupied=lambda: None)), config(entry("ci-*", "auto:22"))
    without = placer.place(read, host(domain(1)))
    assert reasons(without) == ["ci-1: the kernel does not report which ports processes of the host have"]
    assert placer.ports == {}
    known = Placer({}, Before({AutoPort(UUID(int=1), 22, Protocol.TCP): Held(20003)}, occupied=lambda: None))
    assert lines(known.place(read, host(domain(1)))) == ["ci-1: tcp *:20003 -> 192.168.122.101:22"]


def test_where_no_port_is_left_the_rest_is_refused_until_one_is() -> None:
    placer, read = Placer({}), config(entry("ci-*", "auto:22"))
    full = placer.place(read, host(*(domain(number) for number in range(1, 13))))
    assert len(full.forwards) == 10
    assert reasons(full) == [f"ci-{n}: no port of auto_ports (20000-20009) is free" for n in (11, 12)]


def test_a_port_is_given_up_a_week_after_its_domain_and_no_jump_of_a_clock_is_a_week() -> None:
    placer, read = Placer({}), config(entry("ci-*", "auto:22"))
    placer.place(read, host(domain(1)), 0.0)
    placer.place(read, host(), None)  # libvirt is away
    placer.place(read, host(), 10 * KEPT_FOR_S)  # and answers much later: since when is not known
    assert placer.ports
    placer.place(read, host(), 10.9 * KEPT_FOR_S)
    assert placer.ports
    placer.place(read, host(), 11.1 * KEPT_FOR_S)
    assert placer.ports == {}


def test_one_that_comes_back_begins_anew() -> None:
    item = AutoPort(UUID(int=1), 22, Protocol.TCP)
    ports = aged({item: Held(20000)}, (), KEPT_FOR_S - 1)
    ports = aged(ports, {UUID(int=1)}, 5)
    assert aged(ports, (), KEPT_FOR_S - 1) == {item: Held(20000, KEPT_FOR_S - 1)}


def test_what_is_placed_again_is_what_would_be_placed_anew() -> None:
    read = config(entry("ci-*", "auto:22", "80") + entry("ci-2", "auto:22", "81") + entry("*", "90-91"))
    placer = Placer({})
    for domains in ([1], [1, 2], [3, 2], [], [2, 3, 1]):
        inventory = host(*(domain(number) for number in domains))
        ports, turns = placer.ports, placer.turns
        desired = placer.place(read, inventory)
        fresh = Placer({}, Before(ports, turns)).place(read, inventory)
        assert desired == fresh
        assert desired.expanded == fresh.expanded


WANTED = st.builds(AutoPort, st.builds(UUID, int=st.integers(0, 9)), st.integers(1, 3), st.sampled_from(Protocol))
BUSY = st.frozensets(st.tuples(st.sampled_from(Protocol), st.integers(1000, 1011)), max_size=9)


@given(st.lists(st.tuples(st.frozensets(WANTED, max_size=8), BUSY, BUSY), min_size=1, max_size=5))
def test_no_port_is_assigned_twice_or_taken_and_who_has_one_keeps_it(
    rounds: list[tuple[frozenset[AutoPort], frozenset[tuple[Protocol, int]], frozenset[tuple[Protocol, int]]]],
) -> None:
    ports: Assignments = {}
    for wanted, reserved, busy in rounds:
        before, ports = ports, assigned(wanted, reserved, busy, ports)
        owners = {held.port: item[:2] for item, held in ports.items()}
        assert all(owners[held.port] == item[:2] for item, held in ports.items())
        for item, held in ports.items():
            place = (item.protocol, held.port)
            assert 1000 <= held.port <= 1011
            assert place not in reserved
            assert place not in busy or before.get(item) == held
        for item, held in before.items():
            assert ports.get(item) == held or (item.protocol, held.port) in reserved
        missing = wanted - ports.keys()
        free = set(range(1000, 1012)) - owners.keys()
        assert all((item.protocol, port) in reserved | busy for item in missing for port in free)


def assigned(
    wanted: Iterable[AutoPort],
    reserved: Collection[tuple[Protocol, int]],
    busy: Collection[tuple[Protocol, int]],
    known: Assignments,
) -> Assignments:
    of_processes = [Occupied(protocol, None, port) for protocol, port in busy]
    pool = Pool(PortRange(1000, 1011), lambda protocol, port: (protocol, port) in reserved, lambda: of_processes)
    return pool.assign(wanted, known)


def test_the_same_port_is_found_on_every_host_and_in_any_order() -> None:
    wanted = [AutoPort(UUID(int=number), 22, Protocol.TCP) for number in range(4)]
    pool = Pool(PortRange(20000, 29999), lambda _, __: False, tuple)
    alone = {item: held for each in wanted for item, held in pool.assign([each], {}).items()}
    assert alone == pool.assign(reversed(wanted), {})


def test_a_domain_that_may_be_rebooting_keeps_its_port_for_a_moment_and_then_holds_nothing() -> None:
    stopped = replace(domain(1, running=False), returning=True)
    placer, read, grace = Placer({}), config(entry("ci-*", "80")), Grace()
    before = placer.place(read, host(domain(1), domain(2)), now=5.0)
    meanwhile = placer.place(read, host(stopped, domain(2)), now=6.0)
    assert "ci-2: port 80 is claimed by domain ci-1 (portfwd.toml:5)" in reasons(meanwhile)
    ends = [placer.ends]
    held = grace.extend(meanwhile, before.exposures, (), Stop(6.0, ()))
    assert lines(held) == ["ci-1: tcp *:80 -> 192.168.122.101:80"]
    after = placer.place(read, host(stopped, domain(2)), now=7.0)
    for seconds in (6.5, 7.0):  # whatever the grace, no port leads to two
        held = grace.extend(after, before.exposures, (), Stop(seconds, ()))
        assert lines(held) == ["ci-2: tcp *:80 -> 192.168.122.102:80"]
    assert [*ends, placer.ends] == [7.0, None]
    assert lines(placer.place(read, host(domain(1, instance=9), domain(2)), now=8.0)) == lines(after)


def test_one_that_is_back_at_once_has_what_it_had() -> None:
    placer, read = Placer({}), config(entry("ci-*", "80"))
    mine = lines(placer.place(read, host(domain(1), domain(2)), now=5.0))
    stopped = replace(domain(1, running=False), returning=True)
    placer.place(read, host(stopped, domain(2)), now=6.0)
    assert lines(placer.place(read, host(domain(1, instance=9), domain(2)), now=6.5)) == mine


def test_what_a_newer_configuration_adds_takes_nothing_from_who_has_it() -> None:
    placer, first = Placer({}), entry("ci-2*", "80")
    before = placer.place(config(first), host(domain(1), domain(2)))
    for turns in (placer.turns, Placer({}, Before(turns=placer.turns)).turns):
        again = Placer({}, Before(turns=turns))
        again.place(config(first), host(domain(1), domain(2)))
        assert lines(again.place(config(entry("ci-*", "80") + first), host(domain(1), domain(2)))) == lines(before)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (entry("a", "auto:22"), '3: an automatic port has no range to come from; write auto_ports = "20000-29999" in'),
        ("[daemon]\nauto_ports = 20000\n" + entry("a", "auto:22"), "2: daemon: auto_ports: must be a string, not"),
        ('[daemon]\nauto_ports = "9-8"\n', '2: daemon: auto_ports: "9-8" has a reversed range; write 8-9'),
        ('[daemon]\nauto_ports = "1-65536"\n', '2: daemon: auto_ports: "1-65536": "65536" is out of range; write a'),
        ('[[nat]]\ndomain = "ci-*"\npublic = "198.51.100.8"\n', '2: nat 1: domain: "ci-*" is a pattern of names, and'),
        (entry("ci-*", "80", more='mac = "52:54:00:00:00:01"'), "4: forward 1: mac: is one guest's, and domain is"),
        (
            entry("web[1]", "80"),
            '2: forward 1: domain: "web[1]" has one character in brackets; write "web[[]1]"',
        ),
        (
            entry("web[^1-3]", "80"),
            '2: forward 1: domain: "web[^1-3]" has "[^", which is "[!" in a shell pattern; write',
        ),
        (
            entry("ci-*", "80") + entry("ci-*", "80:81"),
            '7: domain "ci-*": *:80/tcp is already claimed at portfwd.toml:3',
        ),
    ],
)
def test_what_cannot_be_is_told_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configuration.parse({Path("portfwd.toml"): text})
    [problem] = refused.value.problems
    assert str(problem).startswith(f"portfwd.toml:{said}")


def test_another_range_of_automatic_ports_makes_no_other_claims() -> None:
    placer, text = Placer({}), HEAD + entry("ci-*", "auto:22", "80")
    ports = []
    for pool in ("20000-20009", "30000-30009"):
        read = configuration.parse({Path("portfwd.toml"): text.replace("20000-20009", pool)})
        placer.place(read, host(domain(1), domain(2)))
        ports.append((sorted(held.port for held in placer.ports.values()), placer.turns))
    assert ports[0][0] != ports[1][0]
    assert ports[0][1] == ports[1][1]


def test_how_long_domains_are_gone_is_counted_when_one_comes_or_goes_and_once_a_minute() -> None:
    """So that a pass takes no longer where thousands of ports are kept."""
    read = config(entry("ci-*", "auto:22"))
    placer = Placer({}, Before({AutoPort(UUID(int=99), 22, Protocol.TCP): Held(20003, 1.0)}))
    placer.place(read, host(domain(1)), 0.0)
    ports = placer.ports
    placer.place(read, host(domain(1)), 30.0)
    assert placer.ports is ports
    placer.place(read, host(domain(1)), 70.0)
    assert gone(placer) == [71.0]
    placer.place(read, host(), 80.0)
    assert gone(placer) == [10.0, 81.0]


def gone(placer: Placer) -> list[float]:
    """For how long those domains are gone that are."""
    return sorted(held.gone for held in placer.ports.values() if held.gone)
