"""What an old tool forwarded is forwarded by the daemon once its files are imported: the same probes, the same answers.

Where libvirt keeps its rules in nftables none of the old tools ever worked: an accept rule elsewhere does not keep
libvirt's own chains from refusing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import FAR4, HEAD, WEB4, WEB6, Scene
from tests.host.old_tools import hook_rules, undone
from tests.lab.domain import Link
from tests.lab.host import CLIENT4_SECOND, CLIENT6_SECOND, OTHER_LINK4, PUBLIC4, PUBLIC4_SECOND, PUBLIC6, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

pytestmark = pytest.mark.on(LibvirtFirewall.IPTABLES)
ROUTED4, ROUTED6, OTHERS4 = "203.0.113.66", "2001:db8:5::66", "203.0.113.67"


@dataclass(frozen=True, slots=True)
class Probe:
    """One question from outside, or from the host itself; `source` is the client's address, where it has several."""

    address: str
    port: int
    protocol: str = "http"
    source: str | None = None
    from_host: bool = False

    def answer(self, host: Host, patience: float = 5) -> str:
        """Give what is answered; empty if nothing is within so many seconds."""
        prober = host.place if self.from_host else host.outside
        authority = f"[{self.address}]" if ":" in self.address else self.address
        match self.protocol:
            case "http":
                answer = prober.fetch(f"http://{authority}:{self.port}/", source=self.source, timeout=patience)
            case "udp":
                answer = prober.udp(self.address, self.port, source=self.source, timeout=patience)
            case _:
                answer = prober.tcp(self.address, self.port, source=self.source, timeout=patience)
        return answer.text if answer.answered else ""


@dataclass(frozen=True, slots=True)
class Old:
    """An old tool's files, the rules it made of them (words for iptables), and what to ask."""

    files: Mapping[str, str]
    rules: Sequence[str]
    probes: Sequence[Probe]


@contextmanager
def kept(host: Host, rules: Sequence[str]) -> Iterator[None]:
    """Rules of another program, for a while."""
    for rule in rules:
        host.run(*rule.split())
    yield
    for rule in undone(rules):
        host.run(*rule.split())


def ask(host: Host, probes: Sequence[Probe], patience: float = 5) -> dict[Probe, str]:
    return {probe: probe.answer(host, patience) for probe in probes}


def wait_answered(host: Host, before: Mapping[Probe, str]) -> None:
    """Wait for each that was answered: one family's exposures are there before the other's."""
    for probe, answer in before.items():
        if answer:
            wait_until(partial(is_answered, host, probe, answer), f"{probe} is answered")


def is_answered(host: Host, probe: Probe, answer: str) -> bool:
    return probe.answer(host) == answer


def imported(host: Host, *files: str, stdin: str = "") -> str:
    """What `kvm-portfwd import` prints, while the configuration says no more than where libvirt is."""
    host.write("/etc/portfwd.toml", HEAD)
    return host.portfwd("import", *files, stdin=stdin).stdout


