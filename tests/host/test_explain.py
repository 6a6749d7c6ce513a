"""`explain` names what is wrong with a host, and what it says, done to the letter, mends it."""

from functools import partial

import pytest

from tests.host.conftest import (
    FAR4,
    HEAD,
    NEIGHBOUR4,
    WEB4,
    each_backend,
    each_libvirt,
    entry,
    filled,
    rules_have_no_part,
)
from tests.host.explained import ASKED, WEB, Patient
from tests.lab.domain import Link
from tests.lab.host import (
    CLIENT4,
    CLIENT4_SECOND,
    OTHER_LINK4,
    PUBLIC4,
    PUBLIC6,
)
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

pytestmark = pytest.mark.turns_on(LibvirtFirewall.NFTABLES)


def port_of(guest: LxcGuest) -> str:
    """The host's side of a guest's interface."""
    listed = guest.host.libvirt.virsh("domiflist", guest.name)
    return next(line.split()[0] for line in listed.splitlines() if guest.mac() in line)


def nft(patient: Patient, text: str) -> None:
    """Make a table of the administrator's, `inet admin`, and take it away at the end."""
    patient.mend.callback(patient.host.run, "nft", "delete", "table", "inet", "admin")
    patient.host.run("nft", "-f", "-", stdin=f"table inet admin {{\n{text}\n}}\n")


# --- all is well -----------------------------------------------------------------------------------------------------


@each_backend
def test_it_works(patient: Patient) -> None:
    report = patient.explain(ASKED)
    assert report["works"]
    assert report["schema_version"] == 1
    assert report["sentence"] == f"It works: tcp {ASKED} leads to web, {WEB4}:80."
    assert {step["state"] for step in report["steps"]} == {"ok"}
    text = patient.command("explain", ASKED)
    assert text.splitlines()[-1] == report["sentence"]
    assert "✓" not in text


@pytest.mark.in_turn
@each_backend
@pytest.mark.parametrize("who", [CLIENT4, PUBLIC4, WEB4, NEIGHBOUR4, FAR4])
def test_it_works_from_everywhere(patient: Patient, who: str) -> None:
    report = patient.explain(":8000", "--from", who)
    assert report["works"], report


@rules_have_no_part
def test_what_cannot_be_told_is_said(patient: Patient) -> None:
    patient.load(WEB + entry("web", "5353:53/udp", "WEB4"))
    report = patient.explain(f"{PUBLIC4}:5353/udp")
    assert report["works"]
    assert "As far as this host can tell" in report["sentence"]
    nft(patient, "chain pre { type filter hook prerouting priority 10; udp dport 53 limit rate over 1/hour drop; }")
    steps = patient.explain(f"{PUBLIC4}:5353/udp")["steps"]
    invalidated = [step for step in steps if step["state"] == "unknown" and step["step"] == "prerouting"]
    assert [step["chain"]["table"] for step in invalidated] == ["admin"]


# --- the configuration -----------------------------------------------------------------------------------------------


@rules_have_no_part
def test_an_address_that_is_not_the_hosts(patient: Patient) -> None:
    patient.mend.callback(patient.host.run, "ip", "address", "del", "198.51.100.99/24", "dev", "eth0")
    patient.is_cured_of("not-our-address", "198.51.100.99:8000", probe=lambda: patient.fetch("198.51.100.99"))


@rules_have_no_part
def test_a_port_nobody_claims(patient: Patient) -> None:
    patient.is_cured_of("unclaimed", f"{PUBLIC4}:8001", probe=lambda: patient.fetch(port=8001))


@rules_have_no_part
def test_a_source_that_is_not_allowed(patient: Patient) -> None:
    patient.load(WEB.replace("ports", f'sources = ["{CLIENT4_SECOND}/32"]\nports'))
    assert patient.explain(ASKED)["works"]
    patient.is_cured_of("source-refused", ASKED, "--from", CLIENT4)


@rules_have_no_part
def test_another_interface(patient: Patient) -> None:
    patient.load(entry("web", "8000:80", "WEB4", 'interface = "eth1"'))
    patient.is_cured_of("wrong-interface")


@rules_have_no_part
def test_a_domain_that_does_not_exist(patient: Patient) -> None:
    patient.load(WEB.replace("web", "wed"))
    patient.is_cured_of("no-such-domain")


