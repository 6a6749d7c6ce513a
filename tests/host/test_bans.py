"""A banned client is not served, whichever way it is banned, and everybody else is."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from fwdaemon.audit.throttle import LINES, WINDOW_S
from tests.host.conftest import HEAD, Scene, each_backend, entry
from tests.lab.host import CLIENT4, CLIENT4_SECOND, PUBLIC4
from tests.lab.place import wait_until
from tests.lab.probe import Answer
from tests.lab.release import LibvirtFirewall

pytestmark = pytest.mark.turns_on(LibvirtFirewall.NFTABLES)

WEB = entry("web", "8000:80", "WEB4")
URL = f"http://{PUBLIC4}:8000/"
# Several full comparisons go by in the time for which a ban is watched.
OFTEN = HEAD + 'resync = "1s"\n'


@dataclass(frozen=True, slots=True)
class Ban:
    """How a client is banned: rules of iptables in order, and what makes and unmakes a set of addresses for them."""

    rules: tuple[str, ...]
    native: str
    uses_set: bool = False


BANS = {
    "address": Ban((f"-I FORWARD -s {CLIENT4} -j DROP",), f"insert rule CHAIN ip saddr {CLIENT4} drop"),
    "fail2ban": Ban(
        (
            "-N f2b-web",
            f"-A f2b-web -s {CLIENT4} -j REJECT --reject-with icmp-port-unreachable",
            "-A f2b-web -j RETURN",
            "-I FORWARD -p tcp -m multiport --dports 80,443 -j f2b-web",
        ),
        f"add chain TABLE f2b-web; add rule TABLE f2b-web ip saddr {CLIENT4} reject;"
        " insert rule CHAIN tcp dport { 80, 443 } jump f2b-web",
    ),
    "Docker": Ban(
        ("-N DOCKER-USER", f"-A DOCKER-USER -s {CLIENT4} -j DROP", "-I FORWARD -j DOCKER-USER"),
        f"add chain TABLE DOCKER-USER; add rule TABLE DOCKER-USER ip saddr {CLIENT4} drop;"
        " insert rule CHAIN jump DOCKER-USER",
    ),
    "chain": Ban(
        ("-N BLACK", f"-A BLACK -s {CLIENT4} -j DROP", "-I FORWARD -j BLACK"),
        f"add map TABLE bans {{ type ipv4_addr : verdict; elements = {{ {CLIENT4} : drop }}; }};"
        " insert rule CHAIN ip saddr vmap @bans",
    ),
    "set": Ban(
        ("-I FORWARD -m set --match-set banned src -j DROP",),
        f"add set TABLE banned {{ type ipv4_addr; elements = {{ {CLIENT4} }}; }};"
        " insert rule CHAIN ip saddr @banned drop",
        uses_set=True,
    ),
}


@pytest.fixture
def scene(shared_scene: Scene) -> Scene:
    """The guests of the module, which no ban changes."""
    return shared_scene


@contextmanager
def forward_chain(scene: Scene, ban: Ban) -> Iterator[None]:
    """Ban a client in the chain that libvirt's rules are in, and undo it."""
    host, firewall = scene.host, scene.host.flavour.firewall
    if firewall is LibvirtFirewall.NFTABLES:
        table = "ip libvirt_network"
        before = host.run("nft", "list", "table", *table.split()).stdout
        native = ban.native.replace("CHAIN", f"{table} forward").replace("TABLE", table)
        try:
            host.run("nft", "-f", "-", stdin="".join(f"{line.strip()}\n" for line in _statements(native)))
            yield
        finally:
            host.run("nft", "-f", "-", stdin=f"delete table {table}\n{before}")
        return
    program = "iptables-legacy" if firewall is LibvirtFirewall.LEGACY else "iptables"
    with ExitStack() as at_end:
        if ban.uses_set:
            host.run("ipset", "create", "banned", "hash:ip")
            at_end.callback(host.run, "ipset", "destroy", "banned")
            host.run("ipset", "add", "banned", CLIENT4)
        for rule in ban.rules:
            host.run(program, "-w", *rule.split())
            undoing = {"-N": "-X", "-A": "-D", "-I": "-D"}[rule.split()[0]]
            at_end.callback(host.run, program, "-w", undoing, *rule.split()[1:])
        yield


