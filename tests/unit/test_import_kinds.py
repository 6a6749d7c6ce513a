"""The command on rule sets of nft and zones of firewalld: one configuration, or exit status 1."""

from itertools import product
from pathlib import Path

import pytest

from fwdaemon import config
from fwdaemon.config.model import Config
from fwdaemon.importing import iptables_save
from fwdaemon.importing.assembling import Owners
from fwdaemon.importing.findings import Findings, Kind, recognise
from fwdaemon.importing.firewalld import parse_xml
from tests.unit.imports import FILE, OWNERS, accepted
from tests.unit.nft_samples import PASSING, SAMPLES, Sample
from tests.unit.test_import_command import Run, run
from tests.unit.test_import_firewalld import LISTED, PUBLIC
from tests.unit.test_import_nft import found, nats

__all__ = ["run"]

OTHER = '<?xml version="1.0"?>\n<zone target="DROP"><source address="198.51.100.0/24"/></zone>\n'


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((sample.text, Kind.NFT_TEXT) for sample in SAMPLES),
        ("#!/usr/sbin/nft -f\n\nflush ruleset\n\ntable inet filter {\n}\n", Kind.NFT_TEXT),
        ('include "/etc/x"\ntable nat { }\n', Kind.NFT_TEXT),
        (PUBLIC, Kind.FIREWALLD_XML),
        ("<!-- ours -->\n<zone/>\n", Kind.FIREWALLD_XML),
        ('<policy target="ACCEPT">\n</policy>', Kind.FIREWALLD_XML),
        (LISTED, Kind.FIREWALLD_LIST),
        (f"drop\n  target: DROP\n\n{LISTED}", Kind.FIREWALLD_LIST),
    ],
)
def test_each_is_known_by_its_shape(text: str, kind: Kind) -> None:
    assert recognise(FILE, text) is kind


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_what_is_made_of_it_is_a_valid_configuration(sample: Sample) -> None:
    made = accepted([found(sample.text)])
    known = [text for text in sample.live if "122.10" in text or "2001:db8:122::10" in text]
    assert len([mapping for entry in made.forwards for mapping in entry.mappings]) == len(known)


def test_one_to_one_becomes_a_nat_entry() -> None:
    (sample,) = (sample for sample in SAMPLES if sample.name == "whole/several-one-to-one")
    (nat,) = accepted([found(sample.text)], OWNERS).nats
    assert (nat.domain, str(nat.public), str(nat.address)) == ("web", "198.51.100.1", "192.168.122.10")


@pytest.mark.parametrize("name", ["ci-*", "web[1]", "w?x", "x[ab]y", "[", "a[*]b"])
def test_a_name_that_libvirt_gives_is_that_one_guest_whatever_is_in_it(name: str) -> None:
    one_to_one = next(sample for sample in SAMPLES if sample.name == "whole/several-one-to-one")
    port = "table ip nat {\nchain prerouting {\ntype nat hook prerouting priority -100\n"
    forward = port + "tcp dport 80 dnat to 192.168.122.10:80\n}\n}\n"
    owners: Owners = dict.fromkeys(OWNERS, (name,))
    (nat,) = accepted([found(one_to_one.text)], owners).nats
    made = accepted([found(forward), saved(PAIR.replace("-j", "-p tcp --dport 81 -j"))], owners).forwards
    assert nat.domain == name
    assert {entry.domain for entry in made} == {name}
    assert not any(entry.is_pattern for entry in made)


def test_a_forward_does_not_take_from_a_whole_address_what_was_its_own() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "whole/one-to-one")
    more = "add rule ip nat prerouting tcp dport 80 dnat to 192.168.122.10:8080\n"
    made = accepted([found(sample.text + more)], OWNERS)
    assert [str(nat.public) for nat in made.nats] == ["198.51.100.1"]
    assert made.forwards == ()


PAIR = "-A PREROUTING -d 198.51.100.1/32 -j DNAT --to-destination 192.168.122.10\n"
RENAMED = "-A POSTROUTING -s 192.168.122.10/32 -o eth0 -j SNAT --to-source 198.51.100.1\n"
OPEN = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"


def saved(rules: str, filtered: str = OPEN) -> Findings:
    return iptables_save.parse(FILE, f"{filtered}*nat\n:PREROUTING ACCEPT [0:0]\n{rules}COMMIT\n")