@rules_have_no_part
def test_a_domain_of_that_name_on_a_later_uri(patient: Patient) -> None:
    twin = LxcGuest(patient.host, "test", Link("default", ("192.168.122.12/24",)))
    patient.mend.callback(twin.remove)
    twin.start()
    head = '[daemon]\nlibvirt = ["lxc:///system", "test:///default"]\n'
    patient.load(entry("test", "8000:80", "192.168.122.12"), head)
    wait_until(lambda: patient.fetch().text == f"test {CLIENT4}", "the guest of the first URI answers")
    assert patient.explain(ASKED)["works"]
    assert "there is another domain test on test:///default" in patient.command("status")


@rules_have_no_part
def test_an_address_that_is_the_gateways(patient: Patient) -> None:
    patient.load(WEB.replace("WEB4", "192.168.122.1"))
    patient.is_cured_of("address-refused")


@rules_have_no_part
def test_the_other_family(patient: Patient) -> None:
    patient.is_cured_of("wrong-family", f"[{PUBLIC6}]:8000", probe=lambda: patient.fetch(PUBLIC6))


@rules_have_no_part
def test_a_configuration_that_is_refused(patient: Patient) -> None:
    patient.load("")
    patient.write(WEB.replace("ports", "prots"))
    patient.is_cured_of("configuration-refused")


@rules_have_no_part
def test_a_configuration_that_was_not_loaded(patient: Patient) -> None:
    patient.load("")
    patient.write(WEB)
    patient.is_cured_of("not-loaded")


@pytest.mark.in_turn
@each_backend
def test_localhost(patient: Patient) -> None:
    probe = partial(patient.host.place.fetch, "http://127.0.0.1:8000/", timeout=0.5)
    patient.is_cured_of("localhost-off", "127.0.0.1:8000", probe=probe)


# --- libvirt and the guest -------------------------------------------------------------------------------------------


@pytest.mark.in_turn
@each_libvirt
def test_a_domain_that_does_not_run(patient: Patient) -> None:
    patient.web.stop()
    patient.is_cured_of("domain-not-running")


@pytest.mark.in_turn
@each_libvirt
def test_a_network_that_is_not_active(patient: Patient) -> None:
    patient.host.libvirt.destroy_network("default")
    patient.mend.callback(patient.host.run, "ip", "link", "set", port_of(patient.neighbour), "master", "virbr0")
    patient.is_cured_of("network-not-active")


@pytest.mark.in_turn
@each_libvirt
def test_an_interface_that_was_unplugged(patient: Patient) -> None:
    patient.host.run("ip", "link", "set", port_of(patient.web), "nomaster")
    patient.is_cured_of("unplugged")


@pytest.mark.in_turn
@each_libvirt
def test_a_guest_without_an_address(patient: Patient) -> None:
    patient.host.libvirt.define_network("leased", "192.168.124.0/24", dhcp=True)
    late = LxcGuest(patient.host, "late", Link("leased"))
    patient.mend.callback(patient.host.libvirt.remove_network, "leased")
    patient.mend.callback(late.remove)
    late.start()
    patient.load('[[forward]]\ndomain = "late"\nports = ["8000:80"]\n')
    patient.far, far = late, patient.far
    patient.is_cured_of("no-address")
    patient.far = far


@pytest.mark.in_turn
@each_libvirt
def test_libvirt_is_away(patient: Patient) -> None:
    patient.stop()
    patient.command("flush")
    patient.host.libvirt.stop()
    patient.start(wait=False)
    patient.is_cured_of("libvirt-unreachable")


@pytest.mark.in_turn
def test_while_libvirt_is_away_what_is_in_the_kernel_works(patient: Patient) -> None:
    patient.host.libvirt.stop()
    patient.mend.callback(patient.host.libvirt.start)
    report = patient.explain(ASKED)
    assert report["works"]
    assert report["commands"] == ["systemctl start libvirtd"]


@rules_have_no_part
def test_nothing_listens_in_the_guest(patient: Patient) -> None:
    patient.load(entry("web", "8000:8009", "WEB4"))
    patient.is_cured_of("guest-refuses", probe=partial(patient.host.outside.tcp, PUBLIC4, 8000, timeout=0.5))


