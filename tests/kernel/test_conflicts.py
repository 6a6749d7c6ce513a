"""What conflicts with exposures, as the real kernel shows it."""

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest

from fwdaemon.audit.lines import format_fault
from fwdaemon.config.loader import parse
from fwdaemon.config.model import BackendChoice
from fwdaemon.conflicts.comparing import ChainLocation
from fwdaemon.conflicts.watch import BackgroundConflictWatch, ConflictWatch, ForeignRules, conflicts_if_running
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.kernel import conntrack
from fwdaemon.kernel.process import Finished, SystemRunner
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.netfilter import Netfilter
from fwdaemon.nftables.backend import NftablesBackend
from fwdaemon.reconcile import Reconciler, Request, Seams
from fwdaemon.rulesets.nat_chains import Translation
from fwdaemon.rulesets.packet import System
from tests.kernel.test_sockets import listening
from tests.kernel.test_sweeper import WIPES
from tests.lab.command import run
from tests.unit.forwards import address, forward

PUBLIC = "198.51.100.1"
LOCAL: frozenset[Address] = frozenset({address(PUBLIC), address("127.0.0.1")})
WEB = forward("tcp *:80", "192.168.122.50:80")
STATE = Desired().having([WEB])
NATIVE = """
table inet fw {
    map published { type inet_service : ipv4_addr; elements = { 80 : 10.0.0.1, 443 : 10.0.0.2 } }
    set games { type inet_service; flags interval; elements = { 1000-1010, 25 } }
    chain first {
        type nat hook prerouting priority -110; policy accept;
        ip daddr 198.51.100.1 dnat ip to tcp dport map @published
        meta l4proto { tcp, udp, icmp } th dport @games iifname "eth*" jump below
        udp dport vmap { 53 : jump below, 54 : accept }
        ip saddr 203.0.113.0-203.0.113.2 tcp dport 7 redirect to :99
        tcp dport 8 accept
        ip protocol icmp dnat ip to 10.0.0.3
    }
    chain below {
        meta l4proto tcp dnat ip to 10.0.0.3:5
        udp dport 53 dnat ip to 10.0.0.3:53
    }
    chain unused {
        tcp dport 9 dnat ip to 10.0.0.3
    }
}
table ip later {
    chain pre {
        type nat hook prerouting priority -90; policy accept;
        ip daddr . tcp dport vmap { 198.51.100.8 . 22 : jump web, 192.0.2.4 . 25-26 : goto web }
        ip daddr . meta l4proto . th dport { 192.0.2.5 . udp . 53 } dnat to 10.0.0.9
    }
    chain web {
        dnat to 10.0.0.9
    }
    chain output {
        type nat hook output priority -90; policy accept;
        tcp dport 10 dnat to 10.0.0.9
    }
}
"""
IPTABLES = """*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER ! -i docker0 -p tcp -m tcp --dport {port} -m comment --comment "\\"-j" -j DNAT --to-destination 172.17.0.2:80
COMMIT
"""
BLOCKED = """
table ip blocking {{
    set blocked {{ type ipv4_addr; elements = {{ {elements} }} }}
    chain pre {{
        type nat hook prerouting priority -80; policy accept;
        ip saddr @blocked drop
        tcp dport 77 dnat to 10.0.0.9
    }}
}}
"""
CHOSEN = BLOCKED.replace("ip saddr @blocked drop", "").replace("tcp dport 77", "ip saddr @blocked tcp dport 77")
THREE = ["203.0.113.0/31", "203.0.113.2/32"]


def nft(text: str) -> None:
    run(["nft", "-f", "-"], stdin=text)


def restore(program: str, port: int = 80) -> None:
    run([f"{program}-restore"], stdin=IPTABLES.format(port=port), env=dict(os.environ))


def addresses(number: int) -> str:
    return ", ".join(f"10.0.{value >> 8}.{value & 255}" for value in range(number))


