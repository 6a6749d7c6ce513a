"""The walk through rules of others, on hosts made up of plain data."""

from dataclasses import replace

import pytest

from fwdaemon.explain.facts import GuestAnswer
from fwdaemon.explain.report import Cause, Standing
from fwdaemon.explain.rules import BaseChain
from tests.unit.explaining import native
from tests.unit.story_scene import DPORT, FORWARD, GATE, cause, forward_chain, host, ours, told


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
