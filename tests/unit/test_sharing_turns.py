"""Which of several domains that ask for one port gets it, and who keeps it."""

from collections.abc import Collection
from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.audit.causes import why
from fwdaemon.config.model import Config
from fwdaemon.core.exposures import Exposure
from fwdaemon.core.inventory import Domain, Element, Inventory, Metadata, Move, Occupied
from fwdaemon.core.types import Protocol
from fwdaemon.resolve.claims import of_these_runs
from fwdaemon.resolve.placement import Placer, desired_state
from fwdaemon.resolve.sharing import Allocator, grants
from fwdaemon.resolve.snapshot import Grace, Stop
from tests.unit.asking import (
    ALLOW,
    HOST,
    NETWORKS,
    PUBLIC,
    config,
    domain,
    element,
    forward,
    live,
    placed,
    refused,
)


def test_the_older_live_domain_keeps_it_and_the_next_gets_it_when_it_goes() -> None:
    younger, older = domain("ci-a", 7, forward("8000 8001")), domain("ci-z", 3, forward("8000"))
    assert live(placed(younger, older)) == {"ci-z tcp *:8000", "ci-a tcp *:8001"}
    assert refused(placed(younger, older)) == {
        "ci-a tcp *:8000": "ci-z has it already (domain ci-z, metadata: forward 1)"
    }
    assert live(placed(younger, replace(older, running=False))) == {"ci-a tcp *:8000", "ci-a tcp *:8001"}
    gone = replace(older, running=False, move=Move.GONE)
    assert live(placed(younger, gone)) == {"ci-a tcp *:8000", "ci-a tcp *:8001"}
    coming = replace(older, running=False, move=Move.HERE)
    assert live(placed(younger, coming)) == {"ci-a tcp *:8001"}


def dealt(allocator: Allocator, *domains: Domain, policy: Config, rebooting: Collection[UUID] = ()) -> list[str]:
    grants = allocator.settle(policy, Inventory(domains, NETWORKS, HOST), rebooting=frozenset(rebooting))
    return [f"{entry.owner.name} {claim}" for entry in grants.given for claim, _ in entry.claims()]


def asking(found: Domain, *elements: Element) -> Domain:
    return replace(found, metadata=Metadata(elements))


def test_the_older_claim_goes_first_and_not_that_of_who_has_run_for_longer() -> None:
    allocator, policy = Allocator(), config()
    younger, older = domain("ci-a", 7, forward("8000")), domain("ci-z", 3)
    assert dealt(allocator, younger, older, policy=policy) == ["ci-a tcp *:8000"]
    bold = asking(older, forward("8000"))
    assert dealt(allocator, younger, bold, policy=policy) == ["ci-a tcp *:8000"]
    # Nor does an earlier URI, nor a start of the daemon, change that.
    foremost = replace(younger, rank=1)
    assert dealt(allocator, foremost, bold, policy=policy) == ["ci-a tcp *:8000"]
    again = Allocator(of_these_runs(allocator.turns, (foremost, bold)))
    assert dealt(again, foremost, bold, policy=policy) == ["ci-a tcp *:8000"]
    # Another run of the domain, that no daemon saw begin, is a younger claim; nothing is known of a claim that ended.
    restarted = replace(younger, instance=8)
    assert dealt(Allocator(of_these_runs(allocator.turns, (restarted, bold))), restarted, bold, policy=policy) == [
        "ci-z tcp *:8000"
    ]
    for domains in ((asking(younger), bold), (younger, bold)):
        assert dealt(allocator, *domains, policy=policy) == ["ci-z tcp *:8000"]


def test_of_those_that_wait_the_older_request_goes_first() -> None:
    allocator, policy = Allocator(), config()
    has, first, second = domain("ci-1", 9, forward("8000")), domain("ci-2", 8), domain("ci-3", 3)
    for waits in ((first, second), (asking(first, forward("8000")), second)):
        dealt(allocator, has, *waits, policy=policy)
    both = asking(first, forward("8000")), asking(second, forward("8000"))
    assert dealt(allocator, has, *both, policy=policy) == ["ci-1 tcp *:8000"]
    assert dealt(allocator, *both, policy=policy) == ["ci-2 tcp *:8000"]


def test_who_waits_for_longer_takes_nothing_that_was_granted_meanwhile() -> None:
    allocator, policy = Allocator(), config()
    domains = [domain("ci-1", 1, forward("8000")), domain("ci-2", 2, forward("8000-8002"))]
    dealt(allocator, *domains, policy=policy)
    domains.append(domain("ci-3", 3, forward("8002")))
    assert dealt(allocator, *domains, policy=policy) == ["ci-1 tcp *:8000", "ci-3 tcp *:8002"]
    assert dealt(allocator, *domains[1:], policy=policy) == ["ci-3 tcp *:8002"]


