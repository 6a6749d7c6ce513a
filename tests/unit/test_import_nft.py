"""nftables rules as text: what becomes a forward, and what no rule set ever let in."""

from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.text import quote
from fwdaemon.core.types import Address
from fwdaemon.importing.findings import BrokenFileError, Findings
from fwdaemon.importing.nft_text import parse
from tests.unit.imports import FILE, accepted, shown, warnings
from tests.unit.nft_samples import PASSING, SAMPLES, Sample

_SERVICES = {"http": 80, "https": 443, "ssh": 22}


def bridge(address: Address) -> str | None:
    return "virbr0" if address in {ip_address("192.168.122.10"), ip_address("192.168.122.11")} else None


def found(text: str) -> Findings:
    return parse(FILE, text, lambda name, _: _SERVICES.get(name), bridge)


def live(findings: Findings, *, is_live: bool = True) -> list[str]:
    """What was found, live or left out, without domain and line; sources that fill a line are `OTHERS`."""
    chosen = [shown(forward).split()[1:-2] for forward in findings.forwards if bool(forward.reason) != is_live]
    return sorted(" ".join("OTHERS" if "/1," in word else word for word in words) for words in chosen)


def nats(findings: Findings) -> list[str]:
    return [f"{nat.public} is {nat.address}" for nat in findings.nats if not nat.reason]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_just_what_was_let_in_is_imported(sample: Sample) -> None:
    findings = found(sample.text)
    assert live(findings) == list(sample.live)
    assert set(live(findings, is_live=False)) == set(sample.left_out)
    assert nats(findings) == list(sample.nats)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_what_is_left_out_says_why(sample: Sample) -> None:
    findings = found(sample.text)
    assert all(one.reason for one in findings.forwards if one.judged is None)
    assert findings.forwards or findings.nats or warnings(findings)


_WORDS = st.sampled_from(
    (
        *("table", "ip", "nat", "{", "}", "chain", "pre", "type", "hook", "prerouting", "priority", "-100", ";", "\n"),
        *("tcp", "dport", "80", "dnat", "to", "192.168.122.10", ":", "map", "vmap", "@s", "set", "elements", "=", ","),
        *("ip saddr", ".", "!=", "accept", "jump", "x", "&", "(", ")", "|", "flags", "syn", '"', "#", "$x", "define"),
        *("limit", "rate", "10/second", "meta", "mark", "fib", "daddr", "local", "counter", "log", "prefix", "add"),
        *("element", "include", "flush", "ruleset", "ct", "state", "new", "-", "*", "comment", "update", "insert"),
        "rule",
    )
)
HTTP = "tcp dport 80 dnat to 192.168.122.10"
HEAD = "table ip nat {\nchain pre {\ntype nat hook prerouting priority -100;\n"


@given(st.lists(_WORDS, max_size=25), st.booleans())
def test_no_text_is_a_traceback(words: list[str], in_chain: bool) -> None:  # noqa: FBT001  hypothesis gives it by name
    body = " ".join(words)
    with suppress(BrokenFileError):
        accepted([found(f"{HEAD}{body}\n{HTTP}\n}}\n}}\n" if in_chain else body)])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('include "/etc/nftables.d/*.nft"', 'include "/etc/nftables.d/*.nft"'),
        ("rename chain ip nat a b", "rename chain ip nat a b"),
        ("undefine X", "undefine X"),
    ],
)
def test_what_may_do_anything_leaves_all_out(line: str, said: str) -> None:
    findings = found(f"{HEAD}{HTTP}\n}}\n}}\n{line}\n")
    assert live(findings) == []
    assert [forward.reason for forward in findings.forwards] == ["what line 7 does is not known"]
    remedy = "give the output of `nft list ruleset`, which has everything"
    assert warnings(findings) == [f"7: {quote(said)} is not followed, and may refuse anything; {remedy}"]


ELSEWHERE = "table {} more {{\nchain c {{\ntype filter hook {} priority 0; policy {};\n{}\n}}\n}}\n"
EGRESS = 'egress device "virbr0"'


