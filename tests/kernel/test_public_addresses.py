"""Public addresses of 1:1 guests on the host's interfaces, on the real kernel, with a real neighbour."""

import json
from pathlib import Path

import pytest

from fwdaemon.core.exposures import Nat
from fwdaemon.core.report import ApplyResult
from fwdaemon.hostnet.owned_state import OwnedStateFile
from fwdaemon.hostnet.public_addresses import PublicAddresses, Seconds, for_ever
from tests import sentences
from tests.kernel.links import Links
from tests.lab.place import wait_until
from tests.unit.forwards import nat

OURS = "198.51.100.8"
OURS6 = "2001:db8::8"
FOREVER = (1 << 32) - 1
ELSEWHERE = "02:00:00:00:00:99"
NOTHING: frozenset[Nat] = frozenset()
ONE = frozenset({nat(OURS, "192.168.123.60", assign="eth0")})
ONE6 = frozenset({nat(OURS6, "2001:db8:123::60", assign="eth0")})
BOTH = ONE | ONE6


def keeper(directory: Path, seconds: Seconds = for_ever) -> PublicAddresses:
    return PublicAddresses(OwnedStateFile("addresses", directory), seconds)


def shown(links: Links) -> str:
    return links.told("address", "show")


def holds(links: Links, address: str, interface: str = "eth0") -> bool:
    return f" {address}/" in links.told("address", "show", interface)


def test_addresses_come_and_go(links: Links, tmp_path: Path) -> None:
    before, kept = shown(links), keeper(tmp_path)
    assert kept.apply(BOTH) == ApplyResult(mended=BOTH, changed=True)
    assert holds(links, OURS)
    assert holds(links, OURS6)
    assert links.neighbour.pings(OURS)
    assert links.neighbour.pings(OURS6)
    assert kept.apply(BOTH) == ApplyResult()
    assert kept.apply(NOTHING) == ApplyResult(changed=True)
    assert shown(links) == before
    assert kept.apply(NOTHING) == ApplyResult()


@pytest.mark.parametrize(("wanted", "address"), [(ONE, OURS), (ONE6, OURS6)])
def test_neighbours_hear_of_an_address_at_once(
    links: Links, tmp_path: Path, wanted: frozenset[Nat], address: str
) -> None:
    # What it knows was confirmed just now, so that it does not ask, and would go on for half a minute.
    links.neighbour.ip(f"neighbour replace {address} lladdr {ELSEWHERE} dev eth0 nud reachable")
    kept = keeper(tmp_path)
    kept.apply(wanted)
    links.awaits_neighbour(address, links.mac(links.host))


