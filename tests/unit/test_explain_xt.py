"""How rules of iptables treat a packet, as `iptables-save` writes them."""

from ipaddress import ip_address

import pytest

from fwdaemon.core.admission import Element, Ranges
from fwdaemon.core.types import Family
from fwdaemon.rulesets import xt_listing
from fwdaemon.rulesets.evaluation import Judgement
from fwdaemon.rulesets.packet import RuleLocation, State, System
from tests.unit.explaining import meets, packet, saved

ACCEPTS, REFUSES, MAY = Judgement.ACCEPTS, Judgement.REFUSES, Judgement.MAY_REFUSE
SOMEBODY = RuleLocation(System.LEGACY, "ip", "nat", "PREROUTING", 1)


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("-s 203.0.113.0/24", REFUSES),
        ("! -s 203.0.113.0/24", ACCEPTS),
        ("-d 198.51.100.1/32 -i eth0 -p tcp -m tcp --dport 80", REFUSES),
        ("-p tcp -m tcp --dport 8000:8010", ACCEPTS),
        ("-p tcp -m tcp --dport :100", REFUSES),
        ("-p udp -m udp --dport 80", ACCEPTS),
        ("-p icmp -m icmp --icmp-type 8", ACCEPTS),
        ("-i eth+", REFUSES),
        ("! -i eth+", ACCEPTS),
        ("! -i lo -o eth0", ACCEPTS),
        ("-p tcp -m multiport --dports 22,79:81", REFUSES),
        ("-p tcp -m multiport ! --dports 22,79:81", ACCEPTS),
        ("-p tcp -m tcp --sport 1024:65535", REFUSES),
        ("-p tcp -m tcp --sport 40000:65535", MAY),
        ("-p tcp -m tcp --sport 80", ACCEPTS),
        ("-p tcp -m multiport --ports 22,80", REFUSES),
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", REFUSES),
        ("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN", ACCEPTS),
        ("-m conntrack --ctstate RELATED,ESTABLISHED", ACCEPTS),
        ("-m conntrack --ctstate NEW", REFUSES),
        ("-m conntrack ! --ctstate DNAT", REFUSES),
        ("-m state --state INVALID", ACCEPTS),
        ("-m conntrack --ctorigdstport 80 --ctdir ORIGINAL", REFUSES),
        ("-m connmark --mark 0x2000000/0x2000000", ACCEPTS),
        ("-m connmark ! --mark 0x2000000/0x2000000", REFUSES),
        ("-m connlabel --label 25", ACCEPTS),
        ("-m connlabel ! --label 25", REFUSES),
        ("-m connlabel ! --label 25 --set", ACCEPTS),
        ("-m mark --mark 0x0", REFUSES),
        ("-m addrtype --dst-type LOCAL", REFUSES),
        ("-m addrtype ! --dst-type LOCAL", ACCEPTS),
        ("-m addrtype --dst-type LOCAL --limit-iface-in", MAY),
        ("-m iprange --src-range 203.0.113.1-203.0.113.20", REFUSES),
        ("-m comment --comment \"-j ACCEPT ! 'x'\"", REFUSES),
        ("-m comment --comment -j", REFUSES),
        ("-m set --match-set blocked src", MAY),
        ("-m physdev --physdev-is-bridged", MAY),
        ("-m recent --update --seconds 60 --name x --mask 255.255.255.255 --rsource", MAY),
        ("-m recent --rcheck -s 10.0.0.0/8", ACCEPTS),
        ("-f", MAY),
        ("-s odd/address", MAY),
        ("-s 0.0.0.9/0.0.0.255", MAY),
        ("! -s 10.0.0.0/0.255.255.255", MAY),
        ("! -d 10.0.0.0/0.255.255.255", MAY),
        ("! --ctorigdst 10.0.0.0/0.255.255.255", MAY),
    ],
)
def test_a_match(match: str, expected: Judgement) -> None:
    assert meets(saved(f"-A FORWARD {match} -j DROP")).judgement is expected


def test_a_translated_packet_is_in_state_dnat() -> None:
    chain = saved("-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT\n-A FORWARD -j DROP")
    led = packet().sent_to(ip_address("192.168.122.10"), 80, SOMEBODY)
    assert meets(chain, led).judgement is ACCEPTS
    assert meets(chain).judgement is REFUSES


def test_chains_are_jumped_to_and_returned_from() -> None:
    inner = ":INNER - [0:0]\n-A INNER -p tcp -m tcp --dport 80 -j RETURN\n-A INNER -j DROP"
    head = "*filter\n:FORWARD ACCEPT [0:0]\n"
    assert meets(saved(f"{head}{inner}\n-A FORWARD -j INNER\n-A FORWARD -j REJECT\nCOMMIT")).judgement is REFUSES
    assert meets(saved(f"{head}{inner}\n-A FORWARD -g INNER\n-A FORWARD -j REJECT\nCOMMIT")).judgement is ACCEPTS


def test_the_policy_and_the_place_of_a_rule() -> None:
    passage = meets(saved("*filter\n:FORWARD DROP [3:180]\n-A FORWARD -j LOG\n-A FORWARD\nCOMMIT"))
    assert passage.judgement is REFUSES
    assert passage.culprit is not None
    assert passage.culprit.number == 0
    passage = meets(saved("-A FORWARD -i eth1 -j DROP\n-A FORWARD -i eth0 -j DROP"))
    assert passage.culprit is not None
    assert (passage.culprit.number, passage.culprit.text) == (2, "-i eth0 -j DROP")


