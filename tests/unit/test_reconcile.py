"""One reconcile after another, with a rule system, a host and connections in memory: what is done and reported."""

from dataclasses import replace

import pytest

from fwdaemon.audit.throttle import LINES, WINDOW_S
from fwdaemon.core.inventory import Hindrance, HindranceKind, Place
from fwdaemon.core.report import (
    Actor,
    ActorKind,
    ApplyResult,
    Cause,
    GateChange,
    Location,
    LocationReason,
    Note,
    NoteKind,
    Reason,
    ReasonKind,
    Setting,
    SettingKind,
)
from fwdaemon.core.state import Desired, Unchosen
from fwdaemon.core.types import Family, Gate, GateFault
from fwdaemon.errors import KernelError
from tests import sentences
from tests.sentences import error
from tests.unit.backend_behaviour import FLOW, MAIL, SIX, STATE, WEB
from tests.unit.forwards import nat
from tests.unit.memory_backend import name_of
from tests.unit.reconcile_bench import ORIGIN, SSH, Bench, ask, stopped
from tests.unit.seams import without

STOPPED = Reason(ReasonKind.DOMAIN, "web1", "stopped")
STARTED = Reason(ReasonKind.DOMAIN, "web1", "started")
NFT = Actor(ActorKind.PROGRAM, "nft", 9)
GATE = Gate("inet", "theirs", "forward")
MIND = Note(NoteKind.FORWARDING_PUT_BACK, ("net.ipv4.ip_forward",))
MINDED = "set net.ipv4.ip_forward = 0 again: it was off before kvm-portfwd"


# --- what is reported -------------------------------------------------------------------------------------------------


def test_at_first_everything_is_added_and_told_with_where_the_rules_are(bench: Bench) -> None:
    told = bench.reconcile(STATE, ask(Reason(ReasonKind.RUNNING, "web1", "domain")))
    assert told[0] == "rules are in nftables: libvirt has no rules of its own"
    assert {line.split(" (")[0] for line in told[1:]} == {
        f"added {'network ' if item.owner.kind == 'network' else ''}{name_of(item)}" for item in STATE.exposures
    }
    report = bench.reported()
    assert (report.desired.exposures, report.placed, report.location) == (
        STATE.exposures,
        STATE,
        Location("nftables", "nftables", LocationReason.NO_LIBVIRT_RULES),
    )
    assert {change.exposure for change in report.changes} == STATE.exposures
    assert bench.host.adopted == [(frozenset(), frozenset())]


def test_what_an_earlier_run_left_is_adopted_and_what_nobody_wants_of_it_is_removed(bench: Bench) -> None:
    bench.reconcile(STATE)
    bench.begin()
    told = bench.reconcile(without(STATE, WEB))
    assert "adopted 4 forwards that an earlier run left in the kernel" in told
    assert f"removed {name_of(WEB)}, left by an earlier run (no longer wanted)" in told
    assert bench.changes() == []


def test_where_nothing_is_new_nothing_is_told_or_done(bench: Bench) -> None:
    bench.reconcile(STATE)
    generation = bench.kernel.generation
    for full in (False, True):
        assert bench.reconcile(STATE, ask(full=full)) == []
    assert (bench.kernel.generation, bench.changes()) == (generation, [])
    assert bench.reconcile(replace(STATE)) == []


def test_what_comes_and_goes_is_told_with_what_was_heard(bench: Bench) -> None:
    bench.reconcile(STATE)
    told = bench.reconcile(without(STATE, MAIL).having([SSH]), ask(Reason(ReasonKind.DOMAIN, "shell", "started")))
    assert told == [
        "removed mail: all of 198.51.100.8 -> 192.168.122.51 (found at a regular comparison)",
        "added shell: tcp *:22 -> 192.168.122.52:22 (domain shell started)",
    ]
    assert bench.changes() == [("removed", MAIL), ("added", SSH)]


def test_a_wipe_is_told_with_who_did_it_as_soon_as_that_is_heard(bench: Bench) -> None:
    state = Desired().having([WEB])
    bench.reconcile(state)
    bench.kernel.wipe()
    told = bench.reconcile(state, ask(latest_triggers=lambda: ((NFT,), ())))
    assert told == ["restored web1: tcp *:80 -> 192.168.122.50:8080 (changed by nft, pid 9)"]
    assert bench.reported().actors == (NFT,)


def test_an_exposure_outlives_its_domain_for_a_moment_and_the_stop_is_its_cause(bench: Bench) -> None:
    bench.reconcile(STATE)
    assert bench.reconcile(stopped(), ask(STOPPED)) == []
    assert name_of(WEB) in bench.written
    assert WEB in bench.reported().desired.exposures
    due = bench.reconciler.next_pass_at
    assert due is not None
    bench.now = due
    told = bench.reconcile(stopped())
    assert "removed web1: tcp *:80 -> 192.168.122.50:8080 (domain web1 stopped)" in told
    assert name_of(WEB) not in bench.written


