"""`iptables-save`: DNAT rules of nat PREROUTING as people write them; whatever narrows a rule unseen leaves it out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.text import quote
from fwdaemon.importing.findings import Findings
from fwdaemon.importing.iptables_save import parse
from tests.unit.imports import FILE, accepted, forwards, left_out, warnings

ANY = "a rule without -d took packets to any address; a forward takes those to this host's own"

OPEN = ("*filter", ":FORWARD ACCEPT [0:0]", "COMMIT")


def found(*rules: str, table: str = "nat") -> Findings:
    lines = [f"*{table}", ":PREROUTING ACCEPT [12:720]", ":DOCKER - [0:0]", *rules, "COMMIT", "# Completed on Fri"]
    return parse(FILE, "\n".join([*lines, *OPEN]) + "\n")


def rule(matches: str, to: str = "10.0.0.9:80") -> str:
    return f"-A PREROUTING -d 198.51.100.1/32 {matches} -j DNAT --to-destination {to}"


def one(matches: str, to: str = "10.0.0.9:80") -> list[str]:
    """What a rule becomes, which must need no warning, without the domain and the line."""
    findings = found(rule(matches, to))
    assert warnings(findings) == []
    return [text.removeprefix("? 198.51.100.1:").removesuffix(" at 4") for text in forwards(findings)]


@pytest.mark.parametrize(
    ("matches", "to", "expected"),
    [
        ("-p tcp -m tcp --dport 8080", "10.0.0.9:80", "8080/tcp -> 10.0.0.9:80"),
        ("-p tcp -m tcp --dport 8080", "10.0.0.9", "8080/tcp -> 10.0.0.9:8080"),
        ("-p udp -m udp --dport 5000:5010", "10.0.0.9", "5000-5010/udp -> 10.0.0.9:5000-5010"),
        ("-p udp -m udp --dport 5000:5010", "10.0.0.9:5000-5010", "5000-5010/udp -> 10.0.0.9:5000-5010"),
        ("-p udp -m udp --dport 5000:5010", "10.0.0.9:4000-6000", "5000-5010/udp -> 10.0.0.9:5000-5010"),
        (
            "-p tcp -m tcp --dport 5000:5010",
            "10.0.0.9:7000-7010/5000",
            "5000-5010/tcp -> 10.0.0.9:7000-7010",
        ),
        (
            "-p tcp -m tcp --dport 5005:5010",
            "10.0.0.9:7000-7010/5000",
            "5005-5010/tcp -> 10.0.0.9:7005-7010",
        ),
        ("-p tcp -m tcp --dport 0:1023", "10.0.0.9", "1-1023/tcp -> 10.0.0.9:1-1023"),
        ("-p tcp", "10.0.0.9", "1-65535/tcp -> 10.0.0.9:1-65535"),
        ("-p sctp -m sctp --dport 99", "10.0.0.9", "99/sctp -> 10.0.0.9:99"),
        ("-i eth0 -p tcp -m tcp --dport 80", "10.0.0.9", "80/tcp -> 10.0.0.9:80 on eth0"),
        (
            "-s 203.0.113.0/24 -p tcp -m tcp --dport 80",
            "10.0.0.9",
            "80/tcp -> 10.0.0.9:80 from 203.0.113.0/24",
        ),
        (
            "-p tcp -m state --state NEW -m conntrack --ctstate NEW,RELATED -m tcp --dport 80",
            "10.0.0.9",
            "80/tcp -> 10.0.0.9:80",
        ),
        (
            '-p tcp -m tcp --dport 80 -m comment --comment "a \\"b\\" -s"',
            "10.0.0.9",
            "80/tcp -> 10.0.0.9:80",
        ),
    ],
)
def test_a_rule_becomes_a_forward(matches: str, to: str, expected: str) -> None:
    assert one(matches, to) == [expected]


def test_several_ports_in_one_rule() -> None:
    assert one("-p tcp -m multiport --dports 80,443,8000:8001", "10.0.0.9") == [
        "80/tcp -> 10.0.0.9:80",
        "443/tcp -> 10.0.0.9:443",
        "8000-8001/tcp -> 10.0.0.9:8000-8001",
    ]
    assert one("-p tcp -m tcp --dport 80:81", "10.0.0.9:8080") == [
        "80/tcp -> 10.0.0.9:8080",
        "81/tcp -> 10.0.0.9:8080",
    ]


def test_every_address_of_the_host() -> None:
    local = "-A PREROUTING -p tcp -m tcp --dport 80 -m addrtype --dst-type LOCAL -j DNAT --to-destination 10.0.0.9"
    assert forwards(found(local)) == ["? *:80/tcp -> 10.0.0.9:80 at 4"]
    assert warnings(found(local)) == []


def test_any_address_is_remarked_once() -> None:
    plain = "-A PREROUTING -p tcp -m tcp --dport {} -j DNAT --to-destination 10.0.0.9"
    findings = found(plain.format(80), plain.format(81))
    assert forwards(findings) == ["? *:80/tcp -> 10.0.0.9:80 at 4", "? *:81/tcp -> 10.0.0.9:81 at 5"]
    assert warnings(findings) == [f"4: {ANY}"]


def test_counters_both_families_and_several_tables_in_one_text() -> None:
    text = (
        "# Made by hand\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
        "*nat\n[3:180] -A PREROUTING -d 198.51.100.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.9\n"
        "COMMIT\n*nat\n"
        "-A PREROUTING -d 2001:db8::1/128 -p tcp -m tcp --dport 80 -j DNAT --to-destination [2001:db8:122::10]:8080\n"
        "-A PREROUTING -d 2001:db8::1/128 -p udp -m udp --dport 53 -j DNAT --to-destination 2001:db8:122::10\nCOMMIT\n"
    )
    findings = parse(FILE, text)
    assert forwards(findings) == [
        "? 198.51.100.1:80/tcp -> 10.0.0.9:80 at 6",
        "? [2001:db8::1]:80/tcp -> [2001:db8:122::10]:8080 at 9",
        "? [2001:db8::1]:53/udp -> [2001:db8:122::10]:53 at 10",
    ]
    assert warnings(findings) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (rule("! -i virbr0 -p tcp -m tcp --dport 80"), 'it is for every interface but "virbr0"'),
        (rule("-i ! virbr0 -p tcp -m tcp --dport 80"), 'it is for every interface but "virbr0"'),
        (rule("-p tcp -m tcp --dport 80 -m time --timestart 08:00"), '"-m time" is not understood'),
        (rule("-p tcp -m tcp --sport 80"), '"--sport 80" is not understood'),
        (rule("-p tcp -m tcp --dport 80") + " --random", '"--random" is not understood'),
        (rule("-p tcp -m tcp --dport 80 --dport 81"), '"--dport 81" is not understood'),
        (rule("-i eth+ -p tcp -m tcp --dport 80"), '"eth+" has a quote, backslash, wildcard'),
        (rule("-p tcp -m tcp --dport 80 -m state --state ESTABLISHED"), "no new connection to this host matches it"),
        (
            rule("-p tcp -m tcp --dport 80 -m addrtype --dst-type BROADCAST"),
            "no new connection to this host matches it",
        ),
        (rule("-p icmp", "10.0.0.9"), "it is for a protocol that has no ports"),
        ("-A PREROUTING -j DNAT --to-destination 10.0.0.9", "it is for every protocol, and a forward is for one"),
        (rule("! -p udp", "10.0.0.9"), "it is for several protocols, and a forward is for one"),
        (rule("", "10.0.0.9").replace("100.1/32", "100.0/24"), "and not for one address, as a [[nat]] is"),
        (rule("! -i virbr0", "10.0.0.9"), 'it is for every interface but "virbr0"'),
        (rule("-p tcp", "10.0.0.9-10.0.0.20"), "is not one address with its ports"),
        (rule("-p tcp", ":8080"), '--to-destination ":8080" names a port but no guest'),
        (rule("-p tcp", "127.0.0.1:80"), "is a loopback address"),
        (rule("-p tcp -m tcp --dport 80", "10.0.0.9:8000-8010"), "ports 80 lead to 8000-8010 in no order"),
        (rule("-p tcp -m tcp --dport 80:90", "10.0.0.9:8000-8010/85"), "in no order a forward could keep"),
        (rule("-p tcp", "10.0.0.9:80"), "ports 1-65535 lead to 80 in no order a forward could keep"),
        (rule("-p tcp -m tcp --dport 99999"), '"--dport 99999" is not understood'),
        (rule("-p tcp -m comment --comment \"it's"), "its quotes do not close"),
        (rule("-p tcp -m tcp --dport 80").replace("100.1/32", "100.0/24"), "is a network; write a forward with"),
    ],
)
def test_what_no_forward_could_say_is_left_out_with_the_rule_and_its_line(text: str, reason: str) -> None:
    findings = found(text)
    assert forwards(findings) == []
    (warning,) = warnings(findings)
    assert warning.startswith(f'4: "{text[:40]}'.replace('"it', '\\"it'))
    assert reason in warning


def test_a_rule_for_every_address_that_came_first_keeps_its_packets() -> None:
    everywhere = "-A PREROUTING -p tcp -m tcp --dport 80:81 -j DNAT --to-destination 10.0.0.9"
    findings = found(everywhere, rule("-p tcp -m tcp --dport 80"), rule("-p tcp -m multiport --dports 81:82"))
    assert forwards(findings) == [
        "? *:80-81/tcp -> 10.0.0.9:80-81 at 4",
        "? 198.51.100.1:82/tcp -> 10.0.0.9:80 at 6",
    ]
    assert left_out(findings) == [
        f"? 198.51.100.1:81/tcp -> 10.0.0.9:80 at 6: line 4, {quote(everywhere)}, stopped it",
    ]
    assert warnings(findings) == [f"4: {ANY}"]


def test_a_rule_for_every_address_that_took_a_part() -> None:
    everywhere = "-A PREROUTING -s 0.0.0.0/1 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.8"
    findings = found(everywhere, rule("-p tcp -m tcp --dport 80"), rule("-s 192.0.2.0/24 -p tcp -m tcp --dport 80"))
    assert forwards(findings) == [
        "? *:80/tcp -> 10.0.0.8:80 from 0.0.0.0/1 at 4",
        "? 198.51.100.1:80/tcp -> 10.0.0.9:80 from 128.0.0.0/2,192.0.0.0/3,240.0.0.0/4 at 5",
    ]
    assert [remark.text.rpartition('"')[2] for remark in findings.in_order() if not remark.is_warning] == [
        ", left to it",
        ", took all of it before",
    ]


def test_chains_that_programs_made_are_followed() -> None:
    findings = found(
        "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        "-A PREROUTING -p tcp -m tcp --dport 22 -j LOG",
        "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80",
        "-A DOCKER -i eth0 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 172.17.0.3:80",
        "-A POSTROUTING -s 192.168.122.0/24 -j MASQUERADE",
    )
    assert forwards(findings) == ["? *:8081/tcp -> 172.17.0.3:80 on eth0 at 7"]
    (warning,) = warnings(findings)
    assert warning.endswith('left out: it is for every interface but "docker0"')


def test_a_line_of_something_else() -> None:
    assert warnings(found("iptables -t nat -F")) == ['4: left out: "iptables -t nat -F" is no line of iptables-save']


WORD = st.sampled_from(
    [
        *("-A", "PREROUTING", "-d", "198.51.100.1/32", "-s", "0.0.0.0/0", "-i", "eth0", "-p", "tcp", "udp", "-m", "!"),
        *(
            "multiport",
            "--dport",
            "80",
            "0:9",
            "--dports",
            "1,2:3",
            "-j",
            "DNAT",
            "--to-destination",
            '"',
            "\\",
            "9" * 99,
        ),
        *("10.0.0.9", "10.0.0.9:80", "10.0.0.9:5-9/5", "[2001:db8:122::10]:5-4", "--state", "NEW"),
    ]
)
RULE = st.lists(WORD | st.text(max_size=4), max_size=8).map(
    lambda words: " ".join(["-A PREROUTING", *words, "-j DNAT"])
)
FULL = st.lists(WORD, max_size=8).map(lambda words: rule(" ".join(["-p tcp", *words])))


@given(st.lists(RULE | FULL | st.text(max_size=20), max_size=6))
def test_any_text_gives_a_configuration_that_is_accepted(lines: list[str]) -> None:
    accepted([parse(FILE, "*nat\n" + "\n".join(lines))])
