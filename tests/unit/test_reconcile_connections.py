"""Reconciles that end connections, refuse them or spare them, with all that they work on in memory."""

from dataclasses import replace
from ipaddress import ip_network

from fwdaemon.core.admission import Admission
from fwdaemon.core.inventory import Move
from fwdaemon.core.state import Proxied
from fwdaemon.errors import KernelError
from tests.unit.backend_behaviour import FLOW, MAIL, ROUTED, STATE, WEB
from tests.unit.forwards import address
from tests.unit.memory_backend import name_of
from tests.unit.reconcile_bench import SSH, Bench, ask, stopped
from tests.unit.seams import without

MAY_GO_ON = "open connections of removed forwards may go on"
FULL = "cannot list connections: No buffer space available"


def test_connections_of_what_went_are_refused_and_ended_and_others_go_on(bench: Bench) -> None:
    bench.reconcile(STATE)
    other = replace(FLOW, server=SSH.target, server_port=22, destination_port=22)
    bench.connections.flows = [FLOW, other]
    state = without(STATE, WEB).having([SSH])
    told = bench.reconcile(state)
    ended = bench.reported().ended
    assert bench.connections.flows == [other]
    assert bench.kernel.refused == [FLOW]
    assert "ended 1 connections of forwards that changed" in told
    # They end beside the reconcile: one of the two reports has them.
    bench.reconcile(state)
    assert ended + bench.reported().ended == 1


def test_where_connections_cannot_be_listed_that_is_told_once_and_tried_again_ever_more_seldom(bench: Bench) -> None:
    bench.reconcile(STATE)
    bench.connections.flows, bench.connections.faults = [FLOW], [KernelError(FULL), KernelError(FULL)]
    told, at = bench.reconcile(without(STATE, WEB)), list[float | None]()
    assert f"{MAY_GO_ON}: {FULL}; trying again, less and less often" in told
    for now in (0.9, 1.0, 2.9):
        at.append(bench.reconciler.next_pass_at)
        bench.clock.now = now
        assert bench.reconcile(without(STATE, WEB)) == []
    assert at == [1.0, 1.0, 3.0]
    assert bench.connections.flows == [FLOW]
    bench.clock.now = 3.0
    told = bench.reconcile(without(STATE, WEB))
    assert told == ["ended 1 connections of forwards that changed", f"over: {MAY_GO_ON}"]
    assert (bench.connections.flows, bench.reconciler.next_pass_at) == ([], None)


def test_a_refusal_is_tried_again_while_a_wipe_is_not_mended(bench: Bench) -> None:
    bench.reconcile(STATE)
    bench.connections.flows = [FLOW]
    bench.reconciler.reconcile(without(STATE, WEB), ask())
    bench.lines()
    bench.reconcile(STATE)
    bench.connections.flows, slept = [FLOW], len(bench.clock.slept)
    original = bench.kernel.commit
    refused = iter((False, True, True))

    def commit() -> None:
        if next(refused, False):
            raise KernelError("the table is gone")
        original()

    bench.kernel.commit = commit  # type: ignore[method-assign]  # the kernel loses a table in between
    told = bench.reconcile(without(STATE, WEB))
    assert "ended 1 connections of forwards that changed" in told
    assert bench.clock.slept[slept:] == [0.02, 0.05]


def test_connections_of_a_guest_that_may_come_back_are_spared_until_it_cannot(bench: Bench) -> None:
    bench.reconcile(STATE)
    bench.connections.flows = [FLOW]
    away, gone = stopped(move=Move.AWAY), stopped(move=Move.GONE)
    bench.reconcile(away)
    assert bench.connections.flows == [FLOW]
    assert name_of(WEB) not in bench.written
    bench.reconcile(gone)
    # It goes on elsewhere: ended here, and never refused.
    assert (bench.connections.flows, bench.kernel.refused) == ([], [])


def test_a_guest_that_arrived_is_told_apart_from_one_that_started(bench: Bench) -> None:
    for move in (Move.ARRIVED, None):
        bench.begin()
        bench.reconcile(stopped("mail", move=move))
        bench.reconcile(STATE)
        assert bench.connections.arrived[-1] == (frozenset({MAIL}) if move else frozenset())


def test_what_was_known_of_addresses_that_a_route_takes_over_is_forgotten(bench: Bench) -> None:
    bench.reconcile(STATE)
    there = address("203.0.113.65")
    bench.reconcile(replace(STATE, proxied=frozenset({Proxied(ROUTED, there)})))
    assert bench.connections.resumed[-1] == {there}


def test_who_is_denied_and_got_in_while_rules_were_gone_is_cut_off(bench: Bench) -> None:
    state = replace(STATE, barred=Admission(deny=(ip_network(FLOW.source),)))
    other = replace(FLOW, source=address("192.0.2.99"), client=address("192.0.2.99"))
    bench.reconcile(state)
    bench.kernel.wipe()
    bench.connections.flows = [FLOW, other]
    bench.reconcile(state)
    assert bench.connections.flows == [other]