def test_an_exposure_goes_at_once_with_a_domain_that_cannot_be_rebooting(bench: Bench) -> None:
    bench.reconcile(STATE)
    told = bench.reconcile(stopped(returning=False), ask(STOPPED))
    assert "removed web1: tcp *:80 -> 192.168.122.50:8080 (domain web1 stopped)" in told
    assert name_of(WEB) not in bench.written


def test_why_a_domain_stopped_is_its_cause_even_if_libvirt_tells_it_later(bench: Bench) -> None:
    bench.reconcile(STATE)
    told = bench.reconcile(stopped(returning=False), ask(latest_triggers=lambda: ((), (STOPPED,))))
    assert "removed web1: tcp *:80 -> 192.168.122.50:8080 (domain web1 stopped)" in told


def test_why_a_domain_runs_is_its_cause_even_if_libvirt_tells_it_later(bench: Bench) -> None:
    bench.reconcile(stopped(returning=False))
    told = bench.reconcile(STATE, ask(latest_triggers=lambda: ((), (STARTED,))))
    assert "added web1: tcp *:80 -> 192.168.122.50:8080 (domain web1 started)" in told


def test_the_address_of_a_guest_that_runs_is_given_to_nobody_else(bench: Bench) -> None:
    bench.reconcile(STATE)
    bench.reconcile(stopped(), ask(STOPPED, taken=frozenset({WEB.target})))
    assert name_of(WEB) not in bench.written


def test_a_new_configuration_holds_nothing_back_and_everything_that_waits_is_told(bench: Bench) -> None:
    bench.reconcile(STATE)
    told = bench.reconcile(stopped(), ask(reloaded=True))
    assert "waiting web1: the domain is not running (portfwd.toml:1)" in told
    assert name_of(WEB) not in bench.written
    assert bench.reconcile(stopped()) == []


def test_gates_are_told_with_who_moved_them(bench: Bench) -> None:
    bench.kernel.forward_chains = (GATE,)
    assert f"added gate in {GATE}: it was not there (found at a regular comparison)" in bench.reconcile(STATE)
    bench.host.result = ApplyResult(gates=(GateChange(GATE, restored=True, fault=GateFault.BEHIND_RULE),), changed=True)
    told = bench.reconcile(STATE, ask(latest_triggers=lambda: ((NFT,), ())))
    assert told == [f"restored gate in {GATE}: another rule was ahead of it (changed by nft, pid 9)"]
    bench.host.result = ApplyResult()
    bench.kernel.gates.clear()
    told = bench.reconcile(STATE, ask(full=True))
    assert told == [f"added gate in {GATE}: it was not there (found at a regular comparison)"]


def test_settings_and_notes_of_the_host_are_told(bench: Bench) -> None:
    former = Setting("net.ipv4.conf.eth0.route_localnet = 0", restored=True, kind=SettingKind.FORMER_SYSCTL)
    hairpin = Setting("vnet0", restored=False, kind=SettingKind.HAIRPIN_MODE)
    bench.host.result = ApplyResult(
        settings=(Setting("net.ipv4.ip_forward = 1", restored=False), former, hairpin), notes=(MIND,)
    )
    assert bench.reconcile(STATE)[1:5] == [
        "set net.ipv4.ip_forward = 1: forwards need it",
        (
            "restored net.ipv4.conf.eth0.route_localnet = 0, which an earlier version turned on (found at a regular"
            " comparison)"
        ),
        "set hairpin mode of bridge port vnet0: forwards need it",
        MINDED,
    ]


def test_faults_of_all_are_reported_and_told_once_they_last(bench: Bench) -> None:
    bench.reconcile(STATE)
    bench.host.result = ApplyResult(faults=(error("the host cannot"),))
    bench.others.found = (error("a clash"),)
    several = Hindrance(HindranceKind.SEVERAL_INTERFACES, places=(Place("mac1", "default"), Place("mac2", "default")))
    state = replace(STATE, remarks=(Unchosen("web1", "mac1", several, ORIGIN),))
    advice = (
        "domain web1 has 2 interfaces (mac1 on network default, mac2 on network default): write mac = …; until then it"
        " leads to mac1 (portfwd.toml:1)"
    )
    assert bench.reconcile(state) == []
    bench.now = bench.reconciler.next_pass_at or 0.0
    assert bench.reconcile(state) == ["the host cannot", advice, "a clash"]
    assert bench.reconcile(state) == []
    assert sentences.faults(bench.reported().result) == ("the host cannot", advice, "a clash")


def test_what_flaps_is_counted_and_told_when_that_is_over(bench: Bench) -> None:
    state, setting = Desired().having([WEB]), Setting("a = 1", restored=True)
    bench.kernel.forward_chains = (GATE,)
    bench.reconcile(state)
    told = []
    bench.host.result = ApplyResult(settings=(setting,))
    for _ in range(LINES + 2):
        bench.kernel.wipe()
        told += bench.reconcile(state)
    assert [sum(what in line for line in told) for what in ("restored web1", "gate in", "restored a = 1")] == [
        LINES
    ] * 3
    bench.host.result = ApplyResult()
    bench.now = bench.reconciler.next_pass_at or 0.0
    assert bench.now == WINDOW_S
    flapped = bench.reconcile(state)
    assert len(flapped) == 3
    assert all("2 more changes in 60 s" in line for line in flapped)