def _statements(script: str) -> list[str]:
    """Part a script at the ends of its statements: in braces, the sign is part of one."""
    return script.replace("; add ", "\nadd ").replace("; insert ", "\ninsert ").splitlines()


def refusal(scene: Scene, verb: str) -> None:
    """Have a rule at the head that refuses everybody, or with `-D` take it away."""
    host, firewall = scene.host, scene.host.flavour.firewall
    if firewall is not LibvirtFirewall.NFTABLES:
        program = "iptables-legacy" if firewall is LibvirtFirewall.LEGACY else "iptables"
        host.run(program, "-w", verb, "FORWARD", "-j", "DROP")
    elif verb == "-I":
        host.run("nft", "insert", "rule", "ip", "libvirt_network", "forward", "counter", "drop")
    else:
        listed = host.run("nft", "-a", "list", "chain", "ip", "libvirt_network", "forward").stdout
        handle = next(line for line in listed.splitlines() if line.strip().startswith("counter")).split()[-1]
        host.run("nft", "delete", "rule", "ip", "libvirt_network", "forward", "handle", handle)


def client(scene: Scene) -> Answer:
    """What the client that is banned gets: what is dropped in silence is known after half a second."""
    return scene.host.outside.fetch(URL, timeout=0.5)


def others_are_served(scene: Scene) -> bool:
    return scene.host.outside.fetch(URL, source=CLIENT4_SECOND).text == f"web {CLIENT4_SECOND}"


# Which rule bans is shown for every rule system without libvirt, too.
@pytest.mark.parametrize(
    "name", [name if name in ("fail2ban", "set") else pytest.param(name, marks=pytest.mark.in_turn) for name in BANS]
)
def test_a_banned_client_is_not_served(scene: Scene, name: str) -> None:
    daemon = scene.daemon(WEB, OFTEN)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    before = scene.host.own_rules()
    lines = len(daemon.log_lines())
    with forward_chain(scene, BANS[name]):
        scene.refused(lambda: client(scene))
        theirs = scene.host.snapshot_foreign()
        for _ in range(2):
            time.sleep(1)
            assert not client(scene).answered
            assert others_are_served(scene)
        assert scene.host.snapshot_foreign() == theirs
        assert scene.host.own_rules() == before
        assert not [line for line in daemon.log_lines()[lines:] if "gate" in line.text]


@each_backend
def test_a_ban_holds_again_when_a_rule_that_went_ahead_of_it_goes(scene: Scene) -> None:
    """Whatever refuses everybody is outranked, and what stands behind it with it."""
    scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    with forward_chain(scene, BANS["address"]):
        scene.refused(lambda: client(scene))
        refusal(scene, "-I")
        wait_until(lambda: others_are_served(scene), "others are served")
        refusal(scene, "-D")
        scene.refused(lambda: client(scene))
        assert others_are_served(scene)


@pytest.mark.in_turn
@each_backend
def test_a_tool_that_insists_on_being_first_does_not_fill_the_journal(scene: Scene) -> None:
    daemon = scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    lines = len(daemon.log_lines())
    for _ in range(2 * LINES):
        refusal(scene, "-I")
        wait_until(lambda: others_are_served(scene), "the gate is ahead again")
        refusal(scene, "-D")
    told = [line for line in daemon.log_lines()[lines:] if "gate in ip " in line.text]
    # A busy machine may take longer for all than lines are counted; from then on, others are news.
    assert len(told) >= LINES
    assert all(line.time > told[0].time + WINDOW_S - 1 for line in told[LINES:])
    assert all("another rule was ahead of it" in line.text for line in told)


def explained(scene: Scene, client: str) -> dict[str, Any]:
    """Ask `explain` about a client."""
    told = scene.host.portfwd("explain", "--json", "--from", client, f"{PUBLIC4}:8000", check=False).stdout
    found: dict[str, Any] = json.loads(told)
    return found