def test_a_pair_of_iptables_becomes_a_nat_entry() -> None:
    findings = saved(PAIR + RENAMED)
    assert nats(findings) == ["198.51.100.1 is 192.168.122.10"]
    (nat,) = accepted([findings], OWNERS).nats
    assert (nat.domain, str(nat.public), str(nat.address)) == ("web", "198.51.100.1", "192.168.122.10")


@pytest.mark.parametrize(
    ("rules", "filtered", "reason"),
    [
        (PAIR + RENAMED.replace("122.10", "122.11"), OPEN, "no rule gave the guest 198.51.100.1 on its way out"),
        (PAIR.replace("-j", "-i eth0 -j") + RENAMED, OPEN, "it was for one interface or some sources only"),
        (PAIR.replace("-j", "-s 203.0.113.0/24 -j") + RENAMED, OPEN, "it was for one interface or some sources only"),
        (f"-A PREROUTING -s 203.0.113.0/24 -j ACCEPT\n{PAIR}{RENAMED}", OPEN, "stopped some of it"),
        (PAIR + RENAMED, OPEN.replace("ACCEPT", "DROP"), "stopped some of it"),
        (PAIR, OPEN.replace("ACCEPT", "DROP"), 'line 2, ":FORWARD DROP [0:0]", stopped some of it'),
        (PAIR, OPEN, "no rule gave the guest 198.51.100.1 on its way out"),
        (PAIR.replace("-j", "-i eth0 -j"), OPEN, "it was for one interface or some sources only"),
        (
            PAIR + RENAMED,
            OPEN.replace("COMMIT", "-A FORWARD -d 203.0.113.0/24 -p tcp -m tcp --dport 25 -j DROP\nCOMMIT"),
            "kept the guest from leaving",
        ),
        *(
            (PAIR + RENAMED, f"{OPEN}*mangle\n-A POSTROUTING {asked} -j DROP\nCOMMIT\n", said)
            for asked, said in (
                ("-d 192.168.122.10/32 -p tcp -m tcp --dport 22", "stopped some of it"),
                ("! -s 203.0.113.0/24 -d 192.168.122.10/32", "stopped some of it"),
                ("-d 203.0.113.0/24", "kept the guest from leaving"),
            )
        ),
        *(
            (PAIR + RENAMED, f"{OPEN}*{table}\n{rule}\nCOMMIT\n", "kept the guest from leaving")
            for table in ("raw", "mangle")
            for rule in (
                "-A PREROUTING -s 192.168.122.10/32 -d 203.0.113.0/24 -j DROP",
                "-A PREROUTING -s 192.168.122.0/24 ! -d 198.51.100.1/32 -p tcp -m tcp --dport 25 -j DROP",
                "-A PREROUTING -i virbr0 -d 203.0.113.0/24 -m set --match-set some dst -j DROP",
                "-A PREROUTING -s 192.168.122.10/32 ! -d 198.51.100.1/32 -m addrtype ! --dst-type LOCAL -j DROP",
            )
        ),
    ],
)
def test_what_was_less_than_a_whole_address_is_a_comment(rules: str, filtered: str, reason: str) -> None:
    (nat,) = saved(rules, filtered).nats
    assert reason in nat.reason


@pytest.mark.parametrize(
    ("rule", "is_twin"),
    [
        (PAIR, True),
        (PAIR.replace("-j", "-p tcp -j"), True),
        (PAIR.replace("122.10", "122.11"), False),
        (PAIR.replace("100.1/32", "100.2/32"), False),
    ],
)
def test_a_rule_for_the_host_itself_is_told_beside_a_whole_address(rule: str, is_twin: bool) -> None:  # noqa: FBT001  the expected value
    (remark,) = saved(PAIR + RENAMED + rule.replace("PREROUTING", "OUTPUT")).remarks
    assert remark.text.endswith("left out: the [[nat]] of line 6 answers this host itself too") == is_twin


OUT = RENAMED.partition(" -j")[0]


@pytest.mark.parametrize(
    "rules",
    [
        *(RENAMED.replace(" -j", f" {asked} -j") for asked in ("-d 10.0.0.0/8", "! -d 10.0.0.0/8", "-p tcp")),
        RENAMED.replace(" -j", " -p tcp -m tcp --dport 25 -j"),
        RENAMED.replace(" -j", " -m set --match-set some dst -j"),
        RENAMED.replace(" -j", " -m addrtype ! --dst-type LOCAL -j"),
        f"{OUT} -p tcp -j ACCEPT\n{RENAMED}",
        f"{OUT} -d 203.0.113.0/24 -j MASQUERADE\n{RENAMED}",
        f"{OUT} -p udp -j SNAT --to-source 198.51.100.2\n{RENAMED}",
        RENAMED.replace("-o eth0", "-o virbr0"),
    ],
)
def test_a_guest_that_left_under_the_address_only_sometimes_is_a_comment(rules: str) -> None:
    findings = iptables_save.parse(
        FILE, f"{OPEN}*nat\n:PREROUTING ACCEPT [0:0]\n{PAIR}{rules}COMMIT\n", way_out=lambda _: "virbr0"
    )
    assert nats(findings) == []
    (nat,) = findings.nats
    assert "198.51.100.1" in nat.reason


