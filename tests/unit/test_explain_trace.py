"""The whole walk on hosts made up of plain data: which cause is named, and what the last sentence says."""

import re
from dataclasses import replace
from uuid import UUID

import pytest

from fwdaemon.core.inventory import AddressSource, Attachment, Domain, GuestInterface, LearnedAddress, Occupied
from fwdaemon.core.types import Protocol
from fwdaemon.explain.arrival import parse_request
from fwdaemon.explain.guest import Libvirt
from fwdaemon.explain.report import Cause, GuestAnswer, Report, RouteAnswer, StepState
from fwdaemon.explain.trace import explain
from fwdaemon.resolve.expansion import Before
from tests.unit.explaining import own
from tests.unit.forwards import address, subnets
from tests.unit.trace_scene import (
    DEFAULT,
    FORWARD,
    HELD,
    HOST_ROUTE,
    INTERFACE,
    MAIN,
    NETWORK,
    SETTINGS,
    WEB,
    cause,
    config,
    host,
    libvirt,
    ours,
    told,
)

ASSIGNED = '[[nat]]\ndomain = "web"\npublic = "198.51.100.9"\nassign = "eth0"\n'


def test_it_works() -> None:
    world = host()
    report = told(world=world)
    assert report.sentence == "It works: tcp 198.51.100.1:8000 leads to web, 192.168.122.10:80."
    assert all(step.state is StepState.FINE for step in report.steps)
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
        ("198.51.100.9:8000", ASSIGNED, Cause.NOT_OUR_ADDRESS, r"Do not add it by hand: `kvm-portfwd status` says"),
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
        ((replace(WEB, name="web*"),), Cause.NO_SUCH_DOMAIN, 'Write domain = "web[*]" in /etc/portfwd.toml:1,'),
        ((replace(WEB, name="mail"),), Cause.NO_SUCH_DOMAIN, 'Define domain "web" in libvirt, or write another'),
        (
            (replace(WEB, uuid=UUID(int=2), running=False, interfaces=()), replace(WEB, rank=1)),
            Cause.DOMAIN_NOT_RUNNING,
            "`virsh -c qemu:///system start web`",
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


def test_of_two_interfaces_the_one_on_the_network_that_is_not_active_is_plugged_in_again() -> None:
    beside = GuestInterface("52:54:00:00:00:99", None, None, "macvtap0", (), Attachment.MACVTAP, "eth0")
    guest = replace(WEB, interfaces=(*WEB.interfaces, beside))
    report = told(said=libvirt(guest, networks=[replace(NETWORK, active=False)]))
    assert cause(report) is Cause.NETWORK_NOT_ACTIVE
    commands = ["virsh -c qemu:///system net-start default", "ip link set vnet0 master virbr0"]
    assert report.commands == commands


def test_a_guest_with_nothing_but_macvtap_is_given_another_interface() -> None:
    beside = GuestInterface("52:54:00:00:00:99", None, None, "macvtap0", (), Attachment.MACVTAP, "eth0")
    guest = replace(WEB, interfaces=(beside, replace(beside, mac="52:54:00:00:00:98", device="macvtap1")))
    report = told(said=libvirt(guest))
    assert cause(report) is Cause.NOT_REACHED
    assert report.sentence.startswith("Connect to the guest's own address")


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
        ({"guest": GuestAnswer.FORBIDDEN}, None, "tcp port 80 of 192.168.122.10 was not asked"),
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


def test_an_address_that_another_machine_has_is_not_to_be_doubled() -> None:
    for text in (FORWARD, FORWARD + 'listen = "198.51.100.9"\n'):
        for source in (None, "198.51.100.1", "192.168.122.10"):
            report = told("198.51.100.9:8000", source, text=text, world=host(others=frozenset({"198.51.100.9"})))
            assert cause(report) is Cause.HELD_ELSEWHERE
            assert report.commands == []
            assert "do not give this host the same address" in report.sentence


def test_a_port_that_a_process_had_before_a_pattern_is_said_to_be_refused() -> None:
    pattern, request = config(FORWARD.replace('"web"', '"w*"')), parse_request("198.51.100.1:8000", None)
    waits = Occupied(Protocol.TCP, None, 8000)

    def beside(*used: Occupied) -> Report:
        return explain(request, pattern, libvirt(), host(), MAIN, before=Before(occupied=lambda: used))

    report = beside(waits)
    assert cause(report) is Cause.CLAIMED
    assert report.failure is not None
    assert report.failure.text == f"{MAIN}:3 asks for it and is refused: a process of the host has port 8000"
    assert report.sentence == (
        f"Write another port of the host in {MAIN}:3 and run `kvm-portfwd reload`, or have the process that has it"
        " listen elsewhere."
    )
    assert cause(beside(waits._replace(passing=True))) is None
