"""What other rules say before and after a DNAT: an import lets in what they did, and names the lines that did not."""

from collections.abc import Sequence
from ipaddress import ip_network

import pytest

from fwdaemon.importing.iptables_save import parse
from tests.unit.imports import FILE, OWNERS, accepted, forwards, left_out, warnings
from tests.unit.saved_rules import EVERYWHERE, SQL, SQL_IS, SSH, SSH_IS, found, saved

# --- after the DNAT ---------------------------------------------------------------------------------------------------

LET_IN = "-s 198.51.100.0/24 -d 10.0.0.9/32 -p tcp -m tcp --dport 5432"


@pytest.mark.parametrize(
    "filtered",
    [
        [f"-A FORWARD {LET_IN} -j ACCEPT"],
        ["-A FORWARD -j ufw-user-forward", f"-A ufw-user-forward {LET_IN} -j ACCEPT"],
        ["-A FORWARD -g DOCKER-USER", f"-A DOCKER-USER {LET_IN} -j ACCEPT"],
        ["-A FORWARD --jump LIBVIRT_FWI", f"-A LIBVIRT_FWI {LET_IN} -j ACCEPT"],
        ["-A FORWARD -j a", "-A a --goto b", f"-A b {LET_IN} -j ACCEPT"],
        ["-A FORWARD -j a", "-A a ! -s 198.51.100.0/24 -j RETURN", "-A a -d 10.0.0.9/32 -j ACCEPT"],
        ["-A FORWARD ! -s 198.51.100.0/24 -j DROP", "-A FORWARD -j ACCEPT"],
        ["-A FORWARD -m set --match-set some src -j ACCEPT", f"-A FORWARD {LET_IN} -j ACCEPT"],
    ],
)
def test_only_the_sources_that_forward_accepts_are_let_in(filtered: Sequence[str]) -> None:
    assert forwards(found([SQL], filtered, "DROP")) == [f"{SQL_IS} from 198.51.100.0/24 at 3"]


