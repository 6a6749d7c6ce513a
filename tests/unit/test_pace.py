"""All that guests cause shares one budget of processor time, and what else happens is answered at once."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.report import Reason, ReasonKind
from fwdaemon.kernel.process import budget_of_guests
from fwdaemon.triggers import (
    REST_S,
    SHARE,
    SHARE_OF_EVENTS,
    STOCK_S,
    Budget,
    Lull,
    Origin,
    Pauses,
    TriggerQueue,
    origin,
)

COST_S, MINUTE_S, RESOLUTION_S = 0.02, 60.0, 1e-6


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Flooded:
    """A worker that always has something to do, and does it as soon as the budget allows."""

    pause: Callable[[], float]
    cost: float
    turns: list[float] = field(default_factory=list)

    @property
    def spent(self) -> float:
        """All of it so far."""
        return self.cost * len(self.turns)


def takes_passes(budget: Budget, cost: float) -> Flooded:
    return Flooded(budget.wait, cost)


def listens(budget: Budget, cost: float) -> Flooded:
    return Flooded(budget.rest, cost)


def flood(clock: Clock, budget: Budget, crowd: list[Flooded], seconds: float) -> float:
    """Have all of them at work for so long; gives the processor time spent."""
    until = clock.now + seconds
    turns = [(clock.now, number) for number in range(len(crowd))]
    heapify(turns)
    while turns[0][0] < until:
        clock.now, number = turns[0]
        who = crowd[number]
        pause = who.pause()
        if not pause:
            budget.spent(who.cost)
            who.turns.append(clock.now)
            pause = max(who.pause(), who.cost)  # what costs processor time takes that long
        heapreplace(turns, (clock.now + max(pause, RESOLUTION_S), number))
    clock.now = until
    return sum(who.spent for who in crowd)


COSTS = st.floats(0.001, 2.0)


@given(st.lists(COSTS, min_size=1, max_size=3), st.lists(COSTS, max_size=4), st.floats(1.0, 600.0))
def test_all_floods_together_get_their_share_and_no_more(passes: list[float], hearing: list[float], s: float) -> None:
    """Over any time, but for what was saved up before, and for the last piece of work of each."""
    clock = Clock()
    budget = Budget(clock)
    crowd = [*(takes_passes(budget, cost) for cost in passes), *(listens(budget, cost) for cost in hearing)]
    spent = flood(clock, budget, crowd, s)
    assert spent <= SHARE * s + STOCK_S + sum(passes) + sum(hearing)
    assert pytest.approx(0.05) == SHARE + SHARE_OF_EVENTS


@given(st.lists(st.floats(0.001, 0.05), min_size=1, max_size=4), st.floats(0.001, 0.1))
def test_whoever_listens_leaves_a_pass_its_turn(hearing: list[float], cost: float) -> None:
    """No pass waits for longer than it takes to pay for one piece of work of each."""
    clock = Clock()
    budget = Budget(clock)
    look = takes_passes(budget, cost)
    flood(clock, budget, [*(listens(budget, each) for each in hearing), look], 5 * MINUTE_S)
    assert max(after - before for before, after in pairwise([*look.turns, clock.now])) <= (
        (cost + sum(hearing)) / SHARE + REST_S
    )


def test_what_comes_now_and_then_never_waits() -> None:
    clock = Clock()
    budget = Budget(clock)
    for _ in range(1000):
        assert budget.wait() == budget.rest() == 0.0
        budget.spent(COST_S)
        clock.now += 1.0


def test_a_quiet_time_gives_the_stock_back_and_no_more() -> None:
    clock = Clock()
    budget = Budget(clock)
    flood(clock, budget, [takes_passes(budget, COST_S)], MINUTE_S)
    clock.now += 1000 * MINUTE_S
    spent = flood(clock, budget, [takes_passes(budget, COST_S)], 1.0)
    assert STOCK_S <= spent <= STOCK_S + SHARE + COST_S


def test_who_listens_waits_a_little_longer_than_who_looks() -> None:
    budget = Budget(Clock())
    budget.spent(STOCK_S + SHARE)
    assert budget.wait() == pytest.approx(1.0)
    assert budget.rest() == pytest.approx(1.0 + REST_S)


def test_work_for_others_costs_guests_nothing() -> None:
    budget, meter = Budget(Clock()), Clock()
    for enabled in (False, True):
        with budget.charged(meter, enabled=enabled):
            meter.now += STOCK_S + SHARE
        assert budget.wait() == pytest.approx(1.0 if enabled else 0.0)


def test_work_that_fails_has_cost_something_too() -> None:
    budget, meter = Budget(Clock()), Clock()

    def fail() -> None:
        with budget.charged(meter):
            meter.now += STOCK_S + SHARE
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    assert budget.wait() == pytest.approx(1.0)


def test_threads_share_it() -> None:
    budget = budget_of_guests()

    def spend() -> None:
        for _ in range(1000):
            budget.spent(0.001)

    threads = [threading.Thread(target=spend) for _ in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owed = 4.0 - STOCK_S - SHARE * (time.monotonic() - began)
    assert budget.wait() >= owed / SHARE - 0.1


GUESTS_RESTART = Reason(ReasonKind.DOMAIN, "web", "rebooted", by_guest=True)


@pytest.mark.parametrize("kind", [ReasonKind.DOMAIN, ReasonKind.DEVICES, ReasonKind.NETWORK, ReasonKind.HOST_ADDRESS])
@pytest.mark.parametrize("provoking", [Reason(ReasonKind.NEIGHBOUR, "192.0.2.1"), GUESTS_RESTART])
def test_what_no_guest_can_provoke_is_urgent_in_the_middle_of_a_flood(kind: ReasonKind, provoking: Reason) -> None:
    hearing = TriggerQueue()
    hearing.begin_inventory()
    told = Reason(kind, "web", "started")
    states = [hearing.inventory_for]
    for reason in [*(Reason(provoking.kind, str(n), by_guest=provoking.by_guest) for n in range(1000)), told]:
        hearing.inventory_changed(reason)
        states.append(hearing.inventory_for)
    assert states == [Origin.GUESTS] * 1001 + [origin(told)] != [Origin.GUESTS] * 1002
    covered = hearing.begin_inventory()
    assert told in covered
    assert len(covered) < 300


@pytest.mark.parametrize("kind", [ReasonKind.NEIGHBOUR, ReasonKind.LEASES, ReasonKind.AGENT, ReasonKind.ADDRESSES_LOST])
def test_what_guests_provoke(kind: ReasonKind) -> None:
    assert origin(Reason(kind, "x")) is Origin.GUESTS
    assert origin(Reason(ReasonKind.FIRST_LEASE, "x")) is Origin.USERS


def test_several_changes_are_looked_at_once_after_the_last_of_them_and_not_much_after_the_first() -> None:
    clock = Clock()
    lull = Lull(clock, 1.0, 5.0)
    due = []
    for clock.now in (0.0, 0.5, 3.0, 4.5, 6.0):
        due.append(clock.now + lull.changed())
    assert due == [1.0, 1.5, 4.0, 5.0, 6.0]
    lull.looked()
    assert lull.changed() == 1.0


def test_only_what_others_change_again_and_again_lengthens_the_pause_between_passes() -> None:
    """Where domains come and go all the time, one would wait the longer the more came before it."""
    pauses = Pauses(passes=1.0, passes_at_most=5.0)
    assert [pauses.after(before, Origin.OTHERS, changed=True) for before in (1.0, 2.0, 4.0)] == [2.0, 4.0, 5.0]
    assert pauses.after(4.0, Origin.OTHERS, changed=False) == 1.0
    assert {pauses.after(4.0, cause, changed=True) for cause in (Origin.GUESTS, Origin.USERS)} == {1.0}