class RecordingRunner(SystemRunner):
    """Keeps what programs printed."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[str] = []

    def run(self, *argv: str, stdin: str = "") -> Finished:
        """Run, and keep."""
        finished = super().run(*argv, stdin=stdin)
        self.outputs.append(finished.stdout)
        return finished


def described(found: Translation) -> tuple[str, int, dict[str, list[str]]]:
    """A translation in words: its chain, its priority, and what it asks."""
    return found.location.chain, found.priority, {field: sorted(map(str, found.scope[field])) for field in found.scope}


# --- rules of others --------------------------------------------------------------------------------------------------


def test_native_rules_are_read_along_their_jumps(runner: SystemRunner) -> None:
    nft(NATIVE)
    tcp, udp, ports, wild = ["tcp"], ["udp"], ["1000-1010", "25"], ["eth*"]
    assert [described(found) for found in ForeignRules(runner).read().translations] == [
        ("first", -110, {"destination": [f"{PUBLIC}/32"], "protocol": tcp, "port": ["80"]}),
        ("first", -110, {"destination": [f"{PUBLIC}/32"], "protocol": tcp, "port": ["443"]}),
        ("below", -110, {"protocol": tcp, "port": ports, "interface": wild}),
        ("below", -110, {"protocol": udp, "port": ["53"]}),
        ("first", -110, {"source": THREE, "protocol": tcp, "port": ["7"]}),
        ("web", -90, {"destination": ["198.51.100.8/32"], "protocol": tcp, "port": ["22"]}),
        ("web", -90, {"destination": ["192.0.2.4/32"], "protocol": tcp, "port": ["25-26"]}),
        ("pre", -90, {"destination": ["192.0.2.5/32"], "protocol": udp, "port": ["53"]}),
    ]


@pytest.mark.usefixtures("lock_file")
@pytest.mark.parametrize("kind", ["nft", "legacy"])
@pytest.mark.parametrize("family", Family)
def test_rules_of_iptables_are_read_wherever_it_writes(runner: SystemRunner, kind: str, family: Family) -> None:
    program = f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{kind}"
    text = IPTABLES.format(port=80)
    run([f"{program}-restore"], stdin=text if family is Family.IPV4 else text.replace("172.17.0.2", "[2001:db8::2]"))
    (found,) = ForeignRules(runner).read().translations
    assert described(found) == ("DOCKER", -100, {"protocol": ["tcp"], "port": ["80"]})
    assert found.location.family == ("ip" if family is Family.IPV4 else "ip6")
    assert found.location.system is (System.LEGACY if kind == "legacy" else System.IPTABLES_NFT)


def test_our_own_rules_are_nobody_elses(runner: SystemRunner, backend: LegacyBackend) -> None:
    native = NftablesBackend(runner)
    native.apply(STATE, full=False)
    assert (ForeignRules(runner).read().translations, ForeignRules(runner).read().ours) == (
        (),
        ChainLocation(System.NFTABLES, -105),
    )
    native.remove()
    backend.apply(STATE, full=False)
    found = ForeignRules(runner).read()
    assert (found.translations, found.ours) == ((), ChainLocation(System.LEGACY, -100))


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("number", [3, 30_000])
def test_elements_of_a_set_that_says_nothing_of_translations_are_not_listed(number: int) -> None:
    nft(NATIVE)
    nft(BLOCKED.format(elements=addresses(number)))
    runner = RecordingRunner()
    found = ForeignRules(runner).read().translations
    assert len(found) == 9
    assert described(found[-1]) == ("pre", -80, {"protocol": ["tcp"], "port": ["77"]})
    assert not [text for text in runner.outputs if "10.0.0.7" in text]


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(
    ("number", "source"), [(3, {"source": ["10.0.0.0/32", "10.0.0.1/32", "10.0.0.2/32"]}), (30_000, {})]
)
def test_a_set_that_is_too_large_counts_as_everybody(number: int, source: dict[str, list[str]]) -> None:
    nft(CHOSEN.format(elements=addresses(number)))
    runner = RecordingRunner()
    (found,) = ForeignRules(runner).read().translations
    assert described(found) == ("pre", -80, {"protocol": ["tcp"], "port": ["77"], **source})
    assert max(map(len, runner.outputs)) < 5000


@pytest.mark.usefixtures("lock_file")
def test_a_table_of_iptables_that_its_own_program_cannot_read_hides_nothing_else(runner: SystemRunner) -> None:
    restore("iptables-nft")
    nft("add rule ip nat PREROUTING tcp dport vmap { 5 : accept }")
    nft(NATIVE)
    assert {found.location.table for found in ForeignRules(runner).read().translations} >= {"fw", "later"}


def test_a_name_that_is_no_text_hides_nothing(runner: SystemRunner) -> None:
    restore("iptables-nft")
    subprocess.run(["/usr/sbin/iptables-nft", "-N", b"c\xff"], check=True)  # noqa: S603  words of ours
    nft(NATIVE)
    assert {found.location.table for found in ForeignRules(runner).read().translations} == {"nat", "fw", "later"}


# --- the daemon's look ------------------------------------------------------------------------------------------------


class CountingRunner(SystemRunner):
    """Counts what it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def run(self, *argv: str, stdin: str = "") -> Finished:
        """Count, and run."""
        self.number += 1
        return super().run(*argv, stdin=stdin)