HOOKS_JSON = Old(
    {
        "/etc/libvirt/hooks/hooks.json": f"""{{
            "web": {{
                "interface": "virbr0",           // the guest's side
                "private_ip": "{WEB4}",          /* public_ip is the default route's */
                "source_ip": "{CLIENT4_SECOND}",
                "port_map": {{ "tcp": [[8000, 80], 443], "icmp": [8] }},
                "port_range": [{{ "init_port": 7000, "ports_num": 3, "protocol": "udp" }}],
            }},
            "far": [
                {{ "private_ip": "{FAR4}", "public_ip": "{PUBLIC4_SECOND}", "port_map": {{ "tcp": [[8000, 80]] }} }},
            ],
        }}"""
    },
    [
        *hook_rules(
            "web",
            PUBLIC4,
            WEB4,
            [
                ("tcp", "8000", "80", CLIENT4_SECOND),
                ("tcp", "443", "443", CLIENT4_SECOND),
                ("udp", "7000:7002", "7000:7002", ""),
            ],
        ),
        *hook_rules("far", PUBLIC4_SECOND, FAR4, [("tcp", "8000", "80", "")]),
    ],
    [
        *(Probe(PUBLIC4, port, source=source) for port in (8000, 443, 80) for source in (None, CLIENT4_SECOND)),
        *(Probe(PUBLIC4, port, "udp", source) for port in (7000, 7002, 7003) for source in (None, CLIENT4_SECOND)),
        *(Probe(PUBLIC4_SECOND, 8000, source=source) for source in (None, CLIENT4_SECOND)),
        *(Probe(OTHER_LINK4, 8000, source=None), Probe(PUBLIC4, 7000, "udp", from_host=True)),
        *(Probe(public, 8000, from_host=True) for public in (PUBLIC4, PUBLIC4_SECOND)),
    ],
)
PORTS_SCRIPTS = Old(
    {
        "/etc/libvirt/hooks/web": f'PUBLIC_IP={PUBLIC4}\nPRIVATE_IP={WEB4}\nPORTS="tcp:80, tcp:443,udp:7000"\n',
        "/etc/libvirt/hooks/far": f"# far\nexport PUBLIC_IP={PUBLIC4_SECOND}\nPRIVATE_IP={FAR4}\nPORTS=tcp:80\n",
    },
    [
        f"iptables {rule}"
        for public, private, protocol, port in (
            (PUBLIC4, WEB4, "tcp", 80),
            (PUBLIC4, WEB4, "tcp", 443),
            (PUBLIC4, WEB4, "udp", 7000),
            (PUBLIC4_SECOND, FAR4, "tcp", 80),
        )
        for rule in (
            f"-t nat -I PREROUTING -d {public} -p {protocol} --dport {port} -j DNAT --to {private}:{port}",
            f"-I FORWARD -d {private} -p {protocol} --dport {port} -j ACCEPT",
        )
    ],
    [
        *(Probe(public, port) for public in (PUBLIC4, PUBLIC4_SECOND, OTHER_LINK4) for port in (80, 443, 8080)),
        *(Probe(PUBLIC4, port, "udp") for port in (7000, 7001)),
    ],
)
BY_HAND = Old(
    {},
    [
        f"iptables -t nat -A PREROUTING -d {PUBLIC4} -p tcp --dport 8000 -j DNAT --to-destination {WEB4}:80",
        f"iptables -t nat -A PREROUTING -i eth1 -p tcp -m multiport --dports 80,443 -j DNAT --to-destination {FAR4}",
        f"iptables -t nat -A PREROUTING -s {CLIENT4_SECOND} -p tcp --dport 8080 -j DNAT --to-destination {FAR4}",
        f"iptables -t nat -A PREROUTING -p udp --dport 7000:7002 -j DNAT --to-destination {WEB4}",
        f"iptables -t nat -A PREROUTING -p udp --dport 8000:8002 -j DNAT --to-destination {WEB4}:7000-7002/8000",
        f"ip6tables -t nat -A PREROUTING -d {PUBLIC6} -p tcp --dport 8000 -j DNAT --to-destination [{WEB6}]:80",
        f"iptables -I FORWARD -d {WEB4} -j ACCEPT",
        f"iptables -I FORWARD -d {FAR4} -j ACCEPT",
        f"ip6tables -I FORWARD -d {WEB6} -j ACCEPT",
    ],
    [
        *(Probe(public, 8000) for public in (PUBLIC4, PUBLIC4_SECOND, PUBLIC6)),
        *(Probe(public, port) for public in (PUBLIC4, OTHER_LINK4) for port in (80, 443)),
        *(Probe(public, 8080, source=CLIENT4_SECOND) for public in (PUBLIC4, PUBLIC4_SECOND)),
        *(Probe(PUBLIC4, 8080), Probe(PUBLIC6, 8000, source=CLIENT6_SECOND), Probe(PUBLIC6, 80)),
        *(Probe(PUBLIC4, port, "udp") for port in (7000, 7002, 7003, 8000, 8002, 8003)),
    ],
)
HOOK_RULES = Old({}, HOOKS_JSON.rules, HOOKS_JSON.probes)
CHAINS = Old(
    {},
    [
        *(f"iptables -t nat -N {chain}" for chain in ("BLOCKED", "KNOWN", "WEB")),
        *("iptables -N USER", "iptables -N USER-FAR"),
        "iptables -t nat -A PREROUTING -j BLOCKED",
        "iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -g WEB",
        f"iptables -t nat -A BLOCKED -s {CLIENT4_SECOND} -p tcp -j KNOWN",
        "iptables -t nat -A KNOWN -p tcp --dport 8080:8081 -j RETURN",
        "iptables -t nat -A KNOWN -p tcp --dport 8000:8099 -j ACCEPT",
        "iptables -t nat -A WEB -p tcp --dport 8003 -j REDIRECT --to-ports 9",
        f"iptables -t nat -A WEB -p tcp --dport 8002:8004 -j DNAT --to-destination {WEB4}:80-82/8002",
        f"iptables -t nat -A WEB -p tcp --dport 8000 -j DNAT --to-destination {WEB4}:80",
        f"iptables -t nat -A WEB -p tcp --dport 8080 -j DNAT --to-destination {WEB4}:80",
        f"iptables -t nat -A WEB -p tcp --dport 8081 -j DNAT --to-destination {FAR4}:80",
        f"iptables -t nat -A WEB -p tcp --dport 8082 -j DNAT --to-destination {FAR4}:8000",
        "iptables -I FORWARD -j USER",
        f"iptables -A USER -d {FAR4} -g USER-FAR",
        f"iptables -A USER -d {WEB4} -j ACCEPT",
        f"iptables -A USER-FAR -s {CLIENT4_SECOND} -p tcp --dport 80 -j ACCEPT",
    ],
    [
        Probe(PUBLIC4, port, source=source)
        for port in (8000, 8002, 8003, 8004, 8080, 8081, 8082)
        for source in (None, CLIENT4_SECOND)
    ],
)
OLD = {"hooks.json": HOOKS_JSON, "PORTS": PORTS_SCRIPTS, "by hand": BY_HAND, "hook": HOOK_RULES, "chains": CHAINS}


