"""Rule systems as one, with two that are in memory: where rules go, and what is left behind."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from fwdaemon.config.model import BackendChoice
from fwdaemon.core.report import Actor, Location, LocationReason
from fwdaemon.core.types import Family, Gate, GuestPath, Presence
from fwdaemon.errors import KernelError
from fwdaemon.kernel.process import Finished
from fwdaemon.netfilter import Netfilter
from tests import sentences
from tests.unit.backend_behaviour import FLOW, STATE, WEB
from tests.unit.memory_backend import Kernel, MemoryBackend

GATE = Gate("inet", "theirs", "forward")


@dataclass
class Version:
    """Says which rule system iptables writes to."""

    stdout: str = "iptables v1.8.11 (memory)"

    def run(self, *argv: str, stdin: str = "") -> Finished:
        assert (argv, stdin) == (("iptables", "--version"), "")
        return Finished(self.stdout, "", 1)


@dataclass
class Two:
    """Two rule systems, of which the first is taken where nothing speaks for the other."""

    one: Kernel = field(default_factory=Kernel)
    other: Kernel = field(default_factory=Kernel)
    version: Version = field(default_factory=Version)
    choice: BackendChoice = BackendChoice.AUTO

    def netfilter(self) -> Netfilter:
        named = MemoryBackend(self.one, "nftables"), MemoryBackend(self.other, "iptables")
        named[1].variant = "legacy"
        return Netfilter(self.version, self.choice, named)


@pytest.fixture
def two() -> Two:
    return Two()


def test_rules_are_where_libvirts_are_and_move_with_them(two: Two) -> None:
    two.one.libvirt = Presence.CHAINS
    netfilter = two.netfilter()
    assert netfilter.location is None
    result = netfilter.apply(STATE, full=False)
    assert result.moved == Location("nftables", "nftables", LocationReason.LIBVIRT_CHAINS)
    assert (bool(two.one.rules), bool(two.other.rules)) == (True, False)
    assert not netfilter.apply(STATE, full=False).moved
    two.one.libvirt, two.other.libvirt = Presence.NOTHING, Presence.CHAINS
    two.one.generation += 1
    result = netfilter.apply(STATE, full=False)
    assert result.moved == Location("iptables", "iptables", LocationReason.LIBVIRT_CHAINS)
    # They were made there, and not found missing.
    assert (result.mended, result.damaged) == (STATE.exposures, frozenset())
    assert (bool(two.one.rules), bool(two.other.rules)) == (False, True)
    assert netfilter.location == result.moved


def test_nothing_is_looked_up_again_while_no_rule_changes(two: Two) -> None:
    netfilter = two.netfilter()
    netfilter.apply(STATE, full=False)
    two.other.libvirt = Presence.CHAINS
    assert not netfilter.apply(STATE, full=True).moved
    two.other.generation += 1
    assert netfilter.apply(STATE, full=False).moved


def test_rules_stay_where_they_are_while_libvirt_has_none(two: Two) -> None:
    two.other.libvirt = Presence.CHAINS
    netfilter = two.netfilter()
    netfilter.apply(STATE, full=True)
    two.other.libvirt = Presence.NOTHING
    two.other.wipe()
    result = netfilter.apply(STATE, full=True)
    assert (result.moved, result.damaged) == (None, STATE.exposures)
    assert sentences.place(netfilter.location) == ("iptables", "libvirt has no rules of its own")


@pytest.mark.parametrize(("variant", "name"), [("memory", "nftables"), ("legacy", "iptables"), ("odd", "nftables")])
def test_where_libvirt_left_chains_in_both_iptables_says_which_ones_count(two: Two, variant: str, name: str) -> None:
    two.one.libvirt = two.other.libvirt = Presence.CHAINS
    two.version.stdout = f"iptables v1.8.11 ({variant})"
    found, reason = sentences.place(two.netfilter().locate()) or ("", "")
    assert found == name
    assert reason == "libvirt's chains are in both rule systems, and iptables writes to this one"


def test_a_table_of_libvirts_own_says_more_than_chains(two: Two) -> None:
    two.one.libvirt, two.other.libvirt = Presence.CHAINS, Presence.TABLE
    assert sentences.place(two.netfilter().locate()) == ("iptables", "libvirt's rules are in its table libvirt_network")


def test_the_configuration_can_say_where(two: Two) -> None:
    two.one.libvirt, two.choice = Presence.CHAINS, BackendChoice.IPTABLES
    netfilter = two.netfilter()
    assert sentences.place(netfilter.locate()) == ("iptables", "the configuration says so")
    netfilter.choice = BackendChoice.NFTABLES
    assert netfilter.locate().backend == "nftables"


def test_gates_are_kept_beside_the_rules_and_closed_first_at_the_end(two: Two) -> None:
    two.other.forward_chains = (GATE,)
    netfilter = two.netfilter()
    plan = netfilter.preview(STATE)
    assert (plan.moved, plan.mended) == (
        Location("nftables", "nftables", LocationReason.NO_LIBVIRT_RULES),
        STATE.exposures,
    )
    assert [change.gate for change in plan.gates] == [GATE]
    assert not two.other.gates
    assert [change.gate for change in netfilter.apply(STATE, full=False).gates] == [GATE]
    assert two.other.gates == {GATE}
    two.other.wipe()
    assert [change.gate for change in netfilter.apply(STATE, full=False).gates] == [GATE]
    netfilter.remove()
    assert (two.one.rules, two.other.gates) == ({}, set())


def test_a_rule_system_that_refuses_keeps_no_gate_elsewhere_from_coming_back(two: Two) -> None:
    two.other.forward_chains = (GATE,)
    netfilter = two.netfilter()
    netfilter.apply(STATE, full=False)
    for kernel in (two.one, two.other):
        kernel.wipe()
    two.one.refusals = 1
    with pytest.raises(KernelError, match="no memory"):
        netfilter.apply(STATE, full=False)
    assert (two.one.rules, two.other.gates) == ({}, {GATE})


def test_the_old_rules_stay_until_the_new_ones_are_there(two: Two) -> None:
    netfilter = two.netfilter()
    netfilter.apply(STATE, full=False)
    two.other.libvirt, two.other.refusals = Presence.CHAINS, 1
    two.other.generation += 1
    with pytest.raises(KernelError):
        netfilter.apply(STATE, full=False)
    assert two.one.rules
    assert sentences.place(netfilter.location) == ("nftables", "libvirt has no rules of its own")
    assert netfilter.apply(STATE, full=False).moved
    assert (bool(two.one.rules), bool(two.other.rules)) == (False, True)


def test_what_one_refuses_to_give_back_is_a_fault_and_the_others_do(two: Two) -> None:
    two.other.forward_chains = (GATE,)
    netfilter = two.netfilter()
    netfilter.apply(STATE, full=False)
    two.other.refusals = 1
    assert sentences.faults(netfilter.remove()) == ("the kernel refused: no memory",)
    assert (two.one.rules, two.other.gates) == ({}, {GATE})


def test_guests_are_refused_where_the_rules_are_and_nowhere_before(two: Two) -> None:
    netfilter = two.netfilter()
    netfilter.refuse([FLOW])
    assert not two.one.refused
    netfilter.apply(STATE, full=False)
    netfilter.refuse([FLOW])
    assert (two.one.refused, two.other.refused) == ([FLOW], [])


SWITCHED = frozenset({(Family.IPV4, "eth0")})


def test_what_a_backend_tells_is_told_of_the_one_that_holds_the_rules() -> None:
    unusable = {Family.IPV6: sentences.error("it lacks a match")}
    one, other = Kernel(), Kernel(libvirt=Presence.CHAINS, confined=frozenset({Family.IPV4}), switched=SWITCHED)
    netfilter = Netfilter(Version(), among=(MemoryBackend(one, "nftables"), MemoryBackend(other, "iptables", unusable)))
    assert (dict(netfilter.unusable), set(netfilter.confined())) == ({}, {Family.IPV4})
    assert netfilter.switched() == SWITCHED
    assert netfilter.counters(STATE)[WEB] == 0
    assert "192.168.122.50" in netfilter.render(STATE)
    netfilter.apply(replace(STATE, confined=frozenset()), full=True)
    assert (dict(netfilter.unusable), set(netfilter.confined())) == (unusable, set())
    assert not netfilter.switched()
    netfilter.close()


def test_changes_in_any_rule_system_are_heard(two: Two) -> None:
    heard: list[Actor] = []

    def changed(actor: Actor, *, full: bool) -> None:
        assert not full
        heard.append(actor)

    monitors = two.netfilter().monitors(changed)
    act: tuple[Callable[[], None], ...] = (two.one.wipe, two.other.wipe)
    for monitor, change in zip(monitors, act, strict=True):
        monitor.start()
        change()
        monitor.close()
        change()
    assert len(heard) == 2


def test_guests_pass_chains_of_others_only_while_libvirt_has_rules_that_decide(two: Two) -> None:
    path = GuestPath(Family.IPV4, "virbr0", "eth0")
    two.other.libvirt = Presence.CHAINS
    netfilter, asked = two.netfilter(), replace(STATE, guest_paths=frozenset({path}))
    netfilter.apply(asked, full=False)
    assert two.one.guest_paths == two.other.guest_paths == {path}
    two.other.libvirt = Presence.NOTHING
    netfilter.apply(asked, full=False)
    assert two.one.guest_paths == two.other.guest_paths == frozenset()
