"""Elements that other programs keep in our sets: they survive what we change, and come back after a wipe."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from fwdaemon.core.admission import Admission, Element, Rate, SourceSet
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Origin
from fwdaemon.explain.gather import Kernel
from fwdaemon.kernel.external_sets import Externals
from fwdaemon.kernel.process import Finished, SystemRunner
from fwdaemon.nftables.backend import NftablesBackend
from fwdaemon.nftables.generation import Announcements, Commits, open_monitor
from fwdaemon.nftables.model import TABLE_NAME
from fwdaemon.rulesets.evaluation import pass_through
from tests.lab.command import run
from tests.lab.computer import SOURCE
from tests.unit.explaining import AROUND, packet
from tests.unit.forwards import forward

HERE = Origin(Path("/etc/portfwd.toml"), 1)
BANNED = SourceSet("banned", HERE, external=True)
WEB = forward("tcp *:80", "192.168.122.50:80")
SIX = forward("tcp *:80", "[2001:db8:122::50]:80")
STATE = replace(Desired().having([WEB, SIX]), sets=(BANNED,), barred=Admission(denied=("banned",)))
MORE = STATE.having([forward("tcp *:443", "192.168.122.50:443")])


@dataclass
class Counting:
    """A runner that remembers what it ran."""

    ran: list[tuple[str, ...]] = field(default_factory=list)

    def run(self, *argv: str, stdin: str = "") -> Finished:
        self.ran.append(argv)
        return SystemRunner().run(*argv, stdin=stdin)


@dataclass
class Host:
    """A backend with its monitor, and what others do."""

    runner: Counting = field(default_factory=Counting)
    externals: Externals = field(default_factory=Externals)

    def __post_init__(self) -> None:
        self.commits = Commits(self.runner)
        self.backend = NftablesBackend(self.runner, self.commits, externals=self.externals)
        self.monitor: socket.socket = open_monitor()
        self.announcements = Announcements(externals=self.externals)

    def hear(self) -> list[bool]:
        """Take what was announced; tell of each commit of others whether it changed elements alone."""
        heard = [*self.announcements.receive(self.monitor)]
        for commit in heard:
            if commit.elements_only:
                self.commits.pass_over(commit.number)
        return [commit.elements_only for commit in heard if not self.commits.made(commit)]

    def apply(self, state: Desired = STATE, *, full: bool = True) -> bool:
        result = self.backend.apply(state, full=full)
        self.hear()
        assert not result.faults
        return result.changed


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    host.apply()
    yield host
    host.monitor.close()


def nft(*words: str) -> str:
    return run(["nft", *words]).stdout


def ban(*elements: str, family: str = "ip") -> None:
    nft("add", "element", family, TABLE_NAME, "set_banned", f"{{ {', '.join(elements)} }}")


def banned(family: str = "ip") -> dict[str, str]:
    """Give what is in the set now, each with its timeout."""
    listed = json.loads(nft("-j", "list", "set", family, TABLE_NAME, "set_banned"))["nftables"][-1]["set"]
    return dict(map(_read, listed.get("elem", [])))


def _read(item: object) -> tuple[str, str]:
    match item:
        case {"elem": {"val": inner, "timeout": timeout}}:
            return _read(inner)[0], str(timeout)
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}", ""
        case _:
            return str(item), ""


def test_the_sets_have_the_names_and_flags_that_are_promised(host: Host) -> None:
    del host
    for family in ("ip", "ip6"):
        listed = nft("list", "set", family, TABLE_NAME, "set_banned")
        assert re.search(r"flags interval,\s?timeout", listed)


def test_elements_survive_what_we_change_and_a_new_run(host: Host) -> None:
    ban("203.0.113.9 timeout 1h", "198.51.100.0/24", "192.0.2.5")
    ban("2001:db8:9::/48", family="ip6")
    held = banned(), banned("ip6")
    assert set(held[0]) == {"203.0.113.9", "198.51.100.0/24", "192.0.2.5"}
    host.hear()
    assert host.apply(MORE)
    assert not host.apply(MORE)
    assert (banned(), banned("ip6")) == held
    assert not Host().apply(MORE)
    Host().apply(replace(MORE, label=26))
    assert (banned().keys(), banned("ip6").keys()) == (held[0].keys(), held[1].keys())


@pytest.mark.parametrize("wipe", [("flush", "ruleset"), ("delete", "table", "ip", TABLE_NAME)])
def test_elements_come_back_after_a_wipe_with_what_is_left_of_their_time(host: Host, wipe: tuple[str, ...]) -> None:
    ban("203.0.113.9 timeout 1h", "198.51.100.0/24", "192.0.2.5", "192.0.2.6", "192.0.2.8-192.0.2.17")
    nft("delete", "element", "ip", TABLE_NAME, "set_banned", "{ 192.0.2.6 }")
    before = banned()
    host.hear()
    nft(*wipe)
    host.hear()
    assert host.apply(full=False)
    assert banned().keys() == before.keys()
    assert 3000 < int(banned()["203.0.113.9"]) <= 3600
    assert not host.apply()


def test_what_was_there_at_the_start_comes_back_too(host: Host) -> None:
    ban("203.0.113.9")
    later = Host()
    later.apply()
    nft("flush", "ruleset")
    assert later.apply(full=False)
    assert set(banned()) == {"203.0.113.9"}
    later.monitor.close()
    del host


def test_what_an_earlier_run_wrote_down_is_put_into_a_table_that_is_gone_and_no_other(host: Host) -> None:
    ban("203.0.113.9")
    place, address = (Family.IPV4, "banned"), int(ip_address("192.0.2.7"))
    written = {place: {Element(address, address): None}}
    first, second = Host(), Host()
    first.externals.remember(written)
    first.apply()
    assert set(banned()) == {"203.0.113.9"}
    nft("flush", "ruleset")
    second.externals.remember(written)
    second.apply()
    assert set(banned()) == {"192.0.2.7"}
    del host


def test_a_table_that_others_made_after_a_wipe_gets_back_what_was_known_before() -> None:
    nft("add", "table", "ip", TABLE_NAME)
    nft("add", "set", "ip", TABLE_NAME, "set_banned", "{ type ipv4_addr; flags interval,timeout; }")
    ban("203.0.113.9")
    host, address = Host(), int(ip_address("192.0.2.7"))
    host.externals.remember({(Family.IPV4, "banned"): {Element(address, address): None}})
    host.apply()
    assert set(banned()) == {"203.0.113.9", "192.0.2.7"}


def test_a_set_of_that_name_with_another_type_is_made_anew_and_none_of_it_is_kept(host: Host) -> None:
    ban("203.0.113.9")
    host.hear()
    nft("delete", "table", "ip", TABLE_NAME)
    nft("add", "table", "ip", TABLE_NAME)
    nft("add", "set", "ip", TABLE_NAME, "set_banned", "{ type ipv4_addr . inet_service; flags interval,timeout; }")
    ban("192.0.2.7 . 80")
    host.hear()
    for _ in range(2):
        host.apply()
        nft("flush", "ruleset")
        host.hear()
    host.apply()
    assert set(banned()) == {"203.0.113.9"}


def test_an_element_more_is_heard_of_and_costs_no_listing(host: Host) -> None:
    host.apply()
    host.runner.ran.clear()
    for number in range(3):
        ban(f"203.0.113.{number}")
    assert host.hear() == [True] * 3
    assert host.externals.take_added().addresses == {ip_address(f"203.0.113.{number}") for number in range(3)}
    assert not host.apply()
    assert host.runner.ran == []
    ranges = host.externals.ranges()[Family.IPV4, "banned"]
    assert [ranges.holds(ip_address(f"203.0.113.{number}")) for number in (0, 2, 3)] == [True, True, False]


def test_what_somebody_changes_in_a_set_of_our_own_is_put_right(host: Host) -> None:
    bad = SourceSet.of("bad", HERE, [])
    state = replace(STATE, sets=(BANNED, bad), barred=Admission(denied=("bad",)))
    host.apply(state)
    nft("add", "element", "ip", TABLE_NAME, "set_bad", "{ 192.0.2.1 }")
    assert host.hear() == [False]
    assert host.apply(state)
    assert "192.0.2.1" not in nft("list", "set", "ip", TABLE_NAME, "set_bad")


def test_a_ban_of_crowdsec_comes_back_with_its_newest_time_and_one_that_is_over_does_not(host: Host) -> None:
    """By the script of the examples, which adds, deletes and adds in one commit, as it cannot say what is there."""
    script = str(SOURCE / "etc/examples/crowdsec/kvm-portfwd-ban")
    state = replace(STATE, sets=(replace(BANNED, name="crowdsec"),), barred=Admission(denied=("crowdsec",)))
    host.apply(state)
    calls = [("add", "203.0.113.0/24", "50"), ("add", "203.0.113.0/24", "3600"), ("add", "192.0.2.1", "60")]
    for call in (*calls, ("del", "192.0.2.1", "-1"), ("del", "192.0.2.2", "-1"), ("add", "DE", "60")):
        run([script, *call, "ssh:bruteforce", "{}"])
    host.hear()
    nft("flush", "ruleset")
    host.hear()
    host.apply(state)
    listed = nft("list", "set", "ip", TABLE_NAME, "set_crowdsec")
    # Whether a second has gone by since is no matter.
    assert re.findall(r"([0-9./]+) timeout (?:1h|59m)", listed) == ["203.0.113.0/24"], listed
    assert "192.0.2" not in listed


def test_whoever_flushes_the_set_means_it(host: Host) -> None:
    ban("203.0.113.9")
    nft("flush", "set", "ip", TABLE_NAME, "set_banned")
    host.hear()
    nft("flush", "ruleset")
    host.hear()
    host.apply()
    assert not banned()


def test_a_large_set_is_filled_after_all_else_is_there_and_lets_nobody_by_until_then(host: Host) -> None:
    networks = {(Family.IPV4, 32): {f"11.0.{number >> 8}.{number & 255}": None for number in range(3000)}}
    big = SourceSet("big", HERE, parts=networks)
    denying = replace(WEB, admission=Admission(denied=("big",)))
    state = replace(Desired().having([denying, SIX]), sets=(big,))
    host.apply(state)
    nft("flush", "ruleset")
    scripts: list[str] = []
    host.runner.run = recording(scripts)  # type: ignore[method-assign]
    assert host.backend.apply(state, full=False).damaged == {denying, SIX}
    first, *rest = [script for script in scripts if "kvm_portfwd" in script]
    assert "11.0." not in first
    assert 'chain deny.big {\n\t\tdrop comment "filling' in first
    assert "11.0.11.1" in "".join(rest)
    assert "11.0.11.1" in nft("list", "set", "ip", TABLE_NAME, "set_big")
    assert not host.apply(state)


def test_beside_very_many_elements_of_others_ours_are_declared_and_nothing_has_them_read(host: Host) -> None:
    ban(*(f"11.0.{number >> 7}.{number << 1 & 255}" for number in range(3000)))
    host.hear()
    scripts: list[str] = []
    host.runner.run = recording(scripts)  # type: ignore[method-assign]
    for state in MORE, STATE, MORE:
        assert host.apply(state)
        assert not host.apply(state)
    commands = [line.split()[:2] for script in scripts for line in script.splitlines()]
    assert ["add", "map"] in commands
    assert ["flush", "map"] in commands
    assert not [command for command in commands if command[1:] == ["element"]]
    assert len(banned()) == 3000


def test_the_evaluator_of_explain_reads_sets_of_every_kind(host: Host) -> None:
    networks = map(ip_network, ("203.0.113.0/24", "198.51.100.7"))
    bad = SourceSet.of("bad", HERE, networks)
    denying = replace(WEB, admission=Admission(denied=("bad",), rate=Rate(3, "minute"), max_open=4))
    host.apply(replace(STATE, forwards=frozenset({denying}), sets=(BANNED, bad)))
    ban("198.51.100.99")
    chains = [chain for chain in Kernel(host.runner).chains() if (chain.family, chain.name) == ("ip", "prerouting")]
    (chain,) = chains
    for source, is_led in (
        ("203.0.113.9", False),
        ("198.51.100.7", False),
        ("198.51.100.99", False),
        ("192.0.2.1", True),
    ):
        passed = pass_through(chain, [packet(source=ip_address(source))], AROUND)
        assert bool(passed.packets) is is_led
    assert {item.destination for item in passed.packets} == {WEB.target}


def recording(scripts: list[str]) -> Callable[..., Finished]:
    def run_(*argv: str, stdin: str = "") -> Finished:
        if argv[:2] == ("nft", "-f"):
            scripts.append(stdin)
        return SystemRunner().run(*argv, stdin=stdin)

    return run_