@pytest.mark.parametrize("old", OLD.values(), ids=OLD)
def test_the_same_probes_have_the_same_answers(shared_scene: Scene, old: Old) -> None:
    host = shared_scene.host
    for port in (7000, 7001, 7002, 7003):
        shared_scene.web.serve_udp(port)
    for path, text in old.files.items():
        host.write(path, text)
    with kept(host, old.rules):
        before = ask(host, old.probes)
        saved = host.run("iptables-save").stdout + host.run("ip6tables-save").stdout
    assert any(before.values())
    assert not any(ask(host, old.probes, 1).values())
    shared_scene.daemon(imported(host, *old.files) if old.files else imported(host, "-", stdin=saved))
    wait_answered(host, before)
    assert ask(host, old.probes) == before
    assert not all(before.values())


def test_routed_addresses_have_the_same_answers(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("public", "192.168.124.0/24", "2001:db8:124::/64", mode="route")
    guest = lxc_guest("routed", Link("public", ("192.168.124.10/24", "2001:db8:124::10/64")))
    bridge, file = host.libvirt.bridge("public"), "/etc/sysconfig/routed-ips"
    host.write(file, f"# IP  network\n{ROUTED4} public\n{ROUTED6}/128 public\n")
    probes = [*(Probe(ROUTED4, port) for port in (80, 8000)), Probe(ROUTED6, 80), Probe(OTHERS4, 80)]
    with upstream(host, (ROUTED4, PUBLIC4), (ROUTED6, PUBLIC6), (OTHERS4, PUBLIC4)), ExitStack() as old:
        for address, program in ((ROUTED4, "iptables"), (ROUTED6, "ip6tables"), (OTHERS4, "")):
            guest.run("ip", "address", "add", address, "dev", "eth0")
            host.run("ip", "route", "add", address, "dev", bridge)
            if program:
                old.enter_context(kept(host, [f"{program} -I FORWARD -i {bridge} -s {address} -j ACCEPT"]))
                old.enter_context(kept(host, [f"{program} -I FORWARD -o {bridge} -d {address} -j ACCEPT"]))
        before = ask(host, probes)
        assert [bool(answer) for answer in before.values()] == [True, False, True, False]
        old.close()
        assert not any(ask(host, probes, 1).values())
        for address in (ROUTED4, ROUTED6):
            host.run("ip", "route", "del", address, "dev", bridge)
        daemon(HEAD + imported(host, file))
        wait_answered(host, before)
        assert ask(host, probes) == before


@contextmanager
def upstream(host: Host, *routes: tuple[str, str]) -> Iterator[None]:
    """Routes to addresses by way of the host, as the network that gave it these addresses has them."""
    for address, way in routes:
        host.outside.run(["ip", "route", "add", address, "via", way])
    yield
    for address, way in routes:
        host.outside.run(["ip", "route", "del", address, "via", way])