@pytest.mark.usefixtures("lock_file")
def test_rules_are_read_again_only_where_they_changed(at_end: ExitStack) -> None:
    runner = CountingRunner()
    watch = ConflictWatch(runner)

    def find(*, full: bool = False, reloaded: bool = False, state: Desired = STATE) -> tuple[list[str], int]:
        before = runner.number
        found = list(map(format_fault, watch.find(state, LOCAL, full=full, reloaded=reloaded)))
        return [line.partition(" ")[0] + line.partition(":")[2][:7] for line in found], runner.number - before

    assert find() == ([], 0)
    restore("iptables-legacy")
    assert find() == ([], 0)
    assert find(full=True) == (["port Docker"], 1)
    assert find(full=True) == (["port Docker"], 0)
    assert find(reloaded=True) == (["port Docker"], 1)
    listening(at_end, socket.SOCK_STREAM, ("0.0.0.0", 80))  # noqa: S104  a namespace
    assert find() == (["port Docker"], 0)
    assert find(full=True)[1] == 0
    assert len(watch.find(STATE, LOCAL, full=False)) == 2
    at_end.close()
    other = Desired().having([WEB, forward("tcp *:81", "192.168.122.50:80")])
    assert find(state=other) == (["port Docker"], 0)
    assert find(state=Desired()) == ([], 0)


class HeldRunner(SystemRunner):
    """Runs nothing before `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = Event(), Event()

    def run(self, *argv: str, stdin: str = "") -> Finished:
        """Wait, and run."""
        self.asked.set()
        self.go.wait()
        return super().run(*argv, stdin=stdin)


@pytest.mark.usefixtures("lock_file")
@pytest.mark.parametrize("choice", WIPES)
def test_a_wipe_is_mended_while_the_rules_of_others_are_still_being_listed(
    at_end: ExitStack, choice: BackendChoice
) -> None:
    nft(NATIVE)
    wipe, show = WIPES[choice]
    held, told = HeldRunner(), Event()
    rules, beside = (
        Netfilter(SystemRunner(), choice),
        BackgroundConflictWatch(ConflictWatch(held), lambda _: told.set()),
    )
    at_end.callback(rules.close)
    at_end.callback(held.go.set)
    reconciler = Reconciler(Seams(rules, SystemHostNetwork(rules.confined), conntrack, beside, time))
    reconciler.reconcile(STATE, Request((), (), 0.0, LOCAL, ip_forward=False, full=True))
    assert held.asked.wait(10)
    run(wipe.split())
    assert reconciler.reconcile(STATE, Request((), (), 1.0, LOCAL, ip_forward=False, full=True))
    assert "192.168.122.50" in run(show.split()).stdout
    assert beside.find(STATE, LOCAL, full=False) == ()
    held.go.set()
    assert beside.wait(10)
    assert told.is_set()
    assert format_fault(beside.find(STATE, LOCAL, full=False)[0]).startswith(
        "port 80/tcp: another rule forwards it too"
    )


@pytest.mark.usefixtures("namespace")
def test_a_journal_is_spared_a_long_list(at_end: ExitStack) -> None:
    many = [forward(f"tcp *:{port}", f"192.168.122.50:{port}") for port in range(1000, 1030)]
    for item in many:
        listening(at_end, socket.SOCK_STREAM, ("0.0.0.0", item.ports.first))  # noqa: S104  a namespace
    found = ConflictWatch(SystemRunner()).find(Desired().having(many), LOCAL, full=True)
    assert len(found) == 21
    assert format_fault(found[-1]).startswith("10 more ports conflict with others' processes or rules")


@pytest.mark.usefixtures("namespace")
def test_who_may_not_see_everything_is_told_what_was_left_out(at_end: ExitStack, tmp_path: Path) -> None:
    listening(at_end, socket.SOCK_STREAM, ("0.0.0.0", 22))  # noqa: S104  a namespace
    draft = tmp_path / "portfwd.toml"
    draft.write_text('[[forward]]\ndomain = "web1"\nports = ["22"]\n')
    check = "import sys\nfrom fwdaemon.cli import main\nsys.exit(main(['check', sys.argv[1]]))"
    checked = run(["setpriv", "--bounding-set=-all", sys.executable, "-c", check, draft])
    assert checked.stdout == f"{draft}: fine; 1 forward\n"
    warning, hint = checked.stderr.splitlines()
    assert re.match(r"warning: port 22/tcp: .+ of the host listens there; connections from outside will reach", warning)
    assert hint.startswith(
        "hint: not checked against the rules of other tools: the kernel does not list its nftables rules"
    )
    assert conflicts_if_running(parse({Path("/etc/portfwd.toml"): ""}), SystemRunner()) == ([], None)