@pytest.mark.in_turn
@each_backend
@pytest.mark.parametrize(("name", "who"), [("address", "the administrator"), ("fail2ban", "fail2ban")])
def test_explain_says_who_bans_a_client_and_opens_nothing(scene: Scene, name: str, who: str) -> None:
    scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    with forward_chain(scene, BANS[name]):
        scene.refused(lambda: client(scene))
        report = explained(scene, CLIENT4)
        assert (report["cause"], report["commands"]) == ("refused-on-purpose", [])
        assert report["sentence"].startswith(f"This is on purpose: {who} refuses {CLIENT4} in ")
        assert explained(scene, CLIENT4_SECOND)["works"]


@pytest.mark.in_turn
@each_backend
def test_explain_never_opens_a_block_list_in_a_chain_without_a_gate(scene: Scene) -> None:
    """CrowdSec has a table of its own, with which no gate has anything to do."""
    scene.daemon(WEB)
    table = f"""
    table ip crowdsec {{
        set crowdsec-blacklists {{ type ipv4_addr; flags timeout; elements = {{ {CLIENT4} timeout 1h }}; }}
        chain crowdsec-chain-forward {{
            type filter hook forward priority -10; policy accept;
            ip saddr @crowdsec-blacklists counter drop
        }}
    }}
    """
    scene.host.run("nft", "-f", "-", stdin=table)
    try:
        assert not client(scene).answered
        report = explained(scene, CLIENT4)
        assert (report["cause"], report["commands"]) == ("refused-on-purpose", [])
        assert report["sentence"] == (
            f"This is on purpose: CrowdSec refuses {CLIENT4} in ip crowdsec crowdsec-chain-forward."
        )
        assert others_are_served(scene)
    finally:
        scene.host.run("nft", "delete", "table", "ip", "crowdsec")


MARK = f"chain pick {{ type filter hook prerouting priority -150; ip saddr {CLIENT4} ct mark set 9; }}"
MARKED = {
    "later": f"{MARK}\nchain refuse {{ type filter hook forward priority 0; ct mark 9 reject; }}",
    "at once": f"{MARK}\nchain refuse {{ type filter hook prerouting priority -140; ct mark 9 drop; }}",
}


@pytest.mark.in_turn
@each_backend
@pytest.mark.parametrize("name", MARKED)
def test_explain_opens_nothing_that_is_refused_by_a_mark(scene: Scene, name: str) -> None:
    scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    scene.host.run("nft", "-f", "-", stdin=f"table inet geo {{\n{MARKED[name]}\n}}\n")
    try:
        assert not client(scene).answered
        report = explained(scene, CLIENT4)
        assert (report["cause"], report["commands"]) == ("refused-on-purpose", [])
        assert "inet geo refuse" in report["sentence"]
        assert "inet geo pick" in report["sentence"]
        assert others_are_served(scene)
    finally:
        scene.host.run("nft", "delete", "table", "inet", "geo")


@pytest.mark.in_turn
@pytest.mark.parametrize(
    "rule",
    [
        f"from {CLIENT4} blackhole",
        f"from {CLIENT4} iif eth0 prohibit",
        f"from all to {CLIENT4} unreachable",
        f"from all to {CLIENT4} iif virbr0 prohibit",
    ],
)
def test_explain_names_a_rule_of_policy_routing_that_bans(scene: Scene, rule: str) -> None:
    scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    scene.host.run("ip", "rule", "add", *rule.split())
    try:
        assert not client(scene).answered
        report = explained(scene, CLIENT4)
        assert (report["cause"], report["commands"]) == ("refused-on-purpose", [])
        assert rule.rsplit(" ", 1)[1] in report["sentence"]
        assert report["sentence"].startswith("This is on purpose: the rule of policy routing ")
    finally:
        scene.host.run("ip", "rule", "del", *rule.split())


@pytest.mark.in_turn
@pytest.mark.parametrize("kind", ["blackhole", "unreachable"])
def test_explain_leads_no_way_around_a_route_that_bans(scene: Scene, kind: str) -> None:
    scene.daemon(WEB)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    scene.host.run("ip", "route", "add", kind, f"{CLIENT4}/32")
    try:
        assert not client(scene).answered
        report = explained(scene, CLIENT4)
        assert (report["cause"], report["commands"]) == ("refused-on-purpose", [])
        assert others_are_served(scene)
    finally:
        scene.host.run("ip", "route", "delete", kind, f"{CLIENT4}/32")
