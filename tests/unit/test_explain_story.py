"""The whole walk on hosts made up of plain data: which cause is named, and what the last sentence says."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from fwdaemon.cli import main
from fwdaemon.config import parse
from fwdaemon.config.model import Config
from fwdaemon.errors import ConfigError
from fwdaemon.explain.facts import GuestAnswer, RouteAnswer
from fwdaemon.explain.guest import Libvirt
from fwdaemon.explain.nft_listing import base_chains
from fwdaemon.explain.report import Cause, Report, Standing
from fwdaemon.explain.request import parse_request
from fwdaemon.explain.rules import BaseChain
from fwdaemon.explain.show import as_json, as_text
from fwdaemon.explain.story import explain, refused
from fwdaemon.inventory import AddressSource, Domain, GuestInterface, Inventory, LearnedAddress, Network
from fwdaemon.model import Family, Protocol
from fwdaemon.sockets.model import Listener
from tests.unit.explaining import PlainHost, native, own
from tests.unit.forwards import address, subnets

MAIN = "/etc/portfwd.toml"
MAC = "52:54:00:00:00:01"
GUEST = LearnedAddress(address("192.168.122.10"), AddressSource.LEASE)
INTERFACE = GuestInterface(MAC, "default", "virbr0", "vnet0", (GUEST,))
WEB = Domain("web", UUID(int=1), running=True, interfaces=(INTERFACE,))
NETWORK = Network(
    "default",
    active=True,
    bridge="virbr0",
    subnets=tuple(subnets("192.168.122.0/24")),
    gateways=(address("192.168.122.1"),),
)
HELD = (own("127.0.0.1/8", "lo"), own("198.51.100.1/24", "eth0"), own("192.168.122.1/24", "virbr0"))
HELD6 = (own("::1/128", "lo"), own("2001:db8::1/64", "eth0"))
SETTINGS = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.eth0.forwarding": "1", "net.ipv6.conf.all.forwarding": "1"}
HOST_ROUTE = next(iter(subnets("192.168.122.10/32")))
DEFAULT = RouteAnswer("eth0", address("198.51.100.2"), subnet=next(iter(subnets("0.0.0.0/0"))))
FORWARD = '[[forward]]\ndomain = "web"\nports = ["8000:80"]\n'

DADDR = {"payload": {"protocol": "ip", "field": "daddr"}}
DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
MARK = {"ct": {"key": "mark"}}
GATE = [{"match": {"op": "==", "left": {"&": [MARK, 0x02000000]}, "right": 0x02000000}}, {"accept": None}]


def ours(to: str = "192.168.122.10", *, public: str | None = None) -> Sequence[BaseChain]:
    """Our own rule for port 8000, or for a public address, as nft lists it."""
    table = {"family": "ip", "table": "kvm_portfwd"}
    match: Mapping[str, object] = {"op": "==", "left": DPORT, "right": 8000}
    if public is not None:
        match = {"op": "==", "left": DADDR, "right": public}
    expressions = [
        {"match": match},
        {"mangle": {"key": MARK, "value": {"|": [MARK, 0x02000000]}}},
        {"dnat": {"addr": to} if public else {"addr": to, "port": 80}},
    ]
    chain = {"name": "prerouting", "type": "nat", "hook": "prerouting", "prio": -105, "policy": "accept", "handle": 1}
    rule = {"chain": "prerouting", "handle": 2, "expr": expressions}
    return base_chains(json.dumps({"nftables": [{"chain": table | chain}, {"rule": table | rule}]}), {})


def config(text: str = FORWARD) -> Config:
    return parse({Path(MAIN): text})


def libvirt(*domains: Domain, networks: Sequence[Network] = (NETWORK,)) -> Libvirt:
    return Libvirt(Inventory(domains or (WEB,), tuple(networks), HELD))


def host(**changes: object) -> PlainHost:
    world = PlainHost(
        held=(*HELD, *HELD6),
        rules=ours(),
        settings=dict(SETTINGS),
        masters={"vnet0": "virbr0"},
    )
    return replace(world, **changes)  # type: ignore[arg-type]  # a test's own words


def told(
    asked: str = "198.51.100.1:8000",
    source: str | None = None,
    *,
    text: str = FORWARD,
    said: Libvirt | None = None,
    world: PlainHost | None = None,
) -> Report:
    return explain(parse_request(asked, source), config(text), said or libvirt(), world or host(), MAIN)


def cause(report: Report) -> Cause | None:
    return report.failure.cause if report.failure is not None else None


def test_it_works() -> None:
    world = host()
    report = told(world=world)
    assert report.sentence == "It works: tcp 198.51.100.1:8000 leads to web, 192.168.122.10:80."
    assert all(step.standing is Standing.FINE for step in report.steps)
    assert world.asked == [(address("192.168.122.10"), 80)]


def test_the_guest_is_asked_only_where_it_is_believed_to_be() -> None:
    gateway = LearnedAddress(address("192.168.122.1"), AddressSource.LEASE)
    world = host()
    domain = replace(WEB, interfaces=(replace(INTERFACE, learned=(gateway,)),))
    assert cause(told(said=libvirt(domain), world=world)) is Cause.ADDRESS_REFUSED
    assert world.asked == []


@pytest.mark.parametrize(
    ("asked", "text", "expected", "sentence"),
    [
        ("198.51.100.1:8001", FORWARD, Cause.UNCLAIMED, r'Add "8001:80" to ports in /etc/portfwd.toml:3,'),
        ("198.51.100.1:8000/udp", FORWARD, Cause.UNCLAIMED, r'Add "8000:80/udp" to ports'),
        ("198.51.100.1:8001", "", Cause.UNCLAIMED, r"Write a \[\[forward\]\] with this port into /etc/portfwd.toml,"),
        ("198.51.100.9:8000", FORWARD, Cause.NOT_OUR_ADDRESS, r"`ip address add 198.51.100.9/24 dev eth0`"),
        ("[::1]:8000", FORWARD, Cause.LOCALHOST_IMPOSSIBLE, r"Connect to 2001:db8::1 instead"),
        ("127.0.0.1:8000", FORWARD, Cause.LOCALHOST_OFF, r"Write localhost = true under \[daemon\]"),
        ("[2001:db8::1]:8000", FORWARD, Cause.WRONG_FAMILY, r"Give network default an IPv6 subnet"),
        (
            "198.51.100.1:8000",
            FORWARD + 'listen = "198.51.100.2"\n',
            Cause.UNCLAIMED,
            r"Connect to 198.51.100.2 instead",
        ),
        (
            "198.51.100.1:8000",
            FORWARD + 'interface = "eth1"\n',
            Cause.WRONG_INTERFACE,
            r'Connect through eth1, or write interface = "eth0" in /etc/portfwd.toml:1 ',
        ),
        (
            "127.0.0.1:8000",
            "[daemon]\nlocalhost = true\n" + FORWARD + 'interface = "eth1"\n',
            Cause.UNCLAIMED,
            r"Connect from outside through eth1",
        ),
    ],
)
def test_causes_in_the_configuration(asked: str, text: str, expected: Cause, sentence: str) -> None:
    report = told(asked, text=text)
    assert cause(report) is expected
    assert re.search(sentence, report.sentence), report.sentence


def test_a_daemon_that_does_not_run_is_not_asked_to_reload() -> None:
    report = told("198.51.100.1:8001", world=host(daemon_pid=None))
    assert report.commands == ["systemctl enable --now kvm-portfwd"]


def test_localhost_is_for_the_host_itself() -> None:
    report = told("127.0.0.1:8000", "203.0.113.9", text="[daemon]\nlocalhost = true\n" + FORWARD)
    assert cause(report) is Cause.ONLY_FROM_HOST


def test_a_source_has_to_be_allowed() -> None:
    text = FORWARD + 'sources = ["203.0.113.0/24"]\n'
    assert told(text=text).works
    assert told(text=text).title == "tcp 198.51.100.1:8000 from 203.0.113.1 through eth0"
    report = told(source="198.51.100.77", text=text)
    assert cause(report) is Cause.SOURCE_REFUSED
    assert report.sentence.startswith('Add "198.51.100.77/32" to sources in /etc/portfwd.toml:1,')
    assert "translation" not in {step.name for step in report.steps}


def test_a_port_alone_means_the_address_that_an_entry_names() -> None:
    world = host(held=(*HELD, own("198.51.100.7/24", "eth0")))
    report = told(":8000", text=FORWARD + 'listen = "198.51.100.7"\n', world=world)
    assert report.title == "tcp 198.51.100.7:8000 from a client outside through eth0"
    assert told(":8000").title == "tcp 198.51.100.1:8000 from a client outside through eth0"


@pytest.mark.parametrize(
    ("domains", "expected", "sentence"),
    [
        (
            (replace(WEB, running=False, interfaces=()),),
            Cause.DOMAIN_NOT_RUNNING,
            "`virsh -c qemu:///system start web`",
        ),
        ((replace(WEB, name="webb"),), Cause.NO_SUCH_DOMAIN, 'Write domain = "webb" in /etc/portfwd.toml:1,'),
        ((replace(WEB, name="mail"),), Cause.NO_SUCH_DOMAIN, 'Define domain "web" in libvirt, or write another'),
        (
            (replace(WEB, uuid=UUID(int=2), running=False, interfaces=()), WEB),
            Cause.AMBIGUOUS_DOMAIN,
            f'Write domain = "{WEB.uuid}" in /etc/portfwd.toml:1,',
        ),
        (
            (replace(WEB, interfaces=(replace(INTERFACE, learned=()),)),),
            Cause.NO_ADDRESS,
            "Let the guest take an address by DHCP, or write its address = … in /etc/portfwd.toml:1",
        ),
        ((replace(WEB, interfaces=()),), Cause.ADDRESS_REFUSED, "has no network interface"),
    ],
)
def test_causes_in_libvirt(domains: tuple[Domain, ...], expected: Cause, sentence: str) -> None:
    report = told(said=libvirt(*domains), world=host(rules=[]))
    assert cause(report) is expected
    assert sentence in report.sentence


def test_a_network_that_is_not_active_and_the_guest_to_be_plugged_in_again() -> None:
    report = told(said=libvirt(networks=[replace(NETWORK, active=False)]))
    assert cause(report) is Cause.NETWORK_NOT_ACTIVE
    commands = ["virsh -c qemu:///system net-start default", "ip link set vnet0 master virbr0"]
    assert re.findall("`(.*?)`", report.sentence) == commands


def test_what_the_daemon_learned_from_elsewhere_counts() -> None:
    domain = replace(WEB, interfaces=(replace(INTERFACE, learned=()),))
    report = told(said=libvirt(domain))
    assert report.works
    assert "our rules, made earlier, lead to 192.168.122.10" in "".join(step.text for step in report.steps)


def test_without_libvirt_the_kernels_rules_tell() -> None:
    away = Libvirt(None, "libvirt at qemu:///system does not answer")
    world = host()
    report = told(said=away, world=world)
    assert report.works
    assert "`systemctl start libvirtd`" in report.sentence
    assert world.asked == []
    report = told(said=away, world=host(rules=[]))
    assert cause(report) is Cause.LIBVIRT_UNREACHABLE
    assert report.sentence == "Start libvirt, `systemctl start libvirtd`."


@pytest.mark.parametrize(
    ("changes", "expected", "sentence"),
    [
        ({"rules": [], "daemon_pid": None}, Cause.DAEMON_NOT_RUNNING, "`systemctl enable --now kvm-portfwd`"),
        ({"rules": []}, Cause.NOT_LOADED, "`kvm-portfwd reload`"),
        ({"rules": ours(to="192.168.122.11")}, Cause.NOT_LOADED, "`kvm-portfwd reload`"),
        ({"masters": {}}, Cause.UNPLUGGED, "`ip link set vnet0 master virbr0`"),
        ({"settings": {}}, None, "there is no net.ipv4.conf.eth0.forwarding"),
        (
            {"settings": SETTINGS | {"net.ipv4.conf.eth0.forwarding": "0"}},
            Cause.FORWARDING_OFF,
            "`sysctl -w net.ipv4.conf.eth0.forwarding=1`",
        ),
        (
            {"settings": SETTINGS | {"net.ipv4.conf.eth0.forwarding": "0", "net.ipv4.ip_forward": "0"}},
            Cause.FORWARDING_OFF,
            "`sysctl -w net.ipv4.ip_forward=1`",
        ),
        ({"down": frozenset({"virbr0"})}, Cause.BRIDGE_DOWN, "`ip link set virbr0 up`"),
        (
            {"routes": {"192.168.122.10": RouteAnswer("tun0", None, subnet=next(iter(subnets("192.168.0.0/16"))))}},
            Cause.ROUTE_ASTRAY,
            "`ip route add 192.168.122.0/24 dev virbr0`",
        ),
        (
            {
                "routes": {
                    "192.168.122.10": RouteAnswer(
                        "tun0", address("10.0.0.1"), subnet=next(iter(subnets("0.0.0.0/0"))), table=77
                    )
                }
            },
            Cause.ROUTE_ASTRAY,
            "`ip route del 0.0.0.0/0 via 10.0.0.1 dev tun0 table 77`",
        ),
        (
            {"held": HELD[:2], "routes": {"192.168.122.10": DEFAULT}},
            Cause.ROUTE_ASTRAY,
            "`ip route add 192.168.122.10/32 dev virbr0`",
        ),
        (
            {"routes": {"192.168.122.10": RouteAnswer(None)}},
            Cause.ROUTE_ASTRAY,
            "`ip route add 192.168.122.0/24 dev virbr0`",
        ),
        (
            {"routes": {"192.168.122.10": RouteAnswer(None, subnet=HOST_ROUTE, kind="blackhole")}},
            Cause.ROUTE_ASTRAY,
            "`ip route del blackhole 192.168.122.10/32`",
        ),
        ({"guest": GuestAnswer.REFUSES}, Cause.GUEST_REFUSES, "nothing listens on tcp port 80 of 192.168.122.10"),
        ({"guest": GuestAnswer.SILENT}, Cause.GUEST_SILENT, "Have the guest's own firewall admit tcp port 80"),
        ({"guest": GuestAnswer.UNREACHABLE}, Cause.GUEST_UNREACHABLE, "Give the guest the address 192.168.122.10"),
    ],
)
def test_causes_on_the_host(changes: dict[str, object], expected: Cause | None, sentence: str) -> None:
    report = told(world=host(**changes))
    assert cause(report) is expected
    assert sentence in report.sentence + "".join(step.text for step in report.steps)


def test_a_strict_reverse_path_matters_only_where_the_way_back_is_another() -> None:
    strict = SETTINGS | {"net.ipv4.conf.all.rp_filter": "1", "net.ipv4.conf.eth0.rp_filter": "0"}
    assert told(source="198.51.100.77", world=host(settings=strict)).works
    held = (*HELD, own("198.51.101.1/24", "eth1"))
    there = {"203.0.113.9": RouteAnswer("eth1", address("198.51.101.2")), "198.51.100.1": RouteAnswer(None)}
    report = told(source="203.0.113.9", world=host(settings=strict, held=held, routes=there))
    assert cause(report) is Cause.REVERSE_PATH
    assert "`sysctl -w net.ipv4.conf.eth0.rp_filter=2`" in report.sentence


def test_an_interface_with_a_dot_in_its_name() -> None:
    held = (HELD[0], own("198.51.100.1/24", "eth0.7"), HELD[2])
    off = {"net.ipv4.conf.eth0/7.forwarding": "0", "net.ipv4.ip_forward": "1"}
    assert "`sysctl -w net.ipv4.conf.eth0/7.forwarding=1`" in told(world=host(held=held, settings=off)).sentence


# --- rules of others -------------------------------------------------------------------------------------------------


def forward_chain(*rules: Sequence[object], **base: Any) -> BaseChain:
    return native(*rules, **{"hook": "forward", **base})


@pytest.mark.parametrize(
    ("chain", "expected", "sentence"),
    [
        (
            forward_chain(policy="drop"),
            Cause.REFUSED,
            'Write gates = ["inet t c"] under [daemon] in /etc/portfwd.toml, and run `kvm-portfwd reload`.',
        ),
        (forward_chain(GATE, policy="drop"), None, "It works"),
        (forward_chain([{"limit": {}}, {"drop": None}]), None, "inet t c may refuse it"),
        (
            native([{"match": {"op": "==", "left": DPORT, "right": 8000}}, {"drop": None}], prio=-300),
            Cause.REFUSED_EARLY,
            "`nft insert rule inet t c ip daddr 198.51.100.1 tcp dport 8000 accept`",
        ),
        (
            native([{"notrack": None}], prio=-300),
            Cause.UNTRACKED,
            "`nft insert rule inet t c ip daddr 198.51.100.1 tcp dport 8000 accept`",
        ),
        (
            native([{"dnat": {"addr": "10.0.0.1"}}], type="nat", prio=-110),
            Cause.TAKEN,
            "`nft insert rule inet t c ip daddr 198.51.100.1 tcp dport 8000 accept`",
        ),
        (native([{"limit": {}}, {"dnat": {"addr": "10.0.0.1"}}], type="nat", prio=-110), None, "inet t c may take it"),
        (native([{"dnat": {"addr": "10.0.0.1"}}], type="nat", prio=-100), None, "It works"),
        (
            native([{"drop": None}], hook="postrouting"),
            Cause.REFUSED,
            "`nft insert rule inet t c ip daddr 192.168.122.10 tcp dport 80 accept`",
        ),
        (
            native([{"drop": None}], family="netdev", hook="ingress", dev="eth0"),
            Cause.REFUSED_EARLY,
            "`nft insert rule netdev t c ip daddr 198.51.100.1 tcp dport 8000 accept`",
        ),
        (native([{"drop": None}], family="netdev", hook="ingress", dev="eth1"), None, "It works"),
        (
            native([{"drop": None}], family="bridge", hook="postrouting"),
            Cause.REFUSED,
            "`nft insert rule bridge t c ip daddr 192.168.122.10 tcp dport 80 accept`",
        ),
        (native([{"drop": None}], hook="input"), None, "It works"),
        (
            forward_chain(
                [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}, {"accept": None}],
                policy="drop",
            ),
            Cause.REFUSED,
            'Write gates = ["inet t c"]',
        ),
    ],
)
def test_rules_of_others(chain: object, expected: Cause | None, sentence: str) -> None:
    report = told(world=host(rules=[*ours(), chain]))
    assert cause(report) is expected
    assert sentence in report.sentence


FROM_GUEST = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "virbr0"}}


@pytest.mark.parametrize(
    ("chain", "expected", "sentence"),
    [
        (forward_chain([FROM_GUEST, {"drop": None}]), Cause.REFUSED, 'Write gates = ["inet t c"]'),
        (forward_chain(GATE, [FROM_GUEST, {"drop": None}]), None, "It works"),
        (
            native([FROM_GUEST, {"drop": None}], prio=-300),
            Cause.REFUSED_EARLY,
            "`nft insert rule inet t c ip saddr 192.168.122.10 tcp sport 80 accept`",
        ),
    ],
)
def test_the_answer_has_to_come_back(chain: BaseChain, expected: Cause | None, sentence: str) -> None:
    report = told(world=host(rules=[*ours(), chain]))
    assert cause(report) is expected
    assert sentence in report.sentence
    assert expected is None or "answer back" in {step.name for step in report.steps}


def test_a_gate_that_the_daemon_would_keep() -> None:
    chain = forward_chain(policy="drop")
    text = '[daemon]\ngates = ["inet t c"]\n' + FORWARD
    report = told(text=text, world=host(rules=[*ours(), chain], daemon_pid=None))
    assert cause(report) is Cause.GATE_SHUT
    assert report.sentence == "Start the service: `systemctl enable --now kvm-portfwd`."
    report = told(text=text, world=host(rules=[*ours(), chain]))
    assert report.sentence == "Mend our rules: `systemctl restart kvm-portfwd`."


def test_the_first_certain_cause_has_the_last_word_and_others_are_listed() -> None:
    chain = forward_chain(policy="drop")
    report = told(world=host(rules=[*ours(), chain], guest=GuestAnswer.REFUSES, settings={"net.ipv4.ip_forward": "0"}))
    found = [step.cause for step in report.steps if step.standing is Standing.WRONG]
    assert found == [Cause.REFUSED, Cause.GUEST_REFUSES]
    assert report.sentence.startswith("Write gates")


def test_a_name_from_outside_is_no_command() -> None:
    chain = replace(native([{"drop": None}], prio=-300), table="a`; `reboot`")
    report = told(world=host(rules=[*ours(), chain]))
    assert cause(report) is Cause.REFUSED_EARLY
    assert report.commands == []
    assert "`" not in report.sentence


# --- 1:1 addresses, routes, the host itself --------------------------------------------------------------------------


NAT = '[[nat]]\ndomain = "web"\npublic = "203.0.113.8"\n'
ROUTE = '[[route]]\nnetwork = "default"\naddresses = ["203.0.113.64/29"]\n'


def test_a_public_address_that_has_to_be_routed_here() -> None:
    report = told("203.0.113.8:25", text=NAT, world=host(rules=ours(public="203.0.113.8")))
    assert report.works
    assert "203.0.113.8 has to be routed to this host by whoever is upstream" in report.sentence


def test_a_route_needs_no_translation() -> None:
    routes = {"203.0.113.66": RouteAnswer("virbr0", subnet=next(iter(subnets("203.0.113.64/29"))))}
    world = host(rules=[], routes=routes)
    report = told("203.0.113.66:25", text=ROUTE, world=world)
    assert report.works
    assert world.asked == []
    report = told("203.0.113.66:25", text=ROUTE, world=host(rules=[], routes={"203.0.113.66": DEFAULT}))
    assert cause(report) is Cause.NOT_LOADED
    assert report.commands == ["kvm-portfwd reload"]


@pytest.mark.parametrize(
    ("networks", "expected", "sentence"),
    [
        ((), Cause.NO_SUCH_NETWORK, "Write a network that libvirt has (none) in /etc/portfwd.toml:"),
        ((replace(NETWORK, active=False),), Cause.NETWORK_NOT_ACTIVE, "`virsh -c qemu:///system net-start default`"),
    ],
)
def test_a_route_needs_its_network(networks: tuple[Network, ...], expected: Cause, sentence: str) -> None:
    report = told("203.0.113.66:25", text=ROUTE, said=libvirt(networks=networks))
    assert cause(report) is expected
    assert sentence in report.sentence


def test_a_process_of_the_host_that_listens_there() -> None:
    sockets = [Listener(Protocol.TCP, frozenset(Family), None, port) for port in (22, 8000)]
    steps = told(world=host(sockets=sockets)).steps
    text = next(step.text for step in steps if step.name == "host socket")
    assert text == "holder of 8000 of this host listens there itself; the forward goes before it"
    report = told("198.51.100.1:22", world=host(sockets=sockets, rules=[native(hook="input")]))
    assert cause(report) is Cause.UNCLAIMED
    assert "input" in {step.name for step in report.steps}


@pytest.mark.parametrize(
    ("hairpin", "through_netfilter", "expected"),
    [(frozenset(), "1", Cause.HAIRPIN_OFF), (frozenset({"vnet0"}), "1", None), (frozenset(), "0", None)],
)
def test_a_guest_that_reaches_itself(hairpin: frozenset[str], through_netfilter: str, expected: Cause | None) -> None:
    settings = SETTINGS | {"net.bridge.bridge-nf-call-iptables": through_netfilter}
    report = told(source="192.168.122.10", world=host(hairpin=hairpin, settings=settings))
    assert cause(report) is expected


# --- how it is told --------------------------------------------------------------------------------------------------


def test_a_configuration_that_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        config("nonsense = 1\n[[forward]]\n")
    report = refused(parse_request(":80"), caught.value, host())
    assert cause(report) is Cause.CONFIGURATION_REFUSED
    assert report.commands == ["kvm-portfwd reload"]
    off = refused(parse_request(":80"), caught.value, host(daemon_pid=None))
    assert off.commands == ["systemctl enable --now kvm-portfwd"]
    assert report.sentence.startswith(f"Mend {MAIN}:1: ")


HOSTILE = 'x"; `reboot` \x1b[31m\n' + "y" * 200


def test_on_a_terminal_it_fits_and_commands_stay_whole() -> None:
    domain = replace(WEB, name=HOSTILE, running=False, interfaces=())
    held = (HELD[0], own("198.51.100.1/24", "eth\x1b0"), HELD[2])
    world = host(rules=[], held=held)
    report = told(text=FORWARD.replace('"web"', json.dumps(HOSTILE)), said=libvirt(domain), world=world)
    text = as_text(report, terminal=True, unicode=True)
    assert all(len(line) <= 80 or "`" in line for line in text.splitlines())
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert f"`virsh -c qemu:///system start {WEB.uuid}`" in text
    assert "✗ domain" in text
    assert "NO domain" in as_text(report, terminal=True, unicode=False)
    assert as_text(report, terminal=False, unicode=True).splitlines()[-1] == report.sentence


def test_the_keys_of_json() -> None:
    found = json.loads(as_json(told(world=host(rules=[*ours(), forward_chain(policy="drop")]))))
    assert found.keys() == {"schema_version", "connection", "works", "cause", "sentence", "commands", "steps"}
    assert found["cause"] == "refused"
    assert found["commands"] == ["kvm-portfwd reload"]
    chain = next(step["chain"] for step in found["steps"] if step["state"] == "no")
    assert chain["verdict"] == "refuses"
    assert (chain["family"], chain["table"], chain["name"], chain["policy"]) == ("inet", "t", "c", "drop")


def test_a_connection_that_cannot_be_understood_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "web:80"]) == 2
    assert capsys.readouterr().err.startswith("kvm-portfwd: 'web' is not an IP address")
