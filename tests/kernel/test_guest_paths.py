"""Guests of libvirt's networks pass chains that refuse whatever is left, in each kind of chain that others have."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from fwdaemon.core.bans import BEHIND
from fwdaemon.core.report import ApplyResult
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Gate, GateFault, GuestPath
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.client import HelperClient
from fwdaemon.legacy.gates import LegacyGates
from fwdaemon.nftables.backend import NftablesBackend
from tests.dockers_rules import BEGUN
from tests.lab.command import run

NATIVE = Gate("inet", "theirs", "forward")
WAYS = frozenset(
    {
        GuestPath(Family.IPV4, "virbr0", "virbr0"),
        GuestPath(Family.IPV4, "virbr0", "eth0"),
        GuestPath(Family.IPV4, "eth0", "virbr0", answers=True),
        GuestPath(Family.IPV6, "virbr0", "eth0"),
    }
)
ASKED = Desired(guest_paths=WAYS, gates=(NATIVE,))
PATHS = ["eth0 virbr0 answers", "virbr0 eth0", "virbr0 virbr0"]
_PATH = re.compile(r'(?:-i|iifname) "?(\w+)"? (?:-o|oifname) "?(\w+)"?(.*) (?:--)?comment "?kvm-portfwd')


@dataclass(frozen=True, slots=True)
class Chain:
    """A forward chain of others, of which `listed` gives the rules; `apply` has guests pass it, or not."""

    change: Callable[[str], object]
    apply: Callable[[Desired], ApplyResult]
    remove: Callable[[], ApplyResult]
    listed: Callable[[], list[str]]

    def order(self) -> list[str]:
        """Give the rules in order, ours by their paths."""
        return [_read(rule) for rule in self.listed()]


def _read(rule: str) -> str:
    found = _PATH.search(rule)
    return rule if found is None else f"{found[1]} {found[2]}{' answers' if 'state' in found[3] else ''}"


def _native(runner: SystemRunner) -> Chain:
    backend = NftablesBackend(runner)
    hook = "type filter hook forward priority 0; policy drop;"
    runner.run("nft", "-f", "-", stdin=f"table inet theirs {{ chain forward {{ {hook} ct state invalid drop; }}; }}")

    def listed() -> list[str]:
        lines = runner.run("nft", "list", "chain", *str(NATIVE).split()).stdout.splitlines()
        return [line.strip() for line in lines if line.startswith("\t\t") and "hook forward" not in line]

    return Chain(
        lambda rule: runner.run("nft", "-f", "-", stdin=f"{rule.replace('CHAIN', str(NATIVE))}\n"),
        lambda desired: backend.apply(desired, full=False),
        backend.remove,
        listed,
    )


def _iptables(program: str, apply: Callable[[Desired], ApplyResult], remove: Callable[[], ApplyResult]) -> Chain:
    run([f"{program}-restore", "--noflush"], stdin=BEGUN)
    return Chain(
        lambda rule: run([program, "-w", *rule.replace("CHAIN", "FORWARD").split()]),
        apply,
        remove,
        lambda: run([program, "-S", "FORWARD"]).stdout.splitlines()[1:],
    )


@pytest.fixture(params=["nftables", "iptables-nft", "legacy gates", "legacy backend"])
def chain(request: pytest.FixtureRequest, runner: SystemRunner, clients: dict[Family, HelperClient]) -> Iterator[Chain]:
    """A chain of each kind that refuses whatever is left."""
    nftables, gates, legacy = NftablesBackend(runner), LegacyGates(clients), LegacyBackend()

    def keep(desired: Desired) -> ApplyResult:
        return gates.apply_paths(desired.guest_paths, BEHIND, full=False)

    match request.param:
        case "nftables":
            yield _native(runner)
        case "iptables-nft":
            yield _iptables("iptables-nft", lambda desired: nftables.apply(desired, full=False), nftables.remove)
        case "legacy gates":
            yield _iptables("iptables-legacy", keep, gates.remove)
        case _:
            yield _iptables("iptables-legacy", lambda desired: legacy.apply(desired, full=False), legacy.remove)
    legacy.close()


def test_guests_pass_behind_everybody_elses_rules_and_nothing_is_left_of_it(chain: Chain) -> None:
    before = chain.listed()
    (change,) = [change for change in chain.apply(ASKED).gates if str(change.gate) != "ip libvirt_network forward"]
    assert change.fault in {GateFault.GUESTS, GateFault.ABSENT}
    expected = [*PATHS, *(["virbr0 eth0"] if before[0].startswith("ct state invalid") else [])]
    assert sorted(chain.order()[-len(expected) :]) == sorted(expected)
    assert not chain.apply(ASKED).changed
    assert [rule for rule in chain.listed() if "kvm-portfwd" not in rule] == before
    assert chain.apply(replace(ASKED, guest_paths=frozenset())).changed
    assert chain.listed() == before
    chain.apply(ASKED)
    assert chain.remove().changed
    assert chain.listed() == before


def test_they_are_put_back_and_behind_what_others_add(chain: Chain) -> None:
    native = chain.listed()[0].startswith("ct state invalid")
    chain.apply(ASKED)
    right = chain.order()
    added = "add rule CHAIN ip saddr 192.168.122.66 drop" if native else "-A CHAIN -s 192.168.122.66/32 -j DROP"
    chain.change(added)
    (change,) = chain.apply(ASKED).gates
    assert (change.fault, change.restored) == (GateFault.GUESTS, True)
    paths = [rule for rule in right if rule in PATHS]
    assert chain.order()[-len(paths) :] == paths
    assert "66" in chain.order()[-len(paths) - 1]
    chain.change("flush chain CHAIN" if native else "-F CHAIN")
    assert chain.apply(ASKED).changed
    assert [rule for rule in chain.order() if rule in PATHS] == paths


def test_an_earlier_run_is_cleaned_up_after(chain: Chain, runner: SystemRunner) -> None:
    before = chain.listed()
    chain.apply(ASKED)
    LegacyBackend().remove()
    NftablesBackend(runner).remove()
    assert chain.listed() == before


def test_they_are_ahead_of_a_rule_that_refuses_everything(chain: Chain) -> None:
    native = chain.listed()[0].startswith("ct state invalid")
    chain.change("add rule CHAIN counter reject" if native else "-A CHAIN -j REJECT")
    chain.apply(ASKED)
    assert chain.order()[-2] in PATHS
    assert "reject" in chain.order()[-1].lower()


def test_where_nothing_is_refused_there_are_none(chain: Chain) -> None:
    native = chain.listed()[0].startswith("ct state invalid")
    chain.change("chain CHAIN { policy accept; }" if native else "-P CHAIN ACCEPT")
    chain.apply(ASKED)
    assert not [rule for rule in chain.order() if rule in PATHS]


def test_libvirts_own_chains_of_iptables_decide_for_themselves(runner: SystemRunner, backend: LegacyBackend) -> None:
    for program in ("iptables-nft", "iptables-legacy"):
        for words in ("-P FORWARD DROP", "-N LIBVIRT_FWO", "-A LIBVIRT_FWO -j REJECT", "-A FORWARD -j LIBVIRT_FWO"):
            run([program, "-w", *words.split()])
    NftablesBackend(runner).apply(ASKED, full=True)
    backend.apply(ASKED, full=True)
    for program in ("iptables-nft", "iptables-legacy"):
        assert not [rule for rule in run([program, "-S", "FORWARD"]).stdout.splitlines() if "virbr0" in rule]