@rules_have_no_part
def test_the_guests_own_firewall(patient: Patient) -> None:
    rules = "table inet own { chain in { type filter hook input priority 0; tcp dport 80 drop; }; }"
    patient.web.run("nft", rules)
    patient.is_cured_of("guest-silent")


@rules_have_no_part
def test_a_guest_that_lost_its_address(patient: Patient) -> None:
    patient.mend.callback(patient.web.run, "ip", "route", "replace", "default", "via", "192.168.122.1")
    patient.mend.callback(patient.web.run, "ip", "address", "replace", f"{WEB4}/24", "dev", "eth0")
    patient.web.run("ip", "address", "del", f"{WEB4}/24", "dev", "eth0")
    # What the host last heard says nothing of now, good as it would be for half a minute.
    assert WEB4 in patient.host.run("ip", "neighbour", "show", "dev", "virbr0", "nud", "reachable").stdout
    patient.is_cured_of("guest-unreachable")


# --- the daemon ------------------------------------------------------------------------------------------------------


@rules_have_no_part
def test_the_daemon_does_not_run(patient: Patient) -> None:
    patient.stop()
    patient.command("flush")
    patient.is_cured_of("daemon-not-running")


@each_backend
def test_a_gate_that_is_not_first(patient: Patient) -> None:
    patient.kill()
    if patient.host.flavour.firewall is LibvirtFirewall.NFTABLES:
        patient.host.run("nft", "insert", "rule", "ip", "libvirt_network", "forward", "oifname", "virbr0", "reject")
        patient.mend.callback(patient.host.run, "nft", "-f", "-", stdin=_without_reject(patient))
    else:
        kind = "legacy" if patient.host.flavour.firewall is LibvirtFirewall.LEGACY else "nft"
        rule = ("FORWARD", "-o", "virbr0", "-j", "REJECT")
        patient.host.run(f"iptables-{kind}", "-I", *rule)
        patient.mend.callback(patient.host.run, f"iptables-{kind}", "-D", *rule)
    patient.is_cured_of("gate-shut")


def _without_reject(patient: Patient) -> str:
    listed = patient.host.run("nft", "-a", "list", "chain", "ip", "libvirt_network", "forward").stdout
    handle = next(line.rpartition(" ")[2] for line in listed.splitlines() if "reject" in line)
    return f"delete rule ip libvirt_network forward handle {handle}\n"


# --- rules of others, and the kernel ---------------------------------------------------------------------------------


@pytest.mark.in_turn
@each_backend
def test_a_forward_chain_of_the_administrator(patient: Patient) -> None:
    nft(patient, "chain forward { type filter hook forward priority 0; policy drop; ct state established accept; }")
    report = patient.is_cured_of("refused")
    chain = next(step["chain"] for step in report["steps"] if step["cause"] == "refused")
    assert (chain["table"], chain["policy"], chain["owner"], chain["rule"]) == ("admin", "drop", "admin", None)


@pytest.mark.in_turn
@each_backend
def test_a_rule_before_connections_are_tracked(patient: Patient) -> None:
    nft(patient, "chain pre { type filter hook prerouting priority raw; tcp dport 8000 drop; }")
    report = patient.is_cured_of("refused-early")
    chain = next(step["chain"] for step in report["steps"] if step["cause"] == "refused-early")
    assert chain["rule"]["text"] == "tcp dport 8000 drop"


@each_backend
def test_a_rule_of_iptables_in_mangle(patient: Patient) -> None:
    kind = "legacy" if patient.host.flavour.firewall is LibvirtFirewall.LEGACY else "nft"
    patient.mend.callback(patient.host.run, f"iptables-{kind}", "-t", "mangle", "-F", "PREROUTING")
    drop = ("-p", "tcp", "-m", "multiport", "--dports", "7000,8000", "-j", "DROP")
    patient.host.run(f"iptables-{kind}", "-t", "mangle", "-A", "PREROUTING", *drop)
    report = patient.is_cured_of("refused-early")
    chain = next(step["chain"] for step in report["steps"] if step["cause"] == "refused-early")
    assert chain["backend"] == f"iptables-{kind}"