@pytest.mark.parametrize(
    ("filtered", "policy", "line"),
    [
        ([], "DROP", '6, ":FORWARD DROP [0:0]"'),
        (["-A FORWARD -j DROP"], "ACCEPT", '7, "-A FORWARD -j DROP"'),
        (["-A FORWARD -o virbr0 -j REJECT"], "ACCEPT", '7, "-A FORWARD -o virbr0 -j REJECT"'),
        (["-A FORWARD -j a", "-A a -j REJECT"], "ACCEPT", '8, "-A a -j REJECT"'),
        (
            ["-A FORWARD -m set --match-set bad src -j DROP"],
            "ACCEPT",
            '7, "-A FORWARD -m set --match-set bad src -j DROP"',
        ),
        (["-A FORWARD -j NFQUEUE"], "ACCEPT", '7, "-A FORWARD -j NFQUEUE"'),
        (["-A FORWARD -d 10.0.0.9/32 -m recent --update -j DROP"], "ACCEPT", "7"),
        (["-A FORWARD -m set --match-set good src -j ACCEPT"], "DROP", "6"),
        (["-A FORWARD -j ACCEPT -m set --match-set good src"], "DROP", "6"),
        (["-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], "DROP", "6"),
        (["-A FORWARD -o eth0 -j ACCEPT"], "DROP", "6"),
        (["-A FORWARD -p udp -j ACCEPT"], "DROP", "6"),
        (["-A FORWARD -j ACCEPT -p tcp --dport 5433"], "DROP", "6"),
    ],
)
def test_what_forward_refused_is_a_comment_with_the_line_that_did(
    filtered: Sequence[str], policy: str, line: str
) -> None:
    findings = found([SQL], filtered, policy)
    assert forwards(findings) == []
    (reason,) = left_out(findings)
    assert reason.startswith(f"{SQL_IS} at 3: line {line}")
    assert reason.endswith(", stopped it")


@pytest.mark.parametrize(
    "filtered",
    [
        ["-A FORWARD -d 10.0.0.9/32 -j ACCEPT"],
        ["-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT"],
        ["-A FORWARD -m conntrack --ctstatus DNAT -j ACCEPT"],
        ["-A FORWARD -m conntrack --ctorigdst 203.0.113.1 --ctorigdstport 5432 -j ACCEPT"],
        ["-A FORWARD -o virbr0 -p tcp --syn -m state --state NEW -j ACCEPT"],
        ["-A FORWARD -o virbr+ -j ACCEPT"],
        ["-A FORWARD -m addrtype --dst-type LOCAL -j DROP", "-A FORWARD -j ACCEPT"],
        [
            "-A FORWARD -p tcp ! --syn -j DROP",
            "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
            "-A FORWARD -j ACCEPT",
        ],
        ['-A FORWARD -j LOG --log-prefix "-j DROP"', "-A FORWARD -j ACCEPT"],
        ["-A FORWARD -m iprange --dst-range 10.0.0.1-10.0.0.9 -j ACCEPT"],
        ["-A FORWARD -s 0.0.0.0/1 -j ACCEPT", "-A FORWARD -s 128.0.0.0/1 -j ACCEPT"],
    ],
)
def test_what_forward_accepts_is_let_in(filtered: Sequence[str]) -> None:
    assert forwards(found([SQL], filtered, "DROP")) == [f"{SQL_IS} at 3"]


def test_an_interface_that_forward_accepts_from_is_the_forwards() -> None:
    filtered = ["-A FORWARD -i eth0 -o virbr0 -j ACCEPT", "-A FORWARD -i eth1 -o virbr0 -j ACCEPT"]
    assert forwards(found([SQL], filtered, "DROP")) == [f"{SQL_IS} on eth0 at 3", f"{SQL_IS} on eth1 at 3"]


def test_ports_that_forward_refuses_are_left_out_of_a_range() -> None:
    nat = "-A PREROUTING -d 203.0.113.1/32 -p tcp --dport 8000:8010 -j DNAT --to-destination 10.0.0.9:9000-9010/8000"
    findings = found([nat], ["-A FORWARD -p tcp --dport 9005 -j DROP"])
    assert forwards(findings) == [
        "? 203.0.113.1:8000-8004/tcp -> 10.0.0.9:9000-9004 at 3",
        "? 203.0.113.1:8006-8010/tcp -> 10.0.0.9:9006-9010 at 3",
    ]
    assert warnings(findings) == []


def test_sources_that_cannot_be_written_are_a_comment() -> None:
    bans = [f"-A FORWARD -s 198.51.{number}.0/24 -j DROP" for number in range(0, 30, 2)]
    findings = found([SQL], bans)
    assert forwards(findings) == []
    (reason,) = left_out(findings)
    assert 'line 7, "-A FORWARD -s 198.51.0.0/24 -j DROP",' in reason
    assert reason.endswith("and what is left cannot be said: its sources would be more than 32 networks")


def test_of_what_is_left_that_is_imported_which_can_be_said() -> None:
    bans = [f"-A FORWARD -s 198.51.{number}.0/24 -j DROP" for number in range(0, 30, 2)]
    findings = found([SQL], ["-A FORWARD -i eth0 -j ACCEPT", *bans])
    assert {forward.interface for forward in findings.forwards} == {"eth0"}
    (warning,) = warnings(findings)
    assert warning.startswith('3: 5432: some of it is left out: line 8, "-A FORWARD -s 198.51.0.0/24 -j DROP",')


def test_where_the_way_out_is_not_known_a_rule_that_asks_for_it_may_stop_it() -> None:
    findings = parse(FILE, saved([SQL], ["-A FORWARD -o virbr0 -j REJECT"]))
    assert forwards(findings) == []
    assert 'line 7, "-A FORWARD -o virbr0 -j REJECT", stopped it' in left_out(findings)[0]


@pytest.mark.parametrize(
    "table",
    [
        "*raw\n-A PREROUTING -s 198.51.100.0/25 -j DROP\nCOMMIT\n",
        "*mangle\n-A PREROUTING -s 198.51.100.0/25 -j DROP\nCOMMIT\n",
        "*mangle\n-A FORWARD -s 198.51.100.0/25 -j DROP\nCOMMIT\n",
        "*mangle\n-A POSTROUTING -s 198.51.100.0/25 -j DROP\nCOMMIT\n",
        "*security\n-A FORWARD -s 198.51.100.0/25 -j DROP\nCOMMIT\n",
        "*raw\n-A PREROUTING -s 198.51.100.0/25 -j CT --notrack\nCOMMIT\n",
    ],
)
def test_every_table_counts(table: str) -> None:
    nat = SQL.replace("-d 203", "-s 198.51.100.0/24 -d 203")
    assert forwards(parse(FILE, table + saved([nat]))) == [f"{SQL_IS} from 198.51.100.128/25 at 6"]


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (["-A POSTROUTING -d 10.0.0.9/32 -j DROP"], 'line 2, "-A POSTROUTING -d 10.0.0.9/32 -j DROP", stopped it'),
        ([":POSTROUTING DROP [0:0]"], 'line 2, ":POSTROUTING DROP [0:0]", stopped it'),
        (
            [":a - [0:0]", "-A POSTROUTING -j a", "-A a -o virbr0 -j DROP"],
            'line 4, "-A a -o virbr0 -j DROP", stopped it',
        ),
        (["-A POSTROUTING -m mark --mark 7 -j DROP"], 'line 2, "-A POSTROUTING -m mark --mark 7 -j DROP", stopped it'),
    ],
)
def test_what_is_refused_on_its_way_out_is_a_comment(rules: Sequence[str], reason: str) -> None:
    text = "\n".join(["*mangle", *rules, "COMMIT", saved([SQL])])
    findings = parse(FILE, text, way_out=lambda _: "virbr0")
    assert forwards(findings) == []
    assert [said.partition(": ")[2] for said in left_out(findings)] == [reason]


