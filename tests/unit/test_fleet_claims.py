"""Which public addresses of the shared table a host may have, by its own clock alone."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from fwdaemon.core.exposures import Nat
from fwdaemon.core.inventory import HindranceKind
from fwdaemon.core.report import ReasonKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import OnPartition, Origin
from fwdaemon.fleet.claims import Claims, History, Holder, Lease, claim_key, claims_in
from fwdaemon.fleet.table import Item
from fwdaemon.hostnet.owned_state import OwnedStateFile
from tests.unit.forwards import nat

PUBLIC = ip_address("198.51.100.8")
OF_TABLE = replace(nat(str(PUBLIC), "192.168.122.50", assign="eth0"), origin=Origin(Path("etcd:mail"), 3))
OF_FILE = replace(nat("198.51.100.9", "192.168.122.51", assign="eth0"), origin=Origin(Path("/etc/portfwd.toml"), 3))
WANTED = Desired(nats=frozenset({OF_TABLE, OF_FILE}))
TEN = Lease(7, 110.0)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def claims(tmp_path: Path, clock: Clock) -> Claims:
    return known(tmp_path, clock)


def known(place: Path, clock: Clock) -> Claims:
    return Claims(OwnedStateFile("fleet", place), clock)


def live(claims: Claims) -> frozenset[Nat]:
    return claims.gate(WANTED).nats


def kinds(claims: Claims) -> list[ReasonKind]:
    return [reason.kind for reason in claims.take_reasons()]


def test_an_address_of_a_file_needs_no_claim_and_one_of_the_table_waits_for_it(claims: Claims) -> None:
    gated = claims.gate(WANTED)
    assert gated.nats == {OF_FILE}
    assert [(item.reason.kind, item.public) for item in gated.waiting] == [(HindranceKind.NO_CLAIM, PUBLIC)]
    assert claims.wanted == {PUBLIC}
    assert (claims.seconds(OF_FILE), claims.seconds(OF_TABLE)) == (None, 0)


def test_a_claim_holds_until_it_was_to_be_renewed_and_the_kernel_is_given_no_more(claims: Claims, clock: Clock) -> None:
    claims.confirm([PUBLIC], TEN)
    assert claims.gate(WANTED) is WANTED
    assert claims.seconds(OF_TABLE) == 10
    clock.now = 108.5
    assert live(claims) == {OF_TABLE, OF_FILE}
    assert claims.seconds(OF_TABLE) == 1
    clock.now = 109.5
    assert live(claims) == {OF_FILE}
    assert claims.seconds(OF_TABLE) == 0
    assert claims.held == ()


def test_what_is_renewed_goes_on(claims: Claims, clock: Clock) -> None:
    claims.confirm([PUBLIC], TEN)
    clock.now = 108.0
    claims.confirm([PUBLIC], Lease(7, 118.0))
    clock.now = 112.0
    assert live(claims) == {OF_TABLE, OF_FILE}
    assert kinds(claims) == [ReasonKind.CLAIM_TAKEN]


def test_with_keep_it_holds_until_another_host_has_it(claims: Claims, clock: Clock) -> None:
    claims.follow(OnPartition.KEEP)
    claims.confirm([PUBLIC], TEN)
    clock.now = 1e6
    claims.doubt()
    assert live(claims) == {OF_TABLE, OF_FILE}
    assert claims.seconds(OF_TABLE) is None
    claims.learn_others({PUBLIC: "second"})
    assert live(claims) == {OF_FILE}
    assert kinds(claims) == [ReasonKind.CLAIM_TAKEN, ReasonKind.CLAIM_LOST]


def test_who_no_longer_keeps_goes_by_the_lease(claims: Claims, clock: Clock) -> None:
    claims.follow(OnPartition.KEEP)
    claims.confirm([PUBLIC], TEN)
    clock.now = 200.0
    claims.follow(OnPartition.RELEASE)
    assert live(claims) == {OF_FILE}


def test_a_lease_that_ended_takes_all_claims_with_it(claims: Claims) -> None:
    claims.confirm([PUBLIC], TEN)
    claims.doubt()
    assert live(claims) == {OF_FILE}


def test_the_host_that_has_it_is_named(claims: Claims) -> None:
    claims.gate(WANTED)
    claims.learn_others({PUBLIC: "second"})
    (waiting,) = claims.gate(WANTED).waiting
    assert (waiting.reason.kind, waiting.reason.names) == (HindranceKind.CLAIMED_BY_HOST, ("second",))


def test_what_a_guest_sends_right_after_it_came_leaves_with_its_public_address(claims: Claims, clock: Clock) -> None:
    gated = claims.gate(WANTED)
    assert gated.imminent == {OF_TABLE}
    assert claims.gate(WANTED) is gated
    clock.now += 20
    assert claims.gate(WANTED).imminent == frozenset()


def test_it_is_given_back_once_the_kernel_has_it_no_more(claims: Claims) -> None:
    claims.confirm([PUBLIC], TEN)
    assert claims.superfluous([PUBLIC]) == []  # nothing has been applied yet
    claims.applied(claims.gate(WANTED))
    claims.gate(Desired())
    assert claims.superfluous([PUBLIC]) == []
    claims.applied(Desired())
    assert claims.superfluous([PUBLIC]) == [PUBLIC]


def test_the_next_daemon_goes_on_with_it(tmp_path: Path, clock: Clock, claims: Claims) -> None:
    claims.confirm([PUBLIC], TEN)
    after = known(tmp_path, clock)
    assert (after.run, after.lease, after.held) == (claims.run, TEN, (PUBLIC,))
    clock.now = 111.0
    assert known(tmp_path, clock).held == ()
    assert known(tmp_path / "elsewhere", clock).run != claims.run


@pytest.mark.parametrize("value", [b"", b"[]", b"{", b'{"host": 1}', b"\xff", b"[" * 10_000])
def test_a_claim_that_cannot_be_read_is_somebody_elses(value: bytes) -> None:
    assert Holder.read(value).run == ""


def test_claims_are_found_by_their_keys() -> None:
    items = [
        Item(claim_key("/p", PUBLIC)),
        Item(b"/p/claims/none"),
        Item(b"/p/claims/\xff"),
        Item(b"/p/entries/1.2.3.4"),
    ]
    assert claims_in("/p", items) == {PUBLIC: items[0]}


def test_the_daemon_is_woken_when_it_wants_another(claims: Claims) -> None:
    woken: list[int] = []
    claims.wake = lambda: woken.append(1)
    claims.gate(WANTED)
    claims.gate(WANTED)
    assert len(woken) == 1


def test_when_the_next_one_runs_out(claims: Claims, clock: Clock) -> None:
    nothing = claims.due
    claims.confirm([PUBLIC], TEN)
    early = claims.due
    clock.now += 5
    late = claims.due
    assert nothing is None
    assert (early or 0) - (late or 0) == pytest.approx(5, abs=1)


def test_a_store_that_went_back_is_in_doubt_for_a_lease(tmp_path: Path, claims: Claims, clock: Clock) -> None:
    claims.saw(10, 15)
    claims.heard(12)
    claims.saw(12, 15)
    assert not is_in_doubt(claims)
    claims.saw(11, 15)
    assert is_in_doubt(claims)
    clock.now += 10
    claims.saw(11, 15)
    claims.confirm([], TEN)
    again = known(tmp_path, clock)
    assert is_in_doubt(again), "where the daemon is started again meanwhile"
    clock.now += 5
    again.saw(11, 15)
    assert not is_in_doubt(again)
    again.saw(10, 15)
    assert is_in_doubt(again), "it may go back more than once"


@pytest.mark.parametrize(
    ("origin", "now", "then", "goes_on"),
    [
        ((1, 2), {b"a": 3, b"b": 4}, {b"a": 3, b"b": 4}, True),
        ((1, 3), {b"a": 9}, {b"a": 3, b"b": 4}, True),
        ((1, 3), {b"a": 9}, None, True),
        ((1, 2), {b"a": 3, b"c": 9}, None, True),
        ((2, 2), {b"a": 3, b"b": 4}, {b"a": 3, b"b": 4}, False),
        ((1, 1), {b"a": 3, b"b": 4}, {b"a": 3, b"b": 4}, False),
        ((1, 2), {b"a": 9, b"b": 9}, {b"a": 3}, False),
        ((1, 2), {b"a": 9, b"b": 9}, {b"a": 3, b"b": 3}, False),
        ((1, 2), {b"a": 3, b"c": 4}, None, False),
    ],
)
def test_a_store_is_the_one_of_before_if_it_was_the_same_then(
    origin: tuple[int, int], now: Mapping[bytes, int], then: Mapping[bytes, int] | None, *, goes_on: bool
) -> None:
    known = History.of((1, 2), 2, [Item(b"c", revision=2), Item(b"b", revision=1)])
    known.hear([Item(b"a", revision=3), Item(b"c", revision=4, is_deleted=True), Item(b"b", revision=4)])
    asked: list[int] = []

    def had(revision: int) -> list[Item] | None:
        asked.append(revision)
        return None if then is None else [Item(key, revision=at) for key, at in then.items()]

    found = History.of(origin, 9, [Item(key, revision=at) for key, at in now.items()])
    assert found.follows(known, had) is goes_on
    assert set(asked) <= {4}
    assert found.follows(History(), had), "nothing is known yet"


def is_in_doubt(claims: Claims) -> bool:
    """Ask anew: mypy takes a property for one that does not change."""
    return claims.is_in_doubt
