"""`explain` follows the guest's answer: back to this host, and out where the question came in."""

from functools import partial

import pytest

from tests.host.conftest import HEAD, NEIGHBOUR4, each_backend, entry, rules_have_no_part
from tests.host.explained import ASKED, WEB, Patient
from tests.lab.domain import Link
from tests.lab.host import CLIENT4_OTHER_LINK, CLIENT4_SECOND, OTHER_LINK4, PUBLIC4, PUBLIC6
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until


def without_default_route(patient: Patient) -> None:
    web = patient.web
    web.run("sysctl", "-w", "net.ipv6.conf.eth0.accept_ra=0")
    for family, gateway in (("-4", "192.168.122.1"), ("-6", "2001:db8:122::1")):
        patient.mend.callback(web.run, "ip", family, "route", "replace", "default", "via", gateway)
        web.run("ip", family, "route", "flush", "default")


@pytest.mark.in_turn
def test_an_isolated_network_gives_no_router(patient: Patient) -> None:
    patient.host.libvirt.define_network("alone", "192.168.125.0/24", mode="isolated", dhcp=True)
    patient.mend.callback(patient.host.libvirt.remove_network, "alone")
    alone = LxcGuest(patient.host, "alone", Link("alone"))
    patient.mend.callback(alone.remove)
    alone.start().take_lease()
    patient.load('[[forward]]\ndomain = "alone"\nports = ["8000:80"]\n')
    report = patient.is_cured_of("no-way-back")
    assert "or give the guest its default route through 192.168.125.1" in report["sentence"]


@rules_have_no_part
def test_the_same_in_ipv6(patient: Patient) -> None:
    patient.load(entry("web", "8000:80", "WEB6"))
    without_default_route(patient)
    patient.is_cured_of("no-way-back", f"[{PUBLIC6}]:8000", probe=partial(patient.fetch, PUBLIC6))


@rules_have_no_part
def test_datagrams_have_no_way_back_either(patient: Patient) -> None:
    patient.web.serve_udp(53)
    patient.load(entry("web", "5353:53/udp", "WEB4"))
    without_default_route(patient)
    probe = partial(patient.host.outside.udp, PUBLIC4, 5353, timeout=0.5)
    patient.is_cured_of("no-way-back", f"{PUBLIC4}:5353/udp", probe=probe)


@pytest.mark.in_turn
def test_the_host_itself_is_off_the_link_at_its_public_address(patient: Patient) -> None:
    without_default_route(patient)
    assert patient.explain(ASKED, "--from", PUBLIC4)["cause"] == "no-way-back"
    # A neighbour is masqueraded.
    assert patient.explain(ASKED, "--from", NEIGHBOUR4)["works"]


@pytest.mark.in_turn
def test_another_gateway(patient: Patient) -> None:
    patient.mend.callback(patient.web.run, "ip", "route", "replace", "default", "via", "192.168.122.1")
    patient.web.run("ip", "route", "replace", "default", "via", NEIGHBOUR4)
    patient.is_cured_of("answer-astray")


@rules_have_no_part
def test_a_public_address_is_no_forward_and_cannot_masquerade(patient: Patient) -> None:
    patient.load('[[nat]]\ndomain = "web"\naddress = "192.168.122.10"\npublic = "198.51.100.8"\nassign = "eth0"\n')
    without_default_route(patient)
    report = patient.explain("198.51.100.8:80")
    assert report["cause"] == "no-way-back"
    assert report["sentence"] == "Give the guest its default route through 192.168.122.1."


@pytest.mark.in_turn
def test_the_guests_own_firewall_is_not_to_be_evaded(patient: Patient) -> None:
    rule = "tcp dport 80 ip saddr != 192.168.122.0/24 drop"
    patient.mend.callback(patient.web.run, "nft", "flush", "ruleset")
    patient.web.run("nft", f"table inet own {{ chain in {{ type filter hook input priority 0; {rule}; }}; }}")
    wait_until(lambda: not patient.fetch().answered, "it is broken")
    report = patient.explain(ASKED)
    assert "the guest's own firewall may admit its own network only" in report["sentence"]
    assert "masquerade" not in report["sentence"]


@pytest.fixture
def second_interface(patient: Patient) -> LxcGuest:
    """A guest that is reached by one of its interfaces, and has its default route by another."""
    links = Link("default", ("192.168.122.20/24",)), Link("other", ("192.168.123.20/24",))
    two = LxcGuest(patient.host, "two", *links)
    patient.mend.callback(two.remove)
    two.start().run("ip", "route", "replace", "default", "via", "192.168.123.1")
    patient.load(entry("two", "8000:80", "192.168.122.20", 'network = "default"'))
    return two