@pytest.mark.in_turn
@each_backend
def test_another_tool_that_translates_first(patient: Patient) -> None:
    nft(patient, "chain pre { type nat hook prerouting priority -110; tcp dport 8000 dnat ip to 192.168.122.11:81; }")
    patient.is_cured_of("taken")


@pytest.mark.in_turn
@each_backend
def test_connections_that_are_not_tracked(patient: Patient) -> None:
    nft(patient, "chain pre { type filter hook prerouting priority raw; tcp dport 8000 notrack; }")
    patient.is_cured_of("untracked")


@pytest.mark.in_turn
def test_forwarding_is_off(patient: Patient) -> None:
    patient.load(WEB, HEAD + "ip_forward = false\n")
    patient.host.run("sysctl", "-w", "net.ipv4.ip_forward=0")
    patient.is_cured_of("forwarding-off")


@pytest.mark.in_turn
def test_the_answer_would_leave_by_another_interface(patient: Patient) -> None:
    patient.host.run("sysctl", "-w", "net.ipv4.conf.eth1.rp_filter=1")
    patient.mend.callback(patient.host.run, "sysctl", "-w", "net.ipv4.conf.eth1.rp_filter=0")
    asked = f"{OTHER_LINK4}:8000", "--from", CLIENT4_SECOND
    patient.is_cured_of("reverse-path", *asked, probe=lambda: patient.fetch(OTHER_LINK4, source=CLIENT4_SECOND))


@pytest.mark.in_turn
@pytest.mark.parametrize("route", [(f"{WEB4}/32", "via", CLIENT4), ("prohibit", f"{WEB4}/32")])
def test_a_route_that_leads_elsewhere(patient: Patient, route: tuple[str, ...]) -> None:
    patient.host.run("ip", "route", "add", *route)
    patient.is_cured_of("route-astray")


@rules_have_no_part
def test_a_bridge_that_is_switched_off(patient: Patient) -> None:
    patient.load(entry("far", "8000:80", "FAR4"))
    patient.host.run("ip", "link", "set", patient.host.libvirt.bridge("other"), "down")
    patient.is_cured_of("bridge-down")


@pytest.mark.in_turn
@each_backend
def test_a_guest_that_reaches_itself(patient: Patient) -> None:
    patient.host.run("sysctl", "-w", "net.bridge.bridge-nf-call-iptables=1")
    probe = partial(patient.web.place.fetch, f"http://{ASKED}/", timeout=0.5)
    wait_until(lambda: probe().answered, "it reaches itself")
    # A daemon that runs puts it back by itself.
    patient.stop()
    patient.host.run("bridge", "link", "set", "dev", port_of(patient.web), "hairpin", "off")
    patient.is_cured_of("hairpin-off", ASKED, "--from", WEB4, probe=probe)


@pytest.mark.in_turn
@each_backend
def test_a_public_address_that_is_one_guest(patient: Patient) -> None:
    patient.load(filled('[[nat]]\ndomain = "web"\naddress = "WEB4"\npublic = "198.51.100.8"\n'))
    patient.mend.callback(patient.host.run, "ip", "address", "del", "198.51.100.8/24", "dev", "eth0")
    patient.is_cured_of("not-our-address", "198.51.100.8:80", probe=lambda: patient.fetch("198.51.100.8", 80))


@pytest.mark.in_turn
@each_backend
def test_a_routed_address(patient: Patient) -> None:
    host = patient.host
    host.libvirt.define_network("public", "192.168.130.0/24")
    patient.mend.callback(host.libvirt.remove_network, "public")
    routed = LxcGuest(host, "routed", Link("public", ("192.168.130.10/24",)))
    patient.mend.callback(routed.remove)
    routed.start().run("ip", "address", "add", "203.0.113.66/32", "dev", "eth0")
    host.outside.run(["ip", "route", "add", "203.0.113.64/29", "via", PUBLIC4])
    patient.mend.callback(host.outside.run, ["ip", "route", "del", "203.0.113.64/29"])
    patient.load('[[route]]\nnetwork = "public"\naddresses = ["203.0.113.64/29"]\n')
    assert patient.explain("203.0.113.66:80")["works"]
    patient.stop()
    patient.command("flush")
    patient.is_cured_of("daemon-not-running", "203.0.113.66:80", probe=partial(patient.fetch, "203.0.113.66", 80))
