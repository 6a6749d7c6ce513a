"""Which addresses the configuration settles; what else is found of guests is in test_placing.py."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from uuid import UUID

import pytest

from fwdaemon import config as configuration
from fwdaemon.core.inventory import Domain, GuestInterface, HostAddress, Inventory, Network
from fwdaemon.resolve.guests import Absence, GuestFinder

MAC, OTHER_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
WEB = Domain("web", UUID(int=1), running=True, interfaces=(GuestInterface(MAC, "default", "virbr0", "vnet0"),))
DB = Domain("db", UUID(int=2), running=True, interfaces=(GuestInterface(OTHER_MAC, "default", "virbr0", "vnet1"),))
STOPPED = Domain("web", UUID(int=1), running=False)
DEFAULT = Network("default", active=True, bridge="virbr0", subnets=(ip_network("192.168.122.0/24"),))
HOST = HostAddress(ip_address("192.168.122.1"), ip_network("192.168.122.0/24"), "virbr0")


def settled(entries: str, *domains: Domain) -> list[str]:
    config = configuration.parse({Path("portfwd.toml"): entries})
    finder = GuestFinder(Inventory(domains, (DEFAULT,), (HOST,)), (*config.forwards, *config.nats))
    return [f"{item.address} at {item.interface.mac}" for item in finder.settled()]


def forward(domain: str, port: int, address: str) -> str:
    return f'[[forward]]\ndomain = "{domain}"\nports = ["{port}"]\naddress = "{address}"\n'


def test_an_address_of_a_running_guest_is_settled() -> None:
    assert settled(forward("web", 80, "192.168.122.50"), WEB, DB) == ["192.168.122.50 at 52:54:00:00:00:01"]
    by_uuid = '[[nat]]\ndomain = "00000000-0000-0000-0000-000000000002"\npublic = "198.51.100.8"\n'
    assert settled(by_uuid + 'address = "192.168.122.51"\n', WEB, DB) == ["192.168.122.51 at 52:54:00:00:00:02"]


@pytest.mark.parametrize(
    ("entries", "domains"),
    [
        pytest.param(forward("web", 80, "192.168.122.50"), [STOPPED], id="a guest that does not run"),
        pytest.param(forward("web", 80, "192.168.122.1"), [WEB], id="an address of the host"),
        pytest.param(forward("web", 80, "10.0.0.1"), [WEB], id="an address of another network"),
        pytest.param(
            forward("web", 80, "192.168.122.50") + forward("db", 81, "192.168.122.50"), [WEB, DB], id="two guests"
        ),
        pytest.param('[[forward]]\ndomain = "web"\nports = ["80"]\n', [WEB], id="none is written"),
    ],
)
def test_what_is_not_believed_is_not_settled(entries: str, domains: list[Domain]) -> None:
    assert settled(entries, *domains) == []


UUIDS = ["00000000-0000-0000-0000-00000000ABCD", "{0000000000000000000000000000abcd}", f"{0xABCD:032x}"]


@pytest.mark.parametrize("spelling", [*UUIDS, "urn:uuid:00000000-0000-0000-0000-00000000abcd"])
def test_a_uuid_is_never_a_name(spelling: str) -> None:
    """Whether or not the domain with this UUID is there, and runs, one that is named so gets nothing."""
    thief = Domain(spelling, UUID(int=9), running=True, interfaces=DB.interfaces)
    entries = configuration.parse({Path("portfwd.toml"): forward(spelling, 80, "192.168.122.50")}).forwards
    pinned = replace(WEB, uuid=UUID(int=0xABCD))
    for domains, meant in (((thief,), None), ((thief, pinned), pinned), ((pinned, replace(thief, rank=1)), pinned)):
        finder = GuestFinder(Inventory(domains, (DEFAULT,), (HOST,)), entries)
        assert finder.meant(spelling) == meant
        assert [domain.uuid for domain in finder.namesakes()] == [UUID(int=9)]
        assert [item.domain for item in finder.settled()] == ([meant] if meant else [])
        assert isinstance(finder.running(entries[0]), Absence) is (meant is None)


@pytest.mark.parametrize("name", ["-" * 36, "0" * 31, "0" * 33, "+" + "0" * 31, "0_" * 16, "web"])
def test_what_is_no_uuid_is_a_name(name: str) -> None:
    entries = configuration.parse({Path("portfwd.toml"): forward(name, 80, "192.168.122.50")}).forwards
    named = replace(WEB, name=name)
    assert GuestFinder(Inventory((named, DB), (DEFAULT,), (HOST,)), entries).running(entries[0]) == named


def test_the_domain_of_the_first_uri_is_followed_as_it_comes_and_goes() -> None:
    entries = configuration.parse({Path("portfwd.toml"): forward("web", 80, "192.168.122.50")}).forwards
    second = replace(DB, name="web", rank=1)
    finder = GuestFinder(Inventory((WEB, second), (DEFAULT,), (HOST,)), entries)
    for first in (WEB, STOPPED, None, WEB):
        domains = (second,) if first is None else (first, second)
        assert "web" in finder.follow(Inventory(domains, (DEFAULT,), (HOST,))) or first is domains[0]
        running = [] if first is STOPPED else [first or second]
        assert finder.meant("web") == (first or second)
        assert [item.domain for item in finder.settled()] == running
        assert list(finder.namesakes()) == ([second] if first else [])