@rules_have_no_part
@pytest.mark.usefixtures("second_interface")
def test_an_answer_by_another_interface_works_where_nothing_filters_it(patient: Patient) -> None:
    wait_until(lambda: patient.fetch().answered, "it works")
    report = patient.explain(ASKED)
    assert report["works"]
    bridge = patient.host.libvirt.bridge("other")
    assert any(f"answers clients elsewhere through {bridge}" in step["text"] for step in report["steps"])


@rules_have_no_part
@pytest.mark.usefixtures("second_interface")
def test_an_answer_by_another_interface_is_filtered(patient: Patient) -> None:
    name = f"net.ipv4.conf.{patient.host.libvirt.bridge('other')}.rp_filter"
    before = patient.host.run("sysctl", "-n", name).stdout.strip()
    patient.mend.callback(patient.host.run, "sysctl", "-w", f"{name}={before}")
    patient.host.run("sysctl", "-w", f"{name}=1")
    # The host does not even answer the guest's ARP there.
    report = patient.is_cured_of("no-way-back")
    bridge = patient.host.libvirt.bridge("other")
    looked = f"it looks for a gateway 192.168.123.1 through {bridge}, which does not answer it"
    assert any(looked in step["text"] for step in report["steps"])


@rules_have_no_part
def test_a_gateway_that_is_not_there(patient: Patient) -> None:
    patient.mend.callback(patient.web.run, "ip", "route", "replace", "default", "via", "192.168.122.1")
    patient.web.run("ip", "route", "replace", "default", "via", "192.168.122.99")
    report = patient.is_cured_of("no-way-back")
    assert any("it looks for a gateway 192.168.122.99" in step["text"] for step in report["steps"])


# --- several uplinks -------------------------------------------------------------------------------------------------

FROM_FAR = f"{OTHER_LINK4}:8000", "--from", CLIENT4_SECOND


@pytest.fixture
def strict_provider(patient: Patient) -> None:
    """The network on eth0 takes no packets with an address of that on eth1."""
    rule = f'iifname "eth0" ip saddr {OTHER_LINK4} drop'
    chain = f"chain in {{ type filter hook prerouting priority raw; {rule}; }}"
    patient.host.outside.run(["nft", f"table ip provider {{ {chain}; }}"])
    patient.mend.callback(patient.host.outside.run, ["nft", "delete", "table", "ip", "provider"])
    patient.mend.callback(patient.host.run, "ip", "route", "del", f"{CLIENT4_SECOND}/32", check=False)


def table_of_eth1(patient: Patient) -> None:
    """As for policy routing, with a rule for the host's own connections."""
    patient.mend.callback(patient.host.run, "ip", "route", "flush", "table", "101")
    patient.host.run("ip", "route", "add", "default", "via", CLIENT4_OTHER_LINK, "dev", "eth1", "table", "101")


def from_far(patient: Patient) -> bool:
    return patient.fetch(OTHER_LINK4, source=CLIENT4_SECOND).answered


@rules_have_no_part
@pytest.mark.usefixtures("strict_provider")
def test_an_answer_that_leaves_by_another_uplink(patient: Patient) -> None:
    assert not from_far(patient)
    report = patient.explain(*FROM_FAR)
    assert report["sentence"].startswith("As far as this host can tell, it works")
    assert f"leaves by eth0, where the network may refuse {OTHER_LINK4} as its source" in report["sentence"]
    table_of_eth1(patient)
    (command,) = patient.explain(*FROM_FAR)["commands"]
    patient.host.run(*command.split())
    wait_until(lambda: from_far(patient), "the answer leaves where the question came in")
    assert patient.explain(*FROM_FAR)["sentence"].startswith("It works")


@rules_have_no_part
@pytest.mark.usefixtures("strict_provider")
def test_a_strict_filter_is_not_loosened_where_a_route_mends_it(patient: Patient) -> None:
    patient.host.run("sysctl", "-w", "net.ipv4.conf.eth1.rp_filter=1")
    patient.mend.callback(patient.host.run, "sysctl", "-w", "net.ipv4.conf.eth1.rp_filter=0")
    table_of_eth1(patient)
    patient.is_cured_of("reverse-path", *FROM_FAR, probe=lambda: patient.fetch(OTHER_LINK4, source=CLIENT4_SECOND))
    assert patient.explain(*FROM_FAR)["sentence"].startswith("It works")


@pytest.mark.in_turn
@each_backend
def test_a_forward_that_masquerades_works_without_a_route(patient: Patient) -> None:
    without_default_route(patient)
    patient.load(WEB.replace("ports", "masquerade = true\nports"), HEAD)
    wait_until(lambda: patient.fetch().answered, "it works")
    report = patient.explain(ASKED)
    assert report["sentence"].startswith("It works")