def test_a_text_without_a_table_filter_is_a_comment() -> None:
    findings = parse(FILE, f"*nat\n{SQL}\nCOMMIT\n")
    assert forwards(findings) == []
    (reason,) = left_out(findings)
    said = "no table filter is in the file, so what was refused is not known"
    assert reason.startswith(f"{SQL_IS} at 2: {said}; give all that iptables-save prints, every table; ")


def test_a_table_filter_without_a_policy_is_a_part_of_the_rules_only() -> None:
    """As ufw's before.rules, to which others belong, and the policy, which is DROP as a rule."""
    parts = ":ufw-before-forward - [0:0]\n-A ufw-before-forward -p icmp -j ACCEPT"
    findings = parse(FILE, f"*nat\n{SQL}\nCOMMIT\n*filter\n{parts}\nCOMMIT\n")
    assert forwards(findings) == []
    (reason,) = left_out(findings)
    said = "the table filter in the file has no policy of FORWARD, so what was refused is not known"
    assert reason == f"{SQL_IS} at 2: {said}; give what iptables-save prints"


# --- before the DNAT --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blocked",
    [
        ["-A PREROUTING -j BLOCKED", "-A BLOCKED -s 128.0.0.0/1 -j ACCEPT"],
        ["-A PREROUTING -j BLOCKED", "-A BLOCKED -s 128.0.0.0/1 -p tcp -j REDIRECT --to-ports 9"],
        ["-A PREROUTING -j BLOCKED", "-A BLOCKED -s 128.0.0.0/1 -p tcp -j DNAT --to-destination 10.0.0.8-10.0.0.9"],
        ["-A PREROUTING -j a", "-A a -j b", "-A b -s 128.0.0.0/1 -j ACCEPT"],
        ["-A PREROUTING -g a", "-A a -s 128.0.0.0/1 -j RETURN", SQL.replace("PREROUTING", "a")],
        ["-A PREROUTING -j a", "-A a -s 0.0.0.0/1 -j RETURN", "-A a -j ACCEPT"],
        ["-A PREROUTING -s 128.0.0.0/1 -j RETURN"],
        ["-A PREROUTING -s 128.0.0.0/1 -j ACCEPT"],
        ["-A PREROUTING -s 128.0.0.0/1 -j MYSTERY"],
        ["-A PREROUTING -s 128.0.0.0/1 -m set --match-set some src -j ACCEPT"],
    ],
)
def test_what_came_to_a_verdict_before_is_not_let_in(blocked: Sequence[str]) -> None:
    sources = {forward.sources for forward in found([*blocked, SQL]).forwards if not forward.reason}
    assert {str(source) for each in sources for source in each} == {"0.0.0.0/1"}


@pytest.mark.parametrize(
    ("nat", "expected"),
    [
        (
            ["-A PREROUTING -m addrtype --dst-type LOCAL -j nixos-nat-pre", SQL.replace("PREROUTING", "nixos-nat-pre")],
            "",
        ),
        (["-A PREROUTING -i eth0 -j net_dnat", SQL.replace("PREROUTING", "net_dnat")], " on eth0"),
        (
            [
                "-A PREROUTING -j PREROUTING_ZONES",
                "-A PREROUTING_ZONES -i eth0 -g PRE_public",
                "-A PRE_public -j PRE_public_allow",
                SQL.replace("PREROUTING", "PRE_public_allow"),
            ],
            " on eth0",
        ),
        (["-A PREROUTING -s 198.51.100.0/24 -g a", SQL.replace("PREROUTING", "a")], " from 198.51.100.0/24"),
    ],
)
def test_a_chain_that_holds_the_rules_is_followed(nat: Sequence[str], expected: str) -> None:
    findings = found(nat)
    assert forwards(findings) == [f"{SQL_IS}{expected} at {len(nat) + 2}"]
    assert warnings(findings) == []


