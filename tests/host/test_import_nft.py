"""What rules of nft forwarded is forwarded by the daemon once their listing is imported: the same answers to all.

Where libvirt keeps its rules in nftables, an accept rule elsewhere does not keep its own chains from refusing, and so
none of it ever worked: the import says so, and nothing is live.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.host.conftest import FAR4, HEAD, WEB4, WEB6, Scene
from tests.host.old_tools import undone
from tests.host.test_import import Probe, ask, wait_answered
from tests.lab.host import CLIENT4_SECOND, OTHER_LINK4, PUBLIC4, PUBLIC4_SECOND, PUBLIC6, Host
from tests.lab.release import LibvirtFirewall

# What a chain accepts before it is translated, the next one may still translate.
RULES = f"""
table ip first {{
    chain pre {{
        type nat hook prerouting priority dstnat - 10; policy accept;
        tcp dport {{ 8000, 8082 }} accept
    }}
}}
table ip old {{
    set banned {{ type ipv4_addr; flags interval; elements = {{ {CLIENT4_SECOND} }}; }}
    map ports {{
        type inet_service : ipv4_addr . inet_service
        elements = {{ 8000 : {WEB4} . 80, 8443 : {WEB4} . 443 }}
    }}
    chain pre {{
        type nat hook prerouting priority dstnat - 5; policy accept;
        fib daddr type local jump web
        udp dport 7000-7002 dnat to {WEB4}
    }}
    chain web {{
        ip saddr @banned tcp dport 8000 return
        dnat to tcp dport map @ports
        ip daddr {PUBLIC4_SECOND} tcp dport {{ 80, 443 }} dnat to {FAR4}
        ip saddr {CLIENT4_SECOND} tcp dport 8080 dnat to {FAR4}:8080
        tcp dport 8081 redirect to :9
        tcp dport 8081-8082 dnat to {WEB4}:80
    }}
}}
table ip6 old {{
    chain pre {{
        type nat hook prerouting priority dstnat - 5;
        ip6 daddr {PUBLIC6} tcp dport 8000 dnat to [{WEB6}]:80
    }}
}}
"""
ACCEPTED = (
    f"iptables -I FORWARD -d {WEB4} -j ACCEPT",
    f"iptables -I FORWARD -d {FAR4} -p tcp -m tcp --dport 80 -j ACCEPT",
    f"ip6tables -I FORWARD -d {WEB6} -j ACCEPT",
)
PROBES = (
    *(Probe(PUBLIC4, port) for port in (8000, 8443, 8080, 8081, 8082)),
    *(Probe(PUBLIC4, port, source=CLIENT4_SECOND) for port in (8000, 8443, 8080, 8081, 8082)),
    *(Probe(public, port) for public in (PUBLIC4, PUBLIC4_SECOND, OTHER_LINK4) for port in (80, 443)),
    *(Probe(PUBLIC4, port, "udp") for port in (7000, 7002, 7003)),
    *(Probe(PUBLIC6, port) for port in (80, 8000)),
)


@contextmanager
def kept(host: Host) -> Iterator[None]:
    """The old rules, for a while."""
    host.run("nft", "-f", "-", stdin=RULES)
    for rule in ACCEPTED:
        host.run(*rule.split())
    yield
    for rule in undone(ACCEPTED):
        host.run(*rule.split())
    for table in ("ip first", "ip old", "ip6 old"):
        host.run("nft", "delete", "table", *table.split())


@pytest.mark.on(LibvirtFirewall.IPTABLES)
def test_the_same_probes_have_the_same_answers(shared_scene: Scene) -> None:
    host = shared_scene.host
    for port in (7000, 7001, 7002, 7003):
        shared_scene.web.serve_udp(port)
    host.write("/etc/portfwd.toml", HEAD)
    with kept(host):
        before = ask(host, PROBES)
        listed = host.run("nft", "list", "ruleset").stdout
    assert any(before.values())
    assert not any(ask(host, PROBES, 1).values())
    shared_scene.daemon(host.portfwd("import", "-", stdin=listed).stdout)
    wait_answered(host, before)
    assert ask(host, PROBES) == before
    assert not all(before.values())
