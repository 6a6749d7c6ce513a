"""`explain` reads single matches of rules as the kernel does: each is counted for a real packet, and judged.

A rule that only counts shows whether the kernel thinks that it matches. What `explain` knows must agree; what it cannot
tell must be said so.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address, ip_network

import pytest

from fwdaemon.core.types import Family, Protocol
from fwdaemon.nftables.model import Item, items
from fwdaemon.rulesets import nft_listing, xt_listing
from fwdaemon.rulesets.evaluation import through
from fwdaemon.rulesets.packet import BaseChain, Match, Packet, Rule, Surroundings, System, Tristate, all_of
from tests.lab.host import CLIENT4, CLIENT6, PUBLIC4, PUBLIC6, Host
from tests.lab.release import LibvirtFirewall

PORT = 8000

AROUND = Surroundings(
    {ip_address(address): frozenset({"eth0"}) for address in (PUBLIC4, PUBLIC6)},
    (ip_network("192.168.122.0/24"),),
    way_back="eth0",
)

# What holds, what does not, and what `explain` cannot tell, for a SYN from outside at prerouting.
NATIVE = (
    f"ip saddr {CLIENT4}",
    f"ip saddr != {CLIENT4}",
    "ip saddr 198.51.100.0/24",
    "ip saddr { 198.51.100.2-198.51.100.9, 10.0.0.0/8 }",
    "ip saddr != { 198.51.100.2-198.51.100.9, 10.0.0.0/8 }",
    f"ip daddr {PUBLIC4} tcp dport 8000",
    "ip daddr @named",
    "ip saddr . tcp dport { 198.51.100.2 . 8000-8010 }",
    "ip saddr . tcp dport != { 198.51.100.2 . 8000-8010 }",
    "meta l4proto . th dport { tcp . 8000, udp . 53 }",
    f"ip6 saddr {CLIENT6}",
    f"ip6 saddr != {CLIENT6}",
    "ip6 daddr 2001:db8::/64 tcp dport 8000",
    "tcp dport 8000",
    "tcp dport 7999-8001",
    "tcp dport > 8000",
    "tcp dport >= 8000",
    "tcp dport != { 80, 443 }",
    "tcp sport 1-65535",
    "udp dport 8000",
    "udp dport != 8000",
    "th dport 8000",
    "tcp flags syn",
    "tcp flags & (syn | ack) == syn",
    "tcp flags & (fin | syn | rst | ack) == ack",
    "tcp flags != syn",
    'iifname "eth0"',
    'iifname "eth*"',
    'iifname != "lo"',
    'iifname { "eth1", "lo" }',
    'oifname != "eth0"',
    "iif lo",
    "meta nfproto ipv4",
    "meta nfproto ipv6",
    "meta protocol ip",
    "meta l4proto tcp",
    "meta l4proto { icmp, udp }",
    "meta mark 0",
    "meta mark and 0x1 == 0x1",
    "ct state new",
    "ct state != new",
    "ct state established,related",
    "ct state { new, untracked }",
    "ct state invalid",
    "ct mark 0",
    "ct mark and 0x02000000 == 0x02000000",
    "ct label 25",
    "ct status dnat",
    "ct direction original",
    "ct direction reply",
    f"ct original ip daddr {PUBLIC4}",
    "fib daddr type local",
    "fib daddr type != local",
    "fib saddr type local",
    "fib saddr type unicast",
    "fib daddr . iif type local",
    "fib saddr . iif oif exists",
    "fib saddr . iif oif missing",
    "ip protocol tcp",
    "ip6 nexthdr tcp",
    "icmp type echo-request",
    "ip ttl > 1",
    "meta pkttype host",
    "limit rate 1000/second",
    "meta skuid 0",
)
XT4 = (
    f"-s {CLIENT4}/32",
    f"! -s {CLIENT4}/32",
    "-s 10.0.0.0/8",
    f"-d {PUBLIC4}/32 -p tcp -m tcp --dport 8000",
    "-p tcp -m tcp --dport 7990:8000",
    "-p tcp -m tcp ! --dport 7990:8000",
    "-p udp -m udp --dport 8000",
    "! -p udp",
    "-i eth0",
    "-i eth+",
    "! -i lo",
    "-p tcp -m multiport --dports 22,8000:8001",
    "-p tcp -m multiport ! --dports 22,8000:8001",
    "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN",
    "-p tcp -m tcp --tcp-flags ALL NONE",
    "-m conntrack --ctstate NEW",
    "-m conntrack ! --ctstate RELATED,ESTABLISHED",
    "-m conntrack --ctstate DNAT",
    "-m conntrack --ctstate INVALID",
    "-m conntrack --ctorigdstport 8000",
    "-m connmark --mark 0x2000000/0x2000000",
    "-m connlabel --label 25",
    "-m connlabel ! --label 25",
    "-m mark --mark 0x0",
    "-m mark ! --mark 0x1/0x1",
    "-m addrtype --dst-type LOCAL",
    "-m addrtype ! --dst-type LOCAL",
    "-m addrtype --src-type UNICAST",
    "-m iprange --src-range 198.51.100.1-198.51.100.3",
    '-m comment --comment "it\'s -j DROP"',
    "-m pkttype --pkt-type unicast",
    "-m limit --limit 1000/sec",
    "-m ttl --ttl-gt 1",
)


def syn(family: Family) -> Packet:
    """The first packet of a connection from outside, at prerouting."""
    client, public = (CLIENT4, PUBLIC4) if family is Family.IPV4 else (CLIENT6, PUBLIC6)
    to = ip_address(public)
    return Packet(
        family, Protocol.TCP, ip_address(client), to, PORT, wanted=(to, PORT), source_port=None, came_in="eth0"
    )


def judged(rule: Rule, packet: Packet) -> Tristate:
    tests = (statement.test for statement in rule.statements if isinstance(statement, Match))
    return all_of(test(packet, AROUND) for test in tests)


def compare(rules: Sequence[Rule], packet: Packet, counted: Callable[[Rule], int], most_unknown: int) -> None:
    """Each rule was counted or not: what is known of it must say the same."""
    found = {rule.location.text: (judged(rule, packet), counted(rule) > 0) for rule in rules}
    contradictions = {text: seen for text, seen in found.items() if seen[0] not in (Tristate.UNKNOWN, 2 * seen[1])}
    assert not contradictions
    unknown = [text for text, (truth, _) in found.items() if truth is Tristate.UNKNOWN]
    assert len(unknown) <= most_unknown, unknown


@pytest.fixture
def knock(host: Host) -> Iterator[Callable[[Family], None]]:
    """Send one packet; nothing listens, so that it stays one."""

    def send(family: Family) -> None:
        host.outside.tcp(PUBLIC4 if family is Family.IPV4 else PUBLIC6, PORT)

    yield send
    host.run("nft", "delete", "table", "inet", "counted", check=False)


@pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)
@pytest.mark.parametrize("family", Family)
def test_matches_of_nftables(host: Host, knock: Callable[[Family], None], family: Family) -> None:
    lines = "\n".join(f'{match} counter comment "{number}"' for number, match in enumerate(NATIVE))
    named = f"set named {{ type ipv4_addr; flags interval; elements = {{ {PUBLIC4}/31 }} }}"
    # Neighbour discovery passes there, too.
    base = f"chain b {{ type filter hook prerouting priority -150; tcp dport {PORT} jump c; }}"
    host.run("nft", "-f", "-", stdin=f"table inet counted {{\n{named}\nchain c {{\n{lines}\n}}\n{base}\n}}\n")
    knock(family)
    listing = host.run("nft", "-j", "list", "ruleset").stdout
    texts = nft_listing.rule_texts(host.run("nft", "-s", "-a", "list", "ruleset").stdout)
    rules = _chain(nft_listing.base_chains(listing, texts), "counted", "c")
    counters = {rule["handle"]: _packets(rule) for rule in items(listing, "rule") if rule["chain"] == "c"}
    assert len(rules) == len(NATIVE)
    compare(rules, syn(family), lambda rule: counters[rule.location.number], most_unknown=6)


def _packets(rule: Item) -> int:
    return int(next(item["counter"]["packets"] for item in rule["expr"] if "counter" in item))


@pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)
@pytest.mark.parametrize("system", [System.IPTABLES_NFT, System.LEGACY])
def test_matches_of_iptables(host: Host, knock: Callable[[Family], None], system: System) -> None:
    kind = system.removeprefix("iptables-")
    rules = "\n".join(f"-A PREROUTING {match}" for match in XT4)
    host.run(f"iptables-{kind}-restore", "--noflush", stdin=f"*mangle\n{rules}\nCOMMIT\n")
    try:
        knock(Family.IPV4)
        listed = host.run(f"iptables-{kind}-save", "-c", "-t", "mangle").stdout
    finally:
        host.run(f"iptables-{kind}", "-t", "mangle", "-F", "PREROUTING")
    counters = [int(found) for found in re.findall(r"^\[(\d+):\d+\] -A PREROUTING", listed, flags=re.MULTILINE)]
    plain = re.sub(r"^\[\d+:\d+\] -A", "-A", listed, flags=re.MULTILINE)
    found = _chain(xt_listing.base_chains(plain, system, Family.IPV4), "mangle", "PREROUTING")
    assert len(found) == len(counters) == len(XT4)
    compare(found, syn(Family.IPV4), lambda rule: counters[rule.location.number - 1], most_unknown=3)


def _chain(chains: Sequence[BaseChain], table: str, name: str) -> Sequence[Rule]:
    return next(chain for chain in chains if chain.table == table and chain.hook == "prerouting").chains[name]


@pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)
def test_translation_is_where_the_kernel_does_it_whatever_the_priority(
    host: Host, knock: Callable[[Family], None]
) -> None:
    """A chain between the priority of a NAT chain and -100 still sees where the packet was sent."""
    seen = "tcp dport 8000 counter"
    text = f"""
        chain n {{ type nat hook prerouting priority -105; tcp dport {PORT} dnat ip to {PUBLIC4}:8009; }}
        chain before {{ type filter hook prerouting priority -102; {seen}; }}
        chain after {{ type filter hook prerouting priority -99; {seen}; }}
    """
    host.run("nft", "-f", "-", stdin=f"table inet counted {{{text}}}\n")
    knock(Family.IPV4)
    listing = host.run("nft", "-j", "list", "ruleset").stdout
    rules = items(listing, "rule")
    counted = {rule["chain"]: _packets(rule) > 0 for rule in rules if rule["chain"] in ("before", "after")}
    way = through(nft_listing.base_chains(listing, {}), "prerouting", [syn(Family.IPV4)], AROUND)
    order = [passage.chain.name for passage in way.passages if passage.chain.table == "counted"]
    assert counted == {"before": True, "after": False}
    assert order == ["before", "n", "after"]
