"""The walk through rules of others, on hosts made up of plain data."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from fwdaemon.explain.report import Cause, GuestAnswer, StepState
from fwdaemon.rulesets.nft_listing import base_chains
from fwdaemon.rulesets.packet import BaseChain
from tests.lab.command import run
from tests.unit.explaining import native, own
from tests.unit.trace_scene import DPORT, FORWARD, GATE, HELD, cause, forward_chain, host, ours, told


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
    assert report.sentence == "Repair our rules: `systemctl restart kvm-portfwd`."


def test_the_first_certain_cause_has_the_last_word_and_others_are_listed() -> None:
    chain = forward_chain(policy="drop")
    report = told(world=host(rules=[*ours(), chain], guest=GuestAnswer.REFUSES, settings={"net.ipv4.ip_forward": "0"}))
    found = [step.cause for step in report.steps if step.state is StepState.WRONG]
    assert found == [Cause.REFUSED, Cause.GUEST_REFUSES]
    assert report.sentence.startswith("Write gates")


def test_a_name_from_outside_is_no_command() -> None:
    chain = replace(native([{"drop": None}], prio=-300), table="a`; `reboot`")
    report = told(world=host(rules=[*ours(), chain]))
    assert cause(report) is Cause.REFUSED_EARLY
    assert report.commands == []
    assert "`" not in report.sentence


SHARING: Final = ["sed", "systemctl", "kvm-portfwd"]


@pytest.mark.parametrize(
    ("table", "gates", "sentence", "commands"),
    [
        ("firewalld", "", 'Write gates = ["inet firewalld c"] under [daemon]', SHARING),
        ("firewalld", '[daemon]\ngates = ["inet firewalld c"]\n', "Have firewalld share", SHARING),
        ("mine", "", "Have the program that owns table mine", []),
    ],
)
def test_a_table_that_takes_rules_of_its_owner_only(table: str, gates: str, sentence: str, commands: list[str]) -> None:
    refusing = replace(forward_chain(policy="drop"), table=table, owned=True)
    report = told(text=gates + FORWARD, world=host(rules=[*ours(), refusing]))
    assert cause(report) is Cause.REFUSED
    assert report.sentence.startswith(sentence)
    assert [command.split()[0] for command in report.commands] == commands


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# x\nNftablesTableOwner=yes\nIPv6_rpfilter=yes\n", "# x\nIPv6_rpfilter=yes\n"),
        ("NftablesTableOwner=yes\n", ""),
        (" NftablesTableOwner = yes\nNftablesTableOwner=no\n# x\n", "# x\n"),
        ("DefaultZone=public\n", "DefaultZone=public\n"),
        ("# NftablesTableOwner=yes\nDefaultZone=public", "# NftablesTableOwner=yes\nDefaultZone=public"),
    ],
)
def test_firewalld_shares_its_table_whatever_its_file_says(before: str, after: str, tmp_path: Path) -> None:
    refusing = replace(forward_chain(policy="drop"), table="firewalld", owned=True)
    edit = shlex.split(told(world=host(rules=[*ours(), refusing])).commands[0])
    assert edit.pop() == "/etc/firewalld/firewalld.conf"
    file = tmp_path / "firewalld.conf"
    file.write_text(before)
    run([*edit, str(file)])
    assert file.read_text() == f"NftablesTableOwner=no\n{after}"


def test_an_owned_table_is_read_as_one() -> None:
    here = {"family": "inet", "table": "t", "name": "c", "type": "filter", "hook": "forward", "prio": 0, "handle": 1}
    for flags, owned in ((["owner", "persist"], True), ("owner", True), ([], False)):
        listed = [{"table": {"family": "inet", "name": "t", "flags": flags}}, {"chain": here}]
        (chain,) = base_chains(json.dumps({"nftables": listed}), {})
        assert chain.owned is owned


# --- what the host did not forward before us -------------------------------------------------------------------------

ROUTER = host(held=(*HELD, own("192.168.5.1/24", "lan0")))
TO_SWITCH = "net.ipv4.ip_forward = 1 in /etc/sysctl.d and ip_forward = false under [daemon] in /etc/portfwd.toml"


def confining(chain: str = "strangers") -> list[BaseChain]:
    """Our rules that refuse what neither comes from a bridge of libvirt's nor goes there, as nft lists them."""
    table = {"family": "ip", "table": "kvm_portfwd"}
    base = {"name": "forward", "type": "filter", "hook": "forward", "prio": -10, "policy": "accept", "handle": 1}
    ways = ({"meta": {"key": key}} for key in ("iifname", "oifname"))
    strange = [{"match": {"op": "!=", "left": way, "right": "virbr0"}} for way in ways]
    rules = {"forward": [*strange, {"jump": {"target": chain}}], chain: [{"drop": None}]}
    chains = [{"chain": table | base}, {"chain": table | {"name": chain, "handle": 2}}]
    listed = [{"rule": table | {"chain": name, "handle": 3, "expr": expr}} for name, expr in rules.items()]
    return base_chains(json.dumps({"nftables": [*chains, *listed]}), {})


@pytest.mark.parametrize(
    ("asked", "source", "came_in"),
    [
        ("192.168.5.9:80", None, "eth0"),
        ("192.168.5.9:80", "203.0.113.9", "eth0"),
        ("203.0.113.9:80", "192.168.5.9", "lan0"),
    ],
)
def test_what_the_host_did_not_forward_before_us(asked: str, source: str | None, came_in: str) -> None:
    report = told(asked, source, world=replace(ROUTER, rules=[*ours(), *confining()]))
    assert cause(report) is Cause.CONFINED
    assert f" through {came_in}" in report.title
    assert TO_SWITCH in report.sentence
    assert report.commands == ["kvm-portfwd reload", "sysctl --system"]
    assert cause(told(asked, source, world=ROUTER)) is not Cause.CONFINED


def test_what_came_in_where_the_host_did_not_forward_before_us() -> None:
    report = told("192.168.5.9:80", "203.0.113.9", world=replace(ROUTER, rules=[*ours(), *confining("newcomers")]))
    assert cause(report) is Cause.CONFINED
    assert "write net.ipv4.conf.eth0.forwarding = 1 in /etc/sysctl.d and ip_forward = false" in report.sentence
    assert report.commands == ["kvm-portfwd reload", "sysctl --system"]


def test_what_goes_to_a_guest_is_not_refused_for_that() -> None:
    world = replace(ROUTER, rules=[*ours(), *confining()])
    assert cause(told("192.168.122.10:80", "203.0.113.9", world=world)) is not Cause.CONFINED
    assert told(world=world).works