# --- what is done -----------------------------------------------------------------------------------------------------


def test_families_that_had_forwards_keep_their_tables(bench: Bench) -> None:
    bench.reconcile(STATE)
    bench.reconcile(without(STATE, SIX))
    assert Family.IPV6 in bench.kernel.rules


def test_the_host_is_confined_before_it_forwards_and_a_later_run_knows(bench: Bench) -> None:
    bench.host.confines = frozenset({Family.IPV6})
    state = Desired().having([WEB])
    bench.reconcile(state)
    assert bench.kernel.confined == {Family.IPV6}
    assert bench.host.kept[-1][0].confined == {Family.IPV6}
    bench.begin()
    bench.reconcile(state)
    assert bench.host.adopted[-1] == (frozenset({Family.IPV6}), frozenset())
    bench.reconcile(state, ask(ip_forward=False))
    assert not bench.kernel.confined


def test_one_interface_is_confined_before_it_forwards_and_a_later_run_knows(bench: Bench) -> None:
    bench.host.switches = frozenset({(Family.IPV4, "eth0")})
    state = Desired().having([WEB])
    bench.reconcile(state)
    assert bench.kernel.switched == bench.host.kept[-1][0].switched == bench.host.switches
    bench.begin()
    bench.reconcile(state)
    assert bench.host.adopted[-1] == (frozenset(), bench.host.switches)
    bench.reconcile(state, ask(ip_forward=False))
    assert not bench.kernel.switched


def test_the_host_is_looked_at_whole_after_an_event_and_now_and_then(bench: Bench) -> None:
    bench.reconcile(STATE)
    bench.reconcile(STATE, ask(STOPPED))
    bench.reconcile(STATE, ask(full=True))
    assert [full for _, full in bench.host.kept] == [False, True, True]


def test_where_the_kernel_refuses_what_was_applied_stays_and_is_what_the_next_one_starts_from(bench: Bench) -> None:
    bench.reconcile(STATE)
    report, kept = bench.reconciler.report, len(bench.host.kept)
    bench.kernel.refusals = 1
    with pytest.raises(KernelError, match="no memory"):
        bench.reconcile(without(STATE, MAIL).having([SSH]))
    # What would lead nowhere without its rules is taken back before, and nothing is built on rules that are not there.
    assert (bench.reconciler.report, len(bench.host.kept)) == (report, kept)
    assert not bench.host.released[-1].nats
    assert (name_of(MAIL) in bench.written, name_of(SSH) in bench.written) == (True, False)
    assert bench.lines() == []
    told = bench.reconcile(without(STATE, MAIL).having([SSH]))
    assert [line.split(" ")[0] for line in told] == ["removed", "added"]
    assert bench.changes() == [("removed", MAIL), ("added", SSH)]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_at_the_end_all_goes_and_is_told(bench: Bench) -> None:
    state = replace(STATE, forwarded=frozenset({(Family.IPV4, "default")}))
    bench.reconcile(state)
    bench.connections.flows = [FLOW]
    bench.reconciler.remove(Cause((Reason(ReasonKind.STOP, detail="on_stop = remove"),)))
    told = bench.lines()
    assert {line.split(" (")[1] for line in told} == {"the daemon stops, on_stop = remove)"}
    assert len(told) == len(STATE.exposures)
    assert (bench.kernel.rules, bench.connections.flows, bench.host.removed) == ({}, [], [state.forwarded])
    # What the guest still sends is refused for a moment, before the rules that refuse it go.
    assert (bench.kernel.refused, bench.clock.slept) == ([FLOW], [1.0])
    assert bench.reconciler.report is None


def test_what_could_not_be_removed_is_told_in_place_of_what_went(bench: Bench) -> None:
    bench.reconcile(STATE)
    bench.host.result = ApplyResult(faults=(error("an address stays"),), notes=(MIND,))
    bench.kernel.refusals = 2
    bench.reconciler.remove(Cause())
    assert bench.lines() == [
        MINDED,
        "an address stays",
        "open connections may go on: the kernel refused: no memory",
        "the kernel refused: no memory",
        "not all could be removed; restart the daemon or run `kvm-portfwd flush` to remove the rest",
    ]
    assert bench.written


def test_a_daemon_that_never_reconciled_removes_what_an_earlier_one_left(bench: Bench) -> None:
    bench.reconcile(Desired().having([nat("198.51.100.9", "192.168.122.51")]))
    bench.begin()
    bench.reconciler.remove(Cause())
    assert bench.lines() == []
    assert not bench.kernel.rules
    assert bench.host.closed
