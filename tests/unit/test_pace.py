"""What guests send gets a share of a core, and what else happens is answered at once."""

import pytest

from fwdaemon.core.pace import LONGEST_WAIT_S, STOCK_S, Pace, provoked
from fwdaemon.core.report import Reason, ReasonKind
from fwdaemon.triggers import Hearing

SHARE, COST_S, MINUTE_S = 0.025, 0.02, 60.0


def inventories_in_a_flood(pace: Pace, seconds: float, cost: float, began: float = 0.0) -> int:
    """Have each inventory follow the one before as soon as it may, as news come all the time."""
    now, number = began, 0
    while (now := now + pace.wait(now)) < began + seconds:
        number += 1
        now += cost
        pace.spent(now, cost)
    return number


@pytest.mark.parametrize("cost", [0.001, COST_S, 0.1])
def test_a_flood_gets_its_share_and_no_more(cost: float) -> None:
    number = inventories_in_a_flood(Pace(SHARE, 0.0), MINUTE_S, cost)
    assert number * cost <= SHARE * MINUTE_S + STOCK_S + cost
    assert number * cost >= SHARE * MINUTE_S


def test_what_comes_now_and_then_never_waits() -> None:
    pace = Pace(SHARE, 0.0)
    for second in range(1000):
        assert pace.wait(float(second)) == 0.0
        pace.spent(float(second), COST_S)


def test_a_quiet_time_gives_the_stock_back_and_no_more() -> None:
    pace = Pace(SHARE, 0.0)
    inventories_in_a_flood(pace, MINUTE_S, COST_S)
    assert pace.wait(MINUTE_S) > 0
    number = inventories_in_a_flood(pace, 1.0, COST_S, began=1000 * MINUTE_S)
    assert STOCK_S <= number * COST_S <= STOCK_S + SHARE + COST_S


def test_a_slow_inventory_holds_up_the_next_for_a_bounded_time() -> None:
    pace = Pace(SHARE, 0.0)
    pace.spent(0.0, 30.0)
    assert pace.wait(0.0) == pytest.approx(LONGEST_WAIT_S)


@pytest.mark.parametrize("kind", [ReasonKind.DOMAIN, ReasonKind.DEVICES, ReasonKind.NETWORK, ReasonKind.HOST_ADDRESS])
def test_what_no_guest_can_provoke_is_urgent_in_the_middle_of_a_flood(kind: ReasonKind) -> None:
    hearing = Hearing()
    hearing.begin_inventory()
    told = Reason(kind, "web", "started")
    states = [hearing.urgent]
    for reason in [*(Reason(ReasonKind.NEIGHBOUR, f"192.0.2.{number}") for number in range(1000)), told]:
        hearing.inventory_changed(reason)
        states.append(hearing.urgent)
    assert states == [False] * 1001 + [True]
    covered = hearing.begin_inventory()
    assert told in covered
    assert len(covered) < 300


@pytest.mark.parametrize("kind", [ReasonKind.NEIGHBOUR, ReasonKind.LEASES, ReasonKind.AGENT, ReasonKind.ADDRESSES_LOST])
def test_what_guests_provoke(kind: ReasonKind) -> None:
    assert provoked(Reason(kind, "x"))
