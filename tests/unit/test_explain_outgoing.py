"""A guest's own connection is followed out of the host, and who refuses it is named."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fwdaemon.core.inventory import Inventory, Network
from fwdaemon.core.types import Family
from fwdaemon.explain.guest import Libvirt
from fwdaemon.explain.report import Cause, Report, RouteAnswer
from fwdaemon.rulesets.packet import BaseChain
from tests.dockers_rules import BEGUN
from tests.unit.explaining import PlainHost, native, saved
from tests.unit.trace_scene import FORWARD, HELD, NETWORK, SETTINGS, WEB, cause, host, told

OUTSIDE = "203.0.113.9"
NAT = replace(NETWORK, forwards=True, closed=frozenset({Family.IPV4}))
KEY = "[daemon]\nkeep_guests_online = true\n"
OURS = "-A FORWARD -i virbr0 -o eth0 -m comment --comment kvm-portfwd -j ACCEPT\n"
ANSWERS = "-A FORWARD -i eth0 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"


def docker(rules: str = "") -> BaseChain:
    """The chain FORWARD with Docker's rules, and some ahead of the end."""
    return saved(BEGUN.replace("COMMIT\n", f"{rules}COMMIT\n"))


def asked(*rules: BaseChain, text: str = FORWARD, network: Network = NAT, to: str = OUTSIDE, **changes: Any) -> Report:
    settings = {**SETTINGS, "net.ipv4.conf.virbr0.forwarding": "1"}
    world = host(rules=rules, settings=settings, routes={OUTSIDE: RouteAnswer("eth0")}, **changes)
    said = Libvirt(Inventory((WEB,), (network,), HELD, uplinks=frozenset({"eth0"})))
    return told(f"{to}:443", "web", text=text, said=said, world=world)


def test_a_guest_that_nobody_refuses_gets_out() -> None:
    report = asked(native(hook="forward"))
    assert report.works
    assert [step.name for step in report.steps][:2] == ["domain", "guest"]
    assert report.sentence == "It works: what the guest sends to tcp 203.0.113.9:443 leaves this host."


def test_dockers_policy_is_named_and_the_key_that_lets_guests_through() -> None:
    report = asked(docker())
    assert cause(report) is Cause.DOCKERS_POLICY
    assert "(0, policy drop, Docker, admin) refuses: its policy" in next(
        step.text for step in report.steps if step.cause
    )
    assert "write keep_guests_online = true under [daemon] in /etc/portfwd.toml" in report.sentence
    assert report.commands == ["kvm-portfwd reload"]


def test_with_the_key_its_rules_are_to_be_mended_or_the_daemon_started() -> None:
    assert asked(docker(), text=KEY).commands == ["systemctl restart kvm-portfwd"]
    assert asked(docker(), text=KEY, daemon_pid=None).commands == ["systemctl enable --now kvm-portfwd"]
    assert asked(docker(OURS + ANSWERS), text=KEY).works


def test_an_answer_that_dockers_policy_drops_is_told_too() -> None:
    report = asked(docker(OURS))
    assert [step.name for step in report.steps if step.cause is Cause.DOCKERS_POLICY] == ["answer back"]


@pytest.mark.parametrize(
    ("rules", "who"),
    [
        ([saved("-A FORWARD -s 192.168.122.10/32 -j DROP\n")], "the administrator refuses 192.168.122.10"),
        ([saved("-A FORWARD -i virbr0 -d 203.0.113.0/24 -j REJECT\n")], "the administrator refuses 192.168.122.10"),
        ([saved("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n")], "the administrator refuses 192.168.122.10"),
        ([docker("-I FORWARD 1 -i virbr0 -j DROP\n")], "the administrator refuses 192.168.122.10"),
        ([docker("-I DOCKER-USER 1 -i virbr0 -j DROP\n")], "Docker refuses 192.168.122.10"),
        ([native([{"drop": None}], hook="forward")], "the administrator refuses 192.168.122.10"),
    ],
)
def test_what_somebody_closed_on_purpose_is_only_named(rules: Sequence[BaseChain], who: str) -> None:
    report = asked(*rules)
    assert cause(report) is Cause.ON_PURPOSE
    assert who in report.sentence
    assert "keep_guests_online" not in report.sentence
    assert not report.commands


@pytest.mark.parametrize("network", [replace(NAT, unfiltered=True), replace(NAT, forwards=False)])
def test_the_key_is_not_advised_where_libvirt_would_not_decide_or_refuses(network: Network) -> None:
    report = asked(docker(), network=network)
    assert cause(report) is Cause.ON_PURPOSE
    assert report.sentence == "This is on purpose: Docker refuses 192.168.122.10 in legacy ip filter FORWARD."


def test_a_domain_that_is_not_there_or_off_is_told() -> None:
    said = Libvirt(Inventory((replace(WEB, running=False),), (NAT,), HELD))
    assert cause(told(f"{OUTSIDE}:443", "web", said=said)) is Cause.DOMAIN_NOT_RUNNING
    report = told(f"{OUTSIDE}:443", "nobody\x1b", said=said)
    assert cause(report) is Cause.NO_SUCH_DOMAIN
    assert report.sentence == "Write an address, a network, or a domain that libvirt has (web) after --from."
    assert cause(told(f"{OUTSIDE}:443", "web", said=Libvirt(None, "libvirt does not answer"))) is (
        Cause.LIBVIRT_UNREACHABLE
    )


def test_no_way_out_is_told() -> None:
    world: PlainHost = host(routes={OUTSIDE: RouteAnswer(None)})
    assert cause(told(f"{OUTSIDE}:443", "web", world=world)) is Cause.ROUTE_ASTRAY
    world = host(dead_ends={(OUTSIDE, "virbr0"): "from all to 203.0.113.9 blackhole"})
    report = told(f"{OUTSIDE}:443", "web", world=world)
    assert cause(report) is Cause.ON_PURPOSE


def test_a_guest_reaches_a_forward_of_its_own_host_as_any_client() -> None:
    report = told("198.51.100.1:8000", "web")
    assert [step.name for step in report.steps].count("domain") == 2
    assert report.success.startswith("tcp 198.51.100.1:8000 leads to web")