def test_a_chain_that_a_rule_may_lead_to_is_a_comment_with_that_rule() -> None:
    jump = "-A PREROUTING -m set --match-set some src -j WEB"
    findings = found([jump, SQL.replace("PREROUTING", "WEB")])
    assert forwards(findings) == []
    reason = f'line 3, "{jump}", may not have led there: it asks for what is not understood'
    assert left_out(findings) == [f"{SQL_IS} at 4: {reason}"]


def test_a_chain_that_nothing_leads_to_is_not() -> None:
    findings = found([SQL.replace("PREROUTING", "old")])
    assert forwards(findings) == []
    assert warnings(findings)[0].endswith("left out: no rule of PREROUTING leads to it")


@pytest.mark.parametrize(
    "shield",
    [
        "! -s 198.51.100.0/24 -d 203.0.113.1/32 -p tcp --dport 22 -j DNAT --to-destination 10.0.0.50:2222",
        "-d 203.0.113.1/32 -p tcp --dport 22 -j REDIRECT --to-ports 2222",
        "-d 203.0.113.1/32 -p tcp --dport 22 -m time --timestart 08:00 -j DNAT --to-destination 10.0.0.50",
        "-d 203.0.113.1/32 -p tcp --dport 22 -j DNAT --to-destination 10.0.0.50-10.0.0.51",
        "-d 203.0.113.0/24 -p tcp --dport 20:23 -j NETMAP --to 10.0.0.0/24",
        '-p tcp --dport 22 -m comment --comment "open',
    ],
)
def test_a_rule_that_no_forward_can_say_shields_those_after_it(shield: str) -> None:
    findings = found([f"-A PREROUTING {shield}", SSH])
    let = [forward for forward in findings.forwards if not forward.reason and str(forward.address) == "10.0.0.9"]
    assert {str(source) for forward in let for source in forward.sources} <= {"198.51.100.0/24"}
    told = [*left_out(findings), *(remark.text for remark in findings.in_order() if remark.origin.line == 4)]
    assert any("line 3," in text for text in told)


def test_a_range_is_split_around_the_ports_of_the_host_itself() -> None:
    nat = ["-A PREROUTING -p tcp --dport 22 -j REDIRECT --to-ports 2222", SSH.replace("--dport 22", "--dport 1:1023")]
    findings = found(nat)
    assert forwards(findings) == [
        "? 203.0.113.1:1-21/tcp -> 10.0.0.9:1-21 at 4",
        "? 203.0.113.1:23-1023/tcp -> 10.0.0.9:23-1023 at 4",
    ]
    (note,) = [remark.text for remark in findings.in_order() if remark.origin.line == 4]
    assert note == f'1-1023: only what line 3, "{nat[0]}", left to it'


def test_a_forward_on_one_address_goes_before_one_on_every_address() -> None:
    findings = found([SSH, EVERYWHERE])
    assert forwards(findings) == [f"{SSH_IS} at 3", "? *:22/tcp -> 192.168.122.10:22 at 4"]
    config = accepted([findings], {address: (f"of {address}",) for address in OWNERS})
    assert [entry.domain for entry in config.forwards] == ["of 10.0.0.9", "of 192.168.122.10"]


def test_a_piece_on_one_address_does_not_shield_itself() -> None:
    nat = [
        "-A PREROUTING -s 198.51.101.0/24 -j A",
        "-A A -d 203.0.113.1/32 -j REDIRECT --to-ports 22",
        "-A A -j ACCEPT",
        EVERYWHERE,
    ]
    findings = found(nat)
    (entry,) = accepted([findings]).forwards
    assert entry.sources
    assert not any(source.overlaps(ip_network("198.51.101.0/24")) for source in entry.sources)


def test_where_the_forward_on_one_address_is_a_comment_that_on_every_address_is_too() -> None:
    findings = found([SSH, EVERYWHERE])
    config = accepted([findings], {address: ("web",) for address in OWNERS if str(address) != "10.0.0.9"})
    assert config.forwards == ()


@pytest.mark.parametrize(
    "rules",
    [
        [SSH.replace("-d 203", "-s 192.168.122.0/24 -d 203"), SSH],
        [SSH.replace("-d 203.0.113.1/32", "-i eth0"), SSH.replace("-d 203.0.113.1/32 ", "")],
        [SSH, SSH.replace("--dport 22", "--dport 20:25")],
        [SSH.replace("--dport 22", "--dport 20:25"), SSH],
    ],
)
def test_of_rules_to_one_target_the_wider_one_is_all_it_takes(rules: Sequence[str]) -> None:
    findings = found(rules)
    (entry,) = accepted([findings]).forwards
    assert (entry.sources, entry.interface, len(entry.mappings)) == ((), None, 1)
    assert [str(entry.mappings[0].host)] == ["20-25" if "20:25" in "".join(rules) else "22"]