@pytest.mark.parametrize(
    "rules",
    [
        RENAMED.replace("-o eth0", "! -o virbr0"),
        RENAMED.replace("-o eth0", "! -o eth1"),
        RENAMED.replace(" -o eth0", ""),
        RENAMED.replace(" -j", " ! -d 192.168.122.0/24 -j"),
        f"-A POSTROUTING -s 192.168.122.0/24 -d 224.0.0.0/24 -j RETURN\n{RENAMED}",
        f"{RENAMED}-A POSTROUTING -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE\n",
        f"{RENAMED.replace(' -j', ' -p tcp -j')}{RENAMED}",
    ],
)
def test_a_guest_that_left_under_the_address_by_one_interface_is_a_nat_entry(rules: str) -> None:
    findings = iptables_save.parse(
        FILE, f"{OPEN}*nat\n:PREROUTING ACCEPT [0:0]\n{PAIR}{rules}COMMIT\n", way_out=lambda _: "virbr0"
    )
    assert nats(findings) == ["198.51.100.1 is 192.168.122.10"]


NFT_PAIR = """table ip nat {
chain pre {
type nat hook prerouting priority -100;
%s
ip daddr 198.51.100.1 dnat to 192.168.122.10
}
chain post {
type nat hook postrouting priority 100;
ip saddr 192.168.122.10 snat to 198.51.100.1
}
}
"""


def test_a_pair_of_nft_becomes_a_nat_entry() -> None:
    assert nats(found(NFT_PAIR % "" + PASSING)) == ["198.51.100.1 is 192.168.122.10"]


@pytest.mark.parametrize("asked", ["tcp dport 25", "ip daddr 10.0.0.0/8", "meta l4proto tcp", "oifname virbr0"])
def test_a_guest_that_left_under_the_address_of_nft_only_sometimes_is_a_comment(asked: str) -> None:
    assert nats(found((NFT_PAIR % "").replace("122.10 snat", f"122.10 {asked} snat"))) == []


@pytest.mark.parametrize(
    "asked",
    [
        "fib daddr . iif type local tcp dport 80",
        'meta hour "08:00"-"18:00" tcp dport 102',
        "ct original daddr 198.51.100.1 tcp dport 102",
        'ip daddr 198.51.100.1 meta hour "08:00"-"18:00" tcp dport 102',
    ],
)
def test_a_rule_of_nft_that_is_not_followed_is_no_whole_address(asked: str) -> None:
    """What is not followed goes on to the verdict, so a port may be in it."""
    findings = found((NFT_PAIR % "").replace("ip daddr 198.51.100.1 dnat", f"{asked} dnat"))
    assert (findings.forwards, findings.nats) == ([], [])
    (warning,) = [remark.text for remark in findings.in_order() if remark.is_warning]
    assert warning.endswith(" is not followed")
    assert "tcp dport" in warning.partition(" left out: ")[2]


@pytest.mark.parametrize("filtered", [OPEN, OPEN.replace("ACCEPT", "DROP")])
@pytest.mark.parametrize(
    "rule",
    [
        PAIR,
        PAIR.replace("-j", "! -p udp -j"),
        PAIR.replace("-d 198.51.100.1/32 ", ""),
        PAIR.replace("100.1/32", "100.0/24"),
        PAIR.replace("PREROUTING", "OUTPUT"),
        PAIR.replace("PREROUTING", "old"),
    ],
)
def test_no_remedy_opens_what_a_rule_for_every_protocol_may_not_have(rule: str, filtered: str) -> None:
    findings = saved(rule, filtered)
    said = [*(remark.text for remark in findings.remarks), *(nat.reason for nat in findings.nats)]
    assert (findings.forwards, nats(findings), len(said)) == ([], [], 1)
    assert not [text for text in said if "write" in text or "instead" in text]