def test_who_lets_in_others_keeps_its_turn_and_takes_nothing_from_others() -> None:
    allocator, policy = Allocator(), config()
    mine, yours = forward("8000", sources="192.0.2.0/25"), forward("8000", sources="192.0.2.128/25")
    one, other, waits = domain("ci-1", 1, mine), domain("ci-2", 2, yours), domain("ci-3", 3, forward("8000"))
    assert dealt(allocator, one, other, waits, policy=policy) == ["ci-1 tcp *:8000", "ci-2 tcp *:8000"]
    more = asking(one, forward("8000", sources="192.0.2.0/26"))
    assert dealt(allocator, more, other, waits, policy=policy) == ["ci-1 tcp *:8000", "ci-2 tcp *:8000"]
    everyone = asking(one, forward("8000"))
    assert dealt(allocator, everyone, other, waits, policy=policy) == ["ci-2 tcp *:8000"]


def test_who_is_rebooting_keeps_ports_and_its_address_for_a_moment() -> None:
    allocator, policy = Allocator(), config(PUBLIC)
    asks = forward("8000", listen="198.51.100.7"), element("nat", public="192.0.2.70")
    one, other = domain("ci-1", 1, *asks), domain("ci-2", 2, *asks)
    mine, its = ([f"{name} tcp 198.51.100.7:8000", f"{name} all of 192.0.2.70"] for name in ("ci-1", "ci-2"))
    assert dealt(allocator, one, other, policy=policy) == mine
    stopped = replace(one, running=False, returning=True, instance=-1)
    assert dealt(allocator, stopped, other, policy=policy, rebooting={one.uuid}) == mine
    assert dealt(allocator, replace(one, instance=3), other, policy=policy) == mine
    assert dealt(allocator, stopped, other, policy=policy, rebooting={one.uuid}) == mine
    assert set(its) < set(dealt(allocator, stopped, other, policy=policy))
    assert dealt(allocator, replace(one, instance=4), other, policy=policy) == its


def test_who_has_it_keeps_it_when_a_process_of_the_host_begins_to_wait_there() -> None:
    allocator, policy = Allocator(), config()
    asked = domain("ci-1", 1, forward("8000"))
    waits = frozenset({Occupied(Protocol.TCP, None, port) for port in (8000, 8001)})
    inventory = Inventory((asked,), NETWORKS, HOST)
    assert allocator.settle(policy, inventory).given
    busy = replace(inventory, occupied=waits)
    assert allocator.settle(policy, busy).given
    again = Allocator(of_these_runs(allocator.turns, busy.domains))
    assert again.settle(policy, busy).given
    more = replace(busy, domains=(asking(asked, forward("8000 8001")),))
    granted = again.settle(policy, more)
    assert [str(claim) for entry in granted.given for claim, _ in entry.claims()] == ["tcp *:8000"]
    assert not Allocator().settle(policy, busy).given  # whose claim is new


def test_where_the_kernel_does_not_tell_who_waits_nothing_new_is_given() -> None:
    allocator, policy = Allocator(), config()
    inventory = Inventory((domain("ci-1", 1, forward("8000")),), NETWORKS, HOST)
    allocator.settle(policy, inventory)
    asked = replace(domain("ci-1", 1, forward("8000 8001")))
    unknown = replace(inventory, domains=(asked,), occupied=None)
    granted = allocator.settle(policy, unknown)
    assert [str(claim) for entry in granted.given for claim, _ in entry.claims()] == ["tcp *:8000"]
    (item,) = granted.refused
    assert (str(item.claim), why(item.reason), item.refused) == (
        "tcp *:8001",
        "the kernel does not report which ports processes of the host have",
        True,
    )
    assert not allocator.settle(policy, replace(unknown, occupied=frozenset())).refused


def test_an_address_only_chooses_among_the_guests_own() -> None:
    asked = domain("ci-1", 5, forward("8000", address="192.168.122.5"), forward("8001", address="192.168.122.6"))
    victim = domain("ci-2", 6, forward("8002"))
    desired = placed(asked, victim)
    assert live(desired) == {"ci-1 tcp *:8000", "ci-2 tcp *:8002"}
    assert refused(desired) == {"ci-1 tcp *:8001": "192.168.122.6 is no address that this guest is known to have"}
    silent = replace(asked, interfaces=tuple(replace(item, learned=()) for item in asked.interfaces))
    assert live(placed(silent, victim)) == {"ci-2 tcp *:8002"}


def test_a_domain_that_stopped_waits_and_may_be_rebooting() -> None:
    desired = placed(replace(domain("ci-1", 1, forward("8000"), running=False), returning=True))
    assert [(str(item.claim), item.returning, item.refused) for item in desired.waiting] == [
        ("tcp *:8000", True, False)
    ]


def test_nothing_new_is_the_same_object() -> None:
    allocator, policy = Allocator(), config()
    one = Inventory((domain("ci-1", 1, forward("8000 22")), domain("db", 2)), NETWORKS, HOST)
    first = allocator.settle(policy, one)
    assert allocator.settle(policy, replace(one, uplinks=frozenset({"eth0"}))) is first
    assert allocator.settle(policy, Inventory((), NETWORKS, HOST)) is not first
    assert allocator.settle(policy, Inventory((), NETWORKS, HOST)).config == policy


