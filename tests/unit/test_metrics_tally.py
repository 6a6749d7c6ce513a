"""What is counted of the daemon's work, and to whom a loss is put down."""

import pytest

from fwdaemon import causes
from fwdaemon.account import Account, Change
from fwdaemon.config.model import Gate
from fwdaemon.desired import Desired
from fwdaemon.metrics.tally import Cause, Result, Tally, cause_of
from fwdaemon.outcome import GateChange, Outcome
from tests.unit.forwards import forward

WEB = forward("tcp *:80", "192.168.122.10:80")
GAME = forward("udp *:81", "192.168.122.11:81")
GATE = Gate("ip", "filter", "FORWARD")
BY_NFT = "changed by nft, pid 812"


def account(*changes: Change, meddler: str = BY_NFT, ended: int = 0, **outcome: object) -> Account:
    return Account(Desired(), Outcome(**outcome), changes, meddler, ended)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("meddler", "cause"),
    [
        (BY_NFT, Cause.NFT),
        ("changed by iptables, pid 7", Cause.IPTABLES),
        ("changed by ip6tables-resto, pid 7", Cause.IPTABLES),
        ("changed by xtables-nft-mul, pid 7", Cause.IPTABLES),
        ("changed by firewalld, pid 7", Cause.FIREWALLD),
        ("changed by somebody, in the legacy tables", Cause.LEGACY),
        ("changed by somebody who removed a route (netlink port 9)", Cause.ROUTING),
        ("changed by somebody who took link virbr0 down", Cause.ROUTING),
        ("changed by the kernel itself", Cause.ROUTING),
        ("changed by nft, pid 812; firewalld, pid 7", Cause.NFT),
        ("changed by nftables.service, pid 1", Cause.OTHER),
        ("changed by nft\\n, pid 1", Cause.OTHER),
        ("changed by a name, with pid 3 in it, pid 9", Cause.OTHER),
        ("changed by somebody, in more commits than could be followed", Cause.UNKNOWN),
        (causes.AT_A_COMPARISON, Cause.UNKNOWN),
        ("", Cause.UNKNOWN),
    ],
)
def test_who_it_was(meddler: str, cause: Cause) -> None:
    assert cause_of(meddler) is cause


def test_a_wipe_is_one_restore_however_much_it_took() -> None:
    tally = Tally().looked(account(*(Change("restored", each, BY_NFT) for each in (WEB, GAME)), changed=True), 0.1)
    assert {cause: number for cause, number in tally.restores.items() if number} == {Cause.NFT: 1}
    tally = tally.looked(account(gates=(GateChange(GATE, restored=True, fault="it was gone"),), changed=True), 0.1)
    assert tally.restores[Cause.NFT] == 2
    assert tally.reconciles == {Result.UNCHANGED: 0, Result.CHANGED: 2, Result.FAILED: 0}


def test_what_comes_and_goes_is_no_restore() -> None:
    gate = GateChange(GATE, restored=False, fault="it was not there")
    tally = Tally().looked(
        account(Change("added", WEB, ""), Change("removed", GAME, ""), gates=(gate,), changed=True), 0.1
    )
    assert set(tally.restores.values()) == {0}


def test_reconciles_by_how_they_ended() -> None:
    tally = Tally().looked(account(), 0.25).looked(account(changed=True, ended=3), 0.25).looked(account(ended=2), 0.5)
    tally = tally.failed(1)
    assert tally.reconciles == {Result.UNCHANGED: 2, Result.CHANGED: 1, Result.FAILED: 1}
    assert (tally.seconds, tally.ended) == (2.0, 5)