@pytest.mark.parametrize(
    ("rule", "priority"),
    [
        *product(
            (
                "ip saddr 192.168.122.10 ip daddr 203.0.113.0/24 drop",
                "iifname virbr0 ip daddr 203.0.113.0/24 reject",
            ),
            (-300, -100, -50),
        ),
        ("ip saddr 192.168.122.10 ip daddr != 198.51.100.1 fib daddr type != local drop", -300),
        ("ip saddr 192.168.122.10 ip daddr != 198.51.100.1 tcp dport 25 drop", -300),
    ],
)
def test_a_guest_that_nft_kept_in_before_it_was_routed_is_a_comment(rule: str, priority: int) -> None:
    chain = f"chain early {{\ntype filter hook prerouting priority {priority};\n{rule}\n}}\n"
    (nat,) = found(NFT_PAIR % "" + f"table ip early {{\n{chain}}}\n").nats
    assert nat.reason == f'line 15, "{rule}", kept the guest from leaving'


def test_a_guest_that_a_nat_chain_kept_in_is_a_comment() -> None:
    (nat,) = found(NFT_PAIR % "ip saddr 192.168.122.10 ip daddr 203.0.113.0/24 drop").nats
    assert nat.reason.endswith("kept the guest from leaving")


def configuration(text: str) -> Config:
    return config.parse({Path("made.toml"): text})


def test_without_libvirt_nothing_is_live_and_that_fails(run: Run) -> None:
    text, errors = run({"rules.nft": "table ip nat {\n}\n"}, code=1)
    assert configuration(text).forwards == ()
    assert errors[-1].startswith("nothing could be imported")


def test_a_file_with_an_open_brace_is_refused(run: Run) -> None:
    text, errors = run({"rules.nft": "table ip nat {\n    chain pre {\n"}, code=1)
    assert text == ""
    assert errors == [
        "rules.nft:2: its braces do not match; give the output of `nft list ruleset`, which has everything"
    ]


def test_a_zone_is_read_with_those_beside_it(run: Run) -> None:
    text, _ = run({"drop.xml": OTHER, "public.xml": PUBLIC}, code=1)
    assert '"128.0.0.0/2", "192.0.0.0/6"' in text
    assert "--list-all-zones" not in text


def test_a_broken_zone_beside_it_may_take_anything(run: Run) -> None:
    (run.directory / "drop.xml").write_text(OTHER.replace("/></zone>", "/>"))
    text, _ = run({"public.xml": PUBLIC}, code=1)
    assert "Left out: another zone may take some of its connections by their source" in text


def test_a_listing_of_one_zone_does_not_tell_the_others(run: Run) -> None:
    text, _ = run({"zone": LISTED}, code=1)
    assert "Left out: another zone may take some of its connections by their source" in text


@pytest.mark.parametrize(
    ("rule", "doubt"),
    [
        ("ip saddr @nosuch", '"ip saddr @nosuch" (what is in set "nosuch" is not known here)'),
        ("tcp dport @nosuch", '"tcp dport @nosuch" (what is in set "nosuch" is not known here)'),
        ("ip saddr $OFFICE", '"ip saddr $OFFICE" (nothing here says what "$OFFICE" is)'),
    ],
)
def test_what_is_not_followed_is_one_sentence(rule: str, doubt: str) -> None:
    findings = found(NFT_PAIR % f"{rule} tcp dport 80 dnat to 192.168.122.10")
    assert [forward.reason for forward in findings.forwards] == [f"{doubt} is not followed"]


def test_what_a_zone_cannot_say_is_told_without_an_empty_subject() -> None:
    sources = "".join(f'<source address="198.51.{number}.0/24"/>' for number in range(0, 80, 2))
    text = PUBLIC.replace('<interface name="eth0"/>', f'<interface name="eth0"/>{sources}')
    findings = parse_xml(FILE, text, [], lambda _: None)
    said = [*(remark.text for remark in findings.remarks), *(forward.reason for forward in findings.forwards)]
    assert any("its sources would be more than 32 networks" in text for text in said)
    assert not [text for text in said if "  " in text or text.startswith(" ")]


def test_a_zone_that_nothing_is_known_to_lead_to_is_told_without_an_empty_subject() -> None:
    text = PUBLIC.replace('<interface name="eth0"/>', '<source ipset="office"/>')
    findings = parse_xml(FILE, text, [], lambda _: None)
    reasons = {forward.reason for forward in findings.forwards}
    assert reasons
    assert not [reason for reason in reasons if not reason or reason.startswith(" ")]