def test_an_address_that_somebody_took_away_comes_back_and_is_announced(links: Links, tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    kept.apply(BOTH)
    links.host.ip(f"address del {OURS}/32 dev eth0")
    links.neighbour.ip(f"neighbour replace {OURS} lladdr {ELSEWHERE} dev eth0 nud reachable")
    assert kept.apply(BOTH) == ApplyResult(mended=ONE, damaged=ONE, changed=True)
    links.awaits_neighbour(OURS, links.mac(links.host))


@pytest.mark.parametrize(
    ("wanted", "bend"),
    [
        (ONE, f"address change {OURS}/32 dev eth0 valid_lft 600 preferred_lft 300"),
        (ONE6, f"address change {OURS6}/128 dev eth0 valid_lft 600 preferred_lft 0"),
        (ONE6, f"address change {OURS6}/128 dev eth0 preferred_lft forever valid_lft forever"),
    ],
)
def test_an_address_that_was_changed_is_put_back(
    links: Links, tmp_path: Path, wanted: frozenset[Nat], bend: str
) -> None:
    kept = keeper(tmp_path)
    kept.apply(BOTH)
    before = shown(links)
    links.host.ip(bend)
    assert shown(links) != before
    assert kept.apply(BOTH) == ApplyResult(mended=wanted, damaged=wanted, changed=True)
    assert shown(links) == before
    links.host.ip(bend)
    assert keeper(tmp_path).apply(BOTH) == ApplyResult(mended=wanted, changed=True)
    assert shown(links) == before


@pytest.mark.parametrize("interface", ["eth0", "virbr1"])
def test_an_address_that_the_host_has_without_us_stays(links: Links, tmp_path: Path, interface: str) -> None:
    links.host.ip(f"address add {OURS}/24 dev {interface}", f"address add {OURS6}/64 dev {interface} nodad")
    before, kept = shown(links), keeper(tmp_path)
    assert kept.apply(BOTH) == ApplyResult()
    assert kept.apply(NOTHING) == ApplyResult()
    assert shown(links) == before


def test_what_an_earlier_run_added_goes(links: Links, tmp_path: Path) -> None:
    before = shown(links)
    keeper(tmp_path).apply(BOTH)
    later = keeper(tmp_path)
    assert later.apply(ONE) == ApplyResult(stale=frozenset({f"{OURS6} on eth0"}), changed=True)
    assert later.apply(NOTHING) == ApplyResult(changed=True)
    assert shown(links) == before
    assert keeper(tmp_path).apply(NOTHING) == ApplyResult()


def test_what_an_earlier_run_added_is_not_news(links: Links, tmp_path: Path) -> None:
    del links
    keeper(tmp_path).apply(BOTH)
    assert keeper(tmp_path).apply(BOTH) == ApplyResult()


def test_an_address_moves_to_another_interface(links: Links, tmp_path: Path) -> None:
    kept, moved = keeper(tmp_path), frozenset({nat(OURS, "192.168.123.60", assign="virbr1")})
    kept.apply(ONE)
    assert kept.apply(moved) == ApplyResult(mended=moved, changed=True)
    assert holds(links, OURS, "virbr1")
    assert not holds(links, OURS)


def test_an_address_without_assign_is_nobodys_business(links: Links, tmp_path: Path) -> None:
    before = shown(links)
    assert keeper(tmp_path).apply(frozenset({nat(OURS, "192.168.123.60")})) == ApplyResult()
    assert shown(links) == before


def test_the_host_opens_no_connection_from_an_address_of_a_guest(links: Links, tmp_path: Path) -> None:
    # Otherwise it would be the best match, in the length of the common prefix (RFC 6724, rule 8).
    keeper(tmp_path).apply(BOTH)
    assert "src 198.51.100.1 " in links.told("route", "get", "198.51.100.9")
    assert "src 2001:db8::1 " in links.told("route", "get", "2001:db8::9")


@pytest.mark.parametrize("interface", ["eth9", "", "..", "a b", "x" * 300, "nul\0", "--help", "eth\n0"])
def test_an_interface_that_is_not_there_is_a_fault(links: Links, tmp_path: Path, interface: str) -> None:
    before, kept = shown(links), keeper(tmp_path)
    result = kept.apply(ONE6 | {nat(OURS, "192.168.123.60", assign=interface)})
    assert result.mended == ONE6
    (fault,) = sentences.faults(result)
    assert fault.startswith(f"{OURS} is not assigned to ")
    assert fault.endswith("there is no such interface")
    assert fault.isprintable()
    kept.apply(NOTHING)
    assert shown(links) == before


def test_an_interface_that_goes_takes_its_address_along(links: Links, tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    kept.apply(ONE)
    links.host.ip("link del eth0")
    assert kept.apply(ONE).faults
    assert kept.apply(NOTHING) == ApplyResult(changed=True)
    assert OwnedStateFile("addresses", tmp_path).records == ()


def test_where_there_is_nobody_to_tell_an_address_is_held_even_so(links: Links, tmp_path: Path) -> None:
    links.host.ip("tuntap add tun0 mode tun", "link set tun0 up", "link set eth0 down")
    wanted = ONE | {nat("198.51.100.9", "192.168.123.61", assign="tun0")}
    assert keeper(tmp_path).apply(wanted) == ApplyResult(mended=wanted, changed=True)


def test_a_refused_address_is_a_fault(links: Links, tmp_path: Path) -> None:
    links.host.sysctl("ipv6.conf.eth0.disable_ipv6=1")
    kept = keeper(tmp_path)
    (fault,) = sentences.faults(kept.apply(BOTH))
    assert fault.startswith("2001:db8::8 is not assigned to eth0: ")
    assert OwnedStateFile("addresses", tmp_path).records == ({"interface": "eth0", "address": OURS},)
    links.host.sysctl("ipv6.conf.eth0.disable_ipv6=0")
    assert kept.apply(BOTH) == ApplyResult(mended=ONE6, changed=True)


def left(links: Links, address: str) -> int | None:
    """For how many seconds the kernel holds an address; `None` is for ever, and -1 not at all."""
    for link in json.loads(links.told("-json", "address", "show", "eth0")):
        for item in link["addr_info"]:
            if item["local"] == address:
                seconds: int = item["valid_life_time"]
                return seconds if seconds < FOREVER else None
    return -1


@pytest.mark.parametrize(("wanted", "address"), [(ONE, OURS), (ONE6, OURS6)])
def test_what_is_held_for_a_while_is_given_to_the_kernel_for_no_longer(
    links: Links, tmp_path: Path, wanted: frozenset[Nat], address: str
) -> None:
    given: list[int | None] = [100]
    kept = keeper(tmp_path, lambda _: given[0])
    assert kept.apply(wanted) == ApplyResult(mended=wanted, changed=True)
    assert 90 <= (left(links, address) or 0) <= 100
    given[0] = 200  # renewed, which is nothing to tell of
    assert kept.apply(wanted) == ApplyResult()
    assert 190 <= (left(links, address) or 0) <= 200
    given[0] = 50
    assert kept.apply(wanted) == ApplyResult()
    assert (left(links, address) or 0) <= 50
    given[0] = None
    kept.apply(wanted)
    assert left(links, address) is None
    given[0] = 2
    kept.apply(wanted)
    wait_until(lambda: left(links, address) == -1, "the kernel takes it away by itself")
    given[0] = 100
    assert kept.apply(wanted).damaged == wanted
    given[0] = 0
    assert kept.apply(wanted).changed
    assert left(links, address) == -1
