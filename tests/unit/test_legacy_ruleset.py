"""The rules of the legacy tables as text a reader can review; the kernel's own view of them is in tests/kernel."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

from fwdaemon.core.exposures import Forward
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Protocol
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.library import Extension, parse
from fwdaemon.legacy.model import FWD, OUT, POST, Rule, TableName
from fwdaemon.legacy.ruleset import exposures_of, tables
from fwdaemon.netfilter import Backend
from fwdaemon.resolve.flows import Flow
from tests.unit.forwards import forward

WEB = forward("tcp *:80", "192.168.122.50:80")
LABELLED = '-m connlabel --label "25" --set'
SUBNETS = frozenset({ip_network("192.168.122.0/24"), ip_network("192.168.123.0/24"), ip_network("2001:db8:5::/64")})


def rules(chain: str, *forwards: Forward, ended: tuple[Flow, ...] = ()) -> list[str]:
    """Write what a chain holds, without comments."""
    desired = Desired(frozenset(forwards), guest_subnets=SUBNETS)
    family = forwards[0].family
    table = TableName.FILTER if chain == FWD else TableName.NAT
    return [f"{rule.matches} -j {rule.target}".lstrip() for rule in tables(desired, ended)[family][table].chains[chain]]


def claims(*forwards: Forward) -> list[str]:
    """Write what KVMPF_OUT holds, without what sends other addresses back."""
    return [rule for rule in rules(OUT, *forwards) if not rule.endswith("-j RETURN")]


def test_every_address_is_every_local_one_but_never_loopback_or_link_local() -> None:
    assert rules(OUT, WEB) == [
        "-d 127.0.0.0/8 -j RETURN",
        "-d 169.254.0.0/16 -j RETURN",
        "-m addrtype ! --dst-type LOCAL -j RETURN",
        f"-p tcp -m tcp --dport 80 {LABELLED} -j DNAT --to-destination 192.168.122.50:80",
    ]
    assert rules(OUT, forward("tcp *:80", "[2001:db8:5::5]:80"))[:2] == [
        "-d ::1/128 -j RETURN",
        "-d fe80::/10 -j RETURN",
    ]


def test_one_address_comes_before_every_address() -> None:
    found = rules(OUT, WEB, forward("tcp 198.51.100.7:80", "192.168.122.51:8080"))
    assert (
        found[0]
        == f"-d 198.51.100.7/32 -p tcp -m tcp --dport 80 {LABELLED} -j DNAT --to-destination 192.168.122.51:8080"
    )
    assert found[1] == "-d 127.0.0.0/8 -j RETURN"


def test_a_range_keeps_its_ports() -> None:
    found = claims(forward("udp *:27015-27030", "192.168.122.52:27015-27030"))
    assert found[0] == f"-p udp -m udp --dport 27015:27030 {LABELLED} -j DNAT --to-destination 192.168.122.52"


def test_a_shifted_range_counts_from_its_first_port() -> None:
    found = claims(forward("sctp [2001:db8::7]:300-309", "[2001:db8:5::5]:400-409"))
    where = "-d 2001:db8::7/128 -p sctp -m sctp --dport 300:309"
    assert found[0] == f"{where} {LABELLED} -j DNAT --to-destination [2001:db8:5::5]:400-409/300"


def test_a_piece_of_a_shifted_range_counts_from_its_own_first_port() -> None:
    wide = forward("tcp *:100-109", "192.168.122.50:200-209", interface="eth0")
    narrow = forward("tcp *:105", "192.168.122.51:5", interface="eth1")
    assert [rule.partition(" -j DNAT")[2] for rule in claims(wide, narrow) if "DNAT" in rule] == [
        " --to-destination 192.168.122.50:200-204/100",
        " --to-destination 192.168.122.50:205",
        " --to-destination 192.168.122.51:5",
        " --to-destination 192.168.122.50:206-209/106",
    ]


def test_sources_and_interface_are_matched_one_rule_a_source() -> None:
    found = claims(
        forward("tcp *:80", "192.168.122.50:80", interface="eth0", sources=("203.0.113.0/24", "192.0.2.1/32"))
    )
    where = "-i eth0 -p tcp -m tcp --dport 80"
    assert found == [
        f"-s 192.0.2.1/32 {where} {LABELLED} -j DNAT --to-destination 192.168.122.50:80",
        f"-s 203.0.113.0/24 {where} {LABELLED} -j DNAT --to-destination 192.168.122.50:80",
    ]


def test_a_claim_with_an_interface_comes_before_one_without() -> None:
    bound = replace(WEB, interface="eth1", target=ip_address("192.168.122.60"))
    assert "-i eth1" in claims(WEB, bound)[0]


def test_hairpin_is_for_guests_of_every_subnet() -> None:
    assert rules(POST, WEB) == [
        '-m connlabel ! --label "25" -j RETURN',
        "-m conntrack ! --ctstate DNAT -j RETURN",
        "-s 192.168.122.0/23 -j MASQUERADE",
    ]


def test_hairpin_is_not_for_a_target_outside_of_every_subnet() -> None:
    assert rules(POST, forward("tcp *:80", "10.0.0.5:80"))[2] == "-d 10.0.0.5/32 -j RETURN"


def test_labelled_connections_are_let_through_and_ended_ones_refused() -> None:
    server, client = ip_address("192.168.122.50"), ip_address("198.51.100.2")
    public = ip_address("198.51.100.1")
    tcp = Flow(Protocol.TCP, client, public, 8080, server, 80, client, 40000)
    udp = replace(tcp, protocol=Protocol.UDP)
    sent_to = "-m conntrack --ctorigdst 198.51.100.2 --ctorigdstport 40000"
    assert rules(FWD, WEB) == ['-m connlabel --label "25" -j ACCEPT']
    assert rules(FWD, WEB, ended=(udp, tcp)) == [
        '-m connlabel --label "25" -m conntrack ! --ctstate NEW -j ACCEPT',
        "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
        f"-s 192.168.122.50/32 -p tcp -m tcp --sport 80 {sent_to} -j REJECT --reject-with tcp-reset",
        f"-s 192.168.122.50/32 -p udp -m udp --sport 80 {sent_to} -j REJECT --reject-with icmp-port-unreachable",
        '-m connlabel --label "25" -j ACCEPT',
    ]


def test_a_family_without_forwards_needs_nothing() -> None:
    assert tables(Desired(frozenset({WEB}))).keys() == {Family.IPV4}
    assert tables(Desired(kept=frozenset({Family.IPV6}))).keys() == {Family.IPV6}


def test_a_rule_tells_which_exposure_it_serves() -> None:
    desired = Desired(frozenset({WEB}))
    chain = tables(desired)[Family.IPV4][TableName.NAT].chains[OUT]
    served = exposures_of(desired, Family.IPV4)
    assert [served.get(rule.comment) for rule in chain] == [None, None, None, WEB]


def test_a_hostile_name_is_no_syntax() -> None:
    hostile = replace(WEB, domain='"\n-j ACCEPT --comment $(reboot)')
    rule = tables(Desired(frozenset({hostile})))[Family.IPV4][TableName.NAT].chains[OUT][-1]
    label, digest = rule.comment.split(" ")
    assert label == "___j_ACCEPT___comment___reboot_"
    assert len(digest) == 12


def test_another_body_is_another_digest() -> None:
    moved = replace(WEB, target=ip_address("192.168.122.51"))
    assert (
        not exposures_of(Desired(frozenset({WEB})), Family.IPV4).keys()
        >= exposures_of(Desired(frozenset({moved})), Family.IPV4).keys()
    )


def test_the_text_is_what_iptables_restore_takes() -> None:
    backend: Backend = LegacyBackend()
    text = backend.render(Desired(frozenset({WEB})))
    assert text.splitlines()[:6] == [
        "# iptables-legacy-restore --noflush",
        "*filter",
        ":KVMPF_FWD - [0:0]",
        "-I FORWARD 1 -m comment --comment kvm-portfwd -j KVMPF_FWD",
        f'-A KVMPF_FWD -m connlabel --label "25" -m comment --comment "all {_digest(FWD)}" -j ACCEPT',
        "COMMIT",
    ]


def _digest(chain: str) -> str:
    (rule,) = tables(Desired(frozenset({WEB})))[Family.IPV4][TableName.FILTER].chains[chain]
    return rule.comment.split(" ")[1]


def test_a_rule_is_taken_apart() -> None:
    words = parse(
        Rule("-s 192.0.2.0/24 -i eth0 -p tcp -m tcp --dport 1:2 -m conntrack ! --ctstate NEW", "RETURN", "a b")
    )
    assert words.header == (("src", "192.0.2.0/24"), ("in_interface", "eth0"), ("protocol", "tcp"))
    assert words.matches == (
        Extension("tcp", (("dport", "1:2"),)),
        Extension("conntrack", (("ctstate", "!NEW"),)),
        Extension("comment", (("comment", "a b"),)),
    )
    assert words.target == Extension("RETURN", ())
    assert parse(Rule("-d 127.0.0.0/8 ! -i lo -o eth0", "DROP", "a b")).header == (
        ("dst", "127.0.0.0/8"),
        ("in_interface", "!lo"),
        ("out_interface", "eth0"),
    )
    assert parse(Rule("", "DNAT --to-destination 192.0.2.1:3-4/1", "")).target.options == (
        ("to-destination", "192.0.2.1:3-4/1"),
    )
