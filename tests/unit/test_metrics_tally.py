"""What is counted of the daemon's work, and to what a loss is attributed."""

import pytest

from fwdaemon.core.report import Actor, ActorKind, ApplyResult, Change, GateChange, ReconcileReport
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Gate, GateFault
from fwdaemon.metrics.figures import Cause, Result, Tally, cause_of
from tests.unit.forwards import forward
from tests.unit.saying import because

WEB = forward("tcp *:80", "192.168.122.10:80")
GAME = forward("udp *:81", "192.168.122.11:81")
GATE = Gate("ip", "filter", "FORWARD")
NFT = Actor(ActorKind.PROGRAM, "nft", 812)


def report(*changes: Change, actors: tuple[Actor, ...] = (NFT,), ended: int = 0, **result: object) -> ReconcileReport:
    return ReconcileReport(Desired(), ApplyResult(**result), changes, actors, ended)  # type: ignore[arg-type]


def program(name: str) -> Actor:
    return Actor(ActorKind.PROGRAM, name, 7)


@pytest.mark.parametrize(
    ("actors", "cause"),
    [
        ([NFT], Cause.NFT),
        ([program("iptables")], Cause.IPTABLES),
        ([program("ip6tables-resto")], Cause.IPTABLES),
        ([program("xtables-nft-mul")], Cause.IPTABLES),
        ([program("firewalld")], Cause.FIREWALLD),
        ([Actor(ActorKind.LEGACY_TABLES)], Cause.LEGACY),
        ([Actor(ActorKind.ROUTE_REMOVED, pid=9)], Cause.ROUTING),
        ([Actor(ActorKind.LINK_DOWN, link="virbr0")], Cause.ROUTING),
        ([Actor(ActorKind.KERNEL)], Cause.ROUTING),
        ([NFT, program("firewalld")], Cause.NFT),
        ([program("nftables.service")], Cause.OTHER),
        ([program("nft\n")], Cause.OTHER),
        ([program("an unknown program, in iptables-legacy")], Cause.OTHER),
        ([Actor(ActorKind.COMMITS_LOST)], Cause.UNKNOWN),
        ([Actor(ActorKind.ROUTES_LOST)], Cause.UNKNOWN),
        ([], Cause.UNKNOWN),
    ],
)
def test_who_it_was(actors: list[Actor], cause: Cause) -> None:
    assert cause_of(actors) is cause


def test_a_wipe_is_one_restore_however_much_it_took() -> None:
    tally = Tally().pass_ended(
        report(*(Change("restored", each, because("nft")) for each in (WEB, GAME)), changed=True), 0.1
    )
    assert {cause: number for cause, number in tally.restores.items() if number} == {Cause.NFT: 1}
    tally = tally.pass_ended(
        report(gates=(GateChange(GATE, restored=True, fault=GateFault.ABSENT),), changed=True), 0.1
    )
    assert tally.restores[Cause.NFT] == 2
    assert tally.reconciles == {Result.UNCHANGED: 0, Result.CHANGED: 2, Result.FAILED: 0}


def test_what_comes_and_goes_is_no_restore() -> None:
    gate = GateChange(GATE, restored=False, fault=GateFault.ABSENT)
    tally = Tally().pass_ended(
        report(Change("added", WEB, because("")), Change("removed", GAME, because("")), gates=(gate,), changed=True),
        0.1,
    )
    assert set(tally.restores.values()) == {0}


def test_reconciles_by_how_they_ended() -> None:
    tally = (
        Tally()
        .pass_ended(report(), 0.25)
        .pass_ended(report(changed=True, ended=3), 0.25)
        .pass_ended(report(ended=2), 0.5)
    )
    tally = tally.failed(1)
    assert tally.reconciles == {Result.UNCHANGED: 2, Result.CHANGED: 1, Result.FAILED: 1}
    assert (tally.seconds, tally.ended) == (2.0, 5)
