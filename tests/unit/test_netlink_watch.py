"""What the kernel's messages are worth."""

import asyncio
import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.kernel.host_watch import KernelChanges, NetlinkWatch
from fwdaemon.kernel.process import budget_of_guests
from fwdaemon.triggers import Origin, origin
from tests.unit.saying import said

GUEST = "192.168.122.50"
MAC = bytes.fromhex("525400000001")
REACHABLE, STALE, PROBE, FAILED = 0x02, 0x04, 0x10, 0x20
AF_BRIDGE = 7


def message(kind: int, fixed: bytes, *attributes: tuple[int, bytes]) -> bytes:
    body = fixed + b"".join(
        struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4) for number, value in attributes
    )
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def neighbour(
    state: int, *, kind: int = 28, mac: bytes = MAC, address: str = GUEST, family: int = socket.AF_INET
) -> bytes:
    fixed = struct.pack("=BxxxiHBB", family, 4, state, 0, 0)
    return message(kind, fixed, (1, ip_address(address).packed), (2, mac))


def address(kind: int, text: str = "198.51.100.7", scope: int = 0, flags: int = 0x80) -> bytes:
    packed = ip_address(text).packed
    return message(kind, struct.pack("=BBBBI", socket.AF_INET, 24, flags, scope, 4), (1, packed), (2, packed))


def link(kind: int, *, master: int = 0, family: int = 0) -> bytes:
    attributes = [(3, b"vnet0\0"), *([(10, struct.pack("=I", master))] if master else [])]
    return message(kind, struct.pack("=BxHiII", family, 1, 4, 0, 0), *attributes)


def changes() -> KernelChanges:
    known = KernelChanges()
    known.watch_macs({MAC.hex(":")})
    return known


def answers(known: KernelChanges) -> bool:
    return known.answers(ip_address(GUEST), MAC.hex(":"))


def test_neighbour_is_news_once() -> None:
    known = changes()
    assert list(map(said, known.news(neighbour(REACHABLE)))) == [f"neighbour {GUEST} answered from 52:54:00:00:00:01"]
    assert list(known.news(neighbour(STALE) + neighbour(REACHABLE))) == []


def test_neighbour_with_another_mac_is_news() -> None:
    known = changes()
    stranger = bytes.fromhex("525400000099")
    assert list(known.news(neighbour(REACHABLE, mac=stranger))) == []
    assert len(list(known.news(neighbour(REACHABLE)))) == 1
    assert list(map(said, known.news(neighbour(REACHABLE, mac=stranger)))) == [
        f"neighbour {GUEST} answered from 52:54:00:00:00:99"
    ]


def test_neighbour_that_failed_and_came_back_is_news() -> None:
    known = changes()
    list(known.news(neighbour(REACHABLE)))
    assert list(map(said, known.news(neighbour(FAILED)))) == [f"neighbour {GUEST} does not answer"]
    assert list(known.news(neighbour(FAILED))) == []
    assert len(list(known.news(neighbour(REACHABLE)))) == 1
    assert list(known.news(neighbour(REACHABLE, kind=29))) == []
    assert len(list(known.news(neighbour(REACHABLE, address="2001:db8::5") + neighbour(STALE)))) == 2


def silent() -> KernelChanges:
    """A guest was asked at its configured address, and has not answered."""
    known = changes()
    known.watch_addresses([ip_address(GUEST)])
    list(known.news(neighbour(PROBE)))
    assert answers(known)
    list(known.news(neighbour(FAILED)))
    assert not answers(known)
    return known


def test_who_did_not_answer_is_silent_until_it_speaks() -> None:
    known = silent()
    list(known.news(neighbour(REACHABLE, mac=bytes(6)) + neighbour(PROBE)))
    assert not answers(known)
    list(known.news(neighbour(STALE)))
    assert answers(known)


def test_who_is_silent_is_forgotten_with_its_guest_the_configuration_and_all_else() -> None:
    for forget in (
        lambda known: known.watch_macs(set()),
        lambda known: known.watch_addresses([ip_address(GUEST)]),
        KernelChanges.forget,
    ):
        known = silent()
        forget(known)
        assert answers(known)
    known = silent()
    known.watch_macs({MAC.hex(":"), "52:54:00:00:00:02"})
    assert not answers(known)


def test_a_guest_that_claims_address_after_address_is_not_remembered_for_each() -> None:
    known = changes()
    list(known.news(neighbour(REACHABLE) + neighbour(FAILED)))
    assert answers(known)


@pytest.mark.parametrize("kind", [20, 21])
def test_an_address_that_has_a_lifetime_is_charged_to_guests_and_another_is_not(kind: int) -> None:
    (learned,), (given,) = (changes().news(address(kind, flags=flags)) for flags in (0, 0x80))
    assert (origin(learned), origin(given)) == (Origin.GUESTS, Origin.OTHERS)


def test_what_a_bridge_learns_is_no_news() -> None:
    assert list(changes().news(neighbour(REACHABLE, family=AF_BRIDGE) + link(16, family=AF_BRIDGE))) == []


def test_address_is_news_once() -> None:
    known = changes()
    assert list(map(said, known.news(address(20) + address(20)))) == ["host address 198.51.100.7 appeared"]
    assert list(map(said, known.news(address(21)))) == ["host address 198.51.100.7 disappeared"]
    assert list(map(said, known.news(address(20)))) == ["host address 198.51.100.7 appeared"]


def test_link_local_address_is_no_news() -> None:
    assert list(changes().news(address(20, "169.254.3.4", scope=253))) == []


def test_after_a_loss_anything_is_news_again() -> None:
    known = changes()
    list(known.news(address(20)))
    known.forget()
    assert len(list(known.news(address(20)))) == 1


@given(st.binary(max_size=200))
def test_nonsense_is_survived(datagram: bytes) -> None:
    list(changes().news(datagram))


def test_watch_opens_and_closes() -> None:
    async def scenario() -> None:
        watch = NetlinkWatch(lambda _reason: None, budget_of_guests())
        watch.start()
        await asyncio.sleep(0)
        watch.close()
        watch.close()

    asyncio.run(scenario())