_ASKS = st.lists(
    st.sampled_from(["8000", "8001/udp", "8000-8003", "198.51.100.1:8000", "198.51.100.7:8001", "53/tcp+udp", "22"]),
    min_size=1,
    max_size=4,
)


@given(st.lists(st.tuples(st.integers(1, 5), _ASKS, st.booleans()), max_size=6, unique_by=lambda item: item[0]))
def test_whatever_is_asked_no_two_domains_have_one_port(asks: list[tuple[int, list[str], bool]]) -> None:
    domains = [
        domain(f"ci-{number}", number, forward(" ".join(dict.fromkeys(ports))), running=running)
        for number, ports, running in asks
    ]
    inventory = Inventory(tuple(domains), NETWORKS, HOST)
    desired = desired_state(config(), inventory)
    claims = [
        (item.owner, claim, port) for item in desired.exposures for claim in [item.claim] for port in claim.ports or ()
    ]
    for owner, claim, port in claims:
        for other, conflicting, same in claims:
            meets = None in (claim.address, conflicting.address) or claim.address == conflicting.address
            assert owner == other or port != same or claim.protocol is not conflicting.protocol or not meets
    kept = Allocator()
    assert kept.settle(config(), inventory).given == grants(config(), inventory).given


def test_an_address_is_no_two_guests_while_one_of_them_may_be_rebooting() -> None:
    placer, grace, policy = Placer({}), Grace(), config(PUBLIC)
    asks = element("nat", public="192.0.2.70")
    one, other = domain("ci-1", 1, asks), domain("ci-2", 2, asks)

    def held(*domains: Domain, now: float, before: frozenset[Exposure] = frozenset()) -> list[str]:
        desired = placer.place(policy, Inventory(domains, NETWORKS, HOST), now=now)
        return [nat.domain for nat in grace.extend(desired, before, (), Stop(now, ())).nats]

    live = placer.place(policy, Inventory((one, other), NETWORKS, HOST), now=5.0).exposures
    stopped = replace(one, running=False, returning=True, interfaces=(), instance=-1)
    assert held(stopped, other, now=6.0, before=live) == ["ci-1"]
    assert held(stopped, other, now=6.9, before=live) == ["ci-1"]
    assert held(stopped, other, now=7.0, before=live) == ["ci-2"]
    later = Grace(60.0)
    after = placer.place(policy, Inventory((stopped, other), NETWORKS, HOST), now=8.0)
    assert [nat.domain for nat in later.extend(after, live, (), Stop(8.0, ())).nats] == ["ci-2"]


_ONE = st.sampled_from(["8000", "8001", "8000-8003", "8002-8004", "198.51.100.7:8000", "192.0.2.70", "192.0.2.71"])
_ROUNDS = st.lists(st.dictionaries(st.integers(1, 4), st.frozensets(_ONE, max_size=4), max_size=4), max_size=6)


@given(rounds=_ROUNDS, restarts=st.booleans())
def test_whatever_others_ask_for_nobody_loses_what_he_has_and_still_asks_for(
    *, rounds: list[dict[int, frozenset[str]]], restarts: bool
) -> None:
    policy, allocator, had = config(PUBLIC.replace("max = 4", "max = 99")), Allocator(), set[str]()
    for asked in rounds:
        domains = [domain(f"ci-{number}", number, *map(_written, sorted(what))) for number, what in asked.items()]
        if restarts:
            allocator = Allocator(of_these_runs(allocator.turns, domains))
        grants = allocator.settle(policy, Inventory(tuple(domains), NETWORKS, HOST))
        every = {f"{turn.domain.int} {turn.place}": turn.has for turn in allocator.turns}
        assert all(every[claim] for claim in had & every.keys())
        had = {claim for claim, has in every.items() if has}
        assert len(grants.refused) == len(every) - len(had)


def _written(what: str) -> Element:
    return element("nat", public=what) if what.startswith("192.0.2.") else forward(what)


NARROW = config(ALLOW.replace("8000-8099", "8001-8099"))


def test_who_asked_first_goes_first_also_after_a_policy_that_covered_none_of_it() -> None:
    allocator, policy = Allocator(), config()
    younger, older = domain("ci-1", 1, forward("8000")), domain("ci-2", 2, forward("8000"))
    dealt(allocator, older, policy=policy)
    assert dealt(allocator, younger, older, policy=policy) == ["ci-2 tcp *:8000"]
    assert dealt(allocator, younger, older, policy=NARROW) == []
    again = Allocator(of_these_runs(allocator.turns, (younger, older)))
    for known in (allocator, again):
        assert dealt(known, younger, older, policy=NARROW) == []
        assert dealt(known, younger, older, policy=policy) == ["ci-2 tcp *:8000"]


def test_who_asked_for_something_else_meanwhile_asks_anew() -> None:
    allocator, policy = Allocator(), config()
    younger, older = domain("ci-1", 1, forward("8000")), domain("ci-2", 2, forward("8000"))
    dealt(allocator, older, policy=policy)
    dealt(allocator, younger, older, policy=policy)
    dealt(allocator, younger, asking(older, forward("8001")), policy=NARROW)
    assert dealt(allocator, younger, older, policy=policy) == ["ci-1 tcp *:8000"]