@pytest.mark.parametrize("target", ["NFQUEUE --queue-num 0", "TARPIT", "unheard-of"])
def test_a_target_that_may_do_anything(target: str) -> None:
    assert meets(saved(f"-A FORWARD -j {target}")).judgement is MAY


def test_a_label_is_set_by_a_match() -> None:
    gate = "-A FORWARD -m connlabel --label 25 -j ACCEPT\n-A FORWARD -j DROP"
    setting = "-m connlabel --label 25 --set -j RETURN"
    assert meets(saved(f"-A FORWARD -p tcp -m tcp --dport 80 {setting}")).judgement is ACCEPTS
    labelled = f":OURS -\n-A FORWARD -j OURS\n-A OURS -p tcp -m tcp --dport %d {setting}\n{gate}"
    assert meets(saved(labelled % 80)).judgement is ACCEPTS
    assert meets(saved(labelled % 81)).judgement is REFUSES


def test_marks_are_set_saved_and_restored() -> None:
    gate = "-A FORWARD -m connmark --mark 0x2000000/0x2000000 -j ACCEPT\n-A FORWARD -j DROP"
    assert meets(saved(f"-A FORWARD -j CONNMARK --set-xmark 0x2000000/0x2000000\n{gate}")).judgement is ACCEPTS
    saving = (
        "-A FORWARD -j MARK --set-xmark 0x2000000/0xffffffff\n"
        "-A FORWARD -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"
    )
    assert meets(saved(f"{saving}\n{gate}")).judgement is ACCEPTS
    masked = "-A FORWARD -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff\n-A FORWARD -m mark --mark 0x1 -j DROP"
    assert meets(saved(masked)).judgement is MAY


@pytest.mark.parametrize(
    ("target", "to"),
    [
        ("DNAT --to-destination 192.168.122.10:8080", ("192.168.122.10", 8080)),
        ("DNAT --to-destination 192.168.122.10", ("192.168.122.10", 80)),
        ("DNAT --to-destination :8080", ("198.51.100.1", 8080)),
        ("DNAT --to-destination 192.168.122.10:5000-5010/75", ("192.168.122.10", 5005)),
        ("REDIRECT --to-ports 3128", ("127.0.0.1", 3128)),
    ],
)
def test_a_translation(target: str, to: tuple[str, int]) -> None:
    text = f"*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j {target}\nCOMMIT\n"
    (led,) = meets(saved(text, "PREROUTING")).packets
    assert (str(led.destination), led.port) == to


def test_an_ipv6_translation() -> None:
    text = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j DNAT --to-destination [2001:db8:122::10]:443\nCOMMIT\n"
    six = packet(
        family=Family.IPV6, source=ip_address("2001:db8::9"), destination=ip_address("2001:db8::1"), state=State.NEW
    )
    (led,) = meets(saved(text, "PREROUTING", Family.IPV6), six).packets
    assert (str(led.destination), led.port) == ("2001:db8:122::10", 443)


@pytest.mark.parametrize("target", ["CT --notrack", "NOTRACK"])
def test_a_connection_that_is_not_tracked(target: str) -> None:
    text = f"*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j {target}\nCOMMIT\n"
    (led,) = meets(saved(text, "PREROUTING"), packet(state=State.UNSEEN)).packets
    assert led.state is State.UNTRACKED


def test_a_comment_with_an_odd_quote_leaves_a_doubt() -> None:
    assert meets(saved('-A FORWARD -m comment --comment "a -j DROP')).judgement is MAY


def test_tables_have_their_hooks_and_priorities() -> None:
    text = "*raw\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
    raw = saved(text, "PREROUTING")
    assert (raw.table, raw.hook, raw.priority, raw.kind) == ("raw", "prerouting", -300, "filter")
    nat = saved(text, "POSTROUTING")
    assert (nat.table, nat.hook, nat.priority, nat.kind) == ("nat", "postrouting", 100, "nat")


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("-m set --match-set KVMPF_bad_4 src", REFUSES),
        ("-m set ! --match-set KVMPF_bad_4 src", ACCEPTS),
        ("-m set --match-set KVMPF_office_4 src", ACCEPTS),
        ("-m set --match-set KVMPF_bad_4 dst", MAY),
        ("-m set --match-set KVMPF_bad_4 src,dst", MAY),
        ("-m set --match-set theirs src", MAY),
    ],
)
def test_a_set_is_asked_of_whose_members_are_known(match: str, expected: Judgement) -> None:
    client = int(ip_address("203.0.113.9"))
    members = {"KVMPF_bad_4": Ranges([Element(client - 9, client)]), "KVMPF_office_4": Ranges([Element(1, 2)])}
    save = f"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {match} -j DROP\nCOMMIT\n"
    (chain,) = xt_listing.base_chains(save, System.LEGACY, Family.IPV4, members)
    assert meets(chain).judgement is expected
    anybody = meets(chain, packet(source=None)).judgement
    assert anybody is MAY