@pytest.mark.parametrize(
    ("family", "hook"),
    [
        ("netdev", EGRESS),
        ("inet", EGRESS),
        ("inet", "made-up"),
        *(("bridge", hook) for hook in ("prerouting", "input", "forward", "output", "postrouting")),
        ("arp", "output"),
    ],
)
@pytest.mark.parametrize(
    ("policy", "rule", "line", "said"),
    [
        ("accept", "ip saddr 203.0.113.0/24 drop", 10, "ip saddr 203.0.113.0/24 drop"),
        ("accept", "jump d", 10, "jump d"),
        ("drop", "", 9, "the policy of chain c"),
    ],
)
def test_what_is_not_followed_leaves_all_out(  # noqa: PLR0913, PLR0917  what the chain is, and what is said of it
    family: str, hook: str, policy: str, rule: str, line: int, said: str
) -> None:
    findings = found(f"{HEAD}{HTTP}\n}}\n}}\n{ELSEWHERE.format(family, hook, policy, rule)}")
    assert live(findings) == []
    assert [forward.reason for forward in findings.forwards] == [f"line {line}, {quote(said)}, may have stopped it"]
    assert warnings(findings) == [f"{line}: {quote(said)} may refuse anything: its chain's hook is not followed"]


@pytest.mark.parametrize(
    ("family", "hook", "rule"),
    [("netdev", EGRESS, ""), ("bridge", "forward", ""), ("inet", "input", "drop"), ("ip", "output", "drop")],
)
def test_a_chain_that_refuses_nothing_on_the_way_stops_nothing(family: str, hook: str, rule: str) -> None:
    findings = found(f"{HEAD}{HTTP}\n}}\n}}\n{ELSEWHERE.format(family, hook, 'accept', rule)}{PASSING}")
    assert live(findings) == ["*:80/tcp -> 192.168.122.10:80"]
    assert warnings(findings) == []


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("ip saddr $OFFICE accept", 'line 4, "ip saddr $OFFICE accept", stopped it'),
        ("ip saddr @nowhere accept", 'line 4, "ip saddr @nowhere accept", stopped it'),
        ("tcp dport 80 accept", 'line 4, "tcp dport 80 accept", took it before'),
        ("meta mark 7 redirect", 'line 4, "meta mark 7 redirect", stopped it'),
        ("socket transparent 1 queue", 'line 4, "socket transparent 1 queue", stopped it'),
        ("made-up words", 'line 4, "made-up words", stopped it'),
    ],
)
def test_the_line_that_stopped_a_forward_is_named(before: str, reason: str) -> None:
    findings = found(f"{HEAD}{before}\n{HTTP}\n}}\n}}\n")
    assert [forward.reason for forward in findings.forwards] == [reason]


def test_a_rule_of_the_hosts_own_connections_is_told() -> None:
    findings = found(f"{HEAD.replace('prerouting', 'output')}{HTTP}\n}}\n}}\n")
    assert findings.forwards == []
    assert warnings(findings) == [f"4: {quote(HTTP)} left out: no connection from outside comes to it"]


def test_a_rule_of_a_table_that_sleeps_is_told() -> None:
    findings = found(f"{HEAD.replace('{', '{ flags dormant;', 1)}{HTTP}\n}}\n}}\n")
    assert findings.forwards == []
    assert warnings(findings) == [f"4: {quote(HTTP)} left out: its table is dormant, so no connection came to it"]


def test_what_is_not_closed_or_leads_in_a_circle_is_told_with_its_line() -> None:
    for text, line in (
        ("table ip nat {\n  chain a {\n  }\n", 1),
        ("table ip nat {\n}\n}\n", 3),
        ("table ip nat {" + "{" * 1000, 1),
        (f"{HEAD}jump a\n{HTTP}\n}}\nchain a {{\njump a\n}}\n}}\n", 1),
    ):
        with pytest.raises(BrokenFileError) as raised:
            found(text)
        assert raised.value.problem.line == line


@pytest.mark.parametrize(
    ("renaming", "is_told"),
    [
        ("ip daddr 192.168.122.10 tcp dport 80 masquerade", True),
        ("oifname virbr0 masquerade", True),
        ("ip daddr 192.168.122.0/24 snat to 192.168.122.1", True),
        ("oifname eth0 masquerade", False),
        ("ip saddr 192.168.122.0/24 ip daddr 192.168.122.10 masquerade", False),
        ("ip daddr 192.168.122.11 masquerade", False),
    ],
)
def test_who_saw_all_clients_as_the_host_is_told(renaming: str, *, is_told: bool) -> None:
    text = f"""{HEAD}{HTTP}
}}
chain post {{ type nat hook postrouting priority 100;
{renaming}
}}
}}
table ip filter {{
chain forward {{ type filter hook forward priority 0; }}
}}
"""
    findings = found(text)
    assert live(findings) == ["*:80/tcp -> 192.168.122.10:80"]
    assert [text for text in warnings(findings) if "masquerade = true" in text] == [f"7: {_SEEN}"] * is_told


_SEEN = (
    "it gave clients an address of this host on their way to the guest; now the guest sees their own, unless the"
    " forward has masquerade = true"
)
