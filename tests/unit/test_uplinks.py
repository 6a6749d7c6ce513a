"""Which interfaces lead away from the host, for what no test machine has, and while links come and go."""

import struct
from pathlib import Path

import pytest

from fwdaemon.kernel.host_watch import UplinkChanges, ways_of
from fwdaemon.kernel.netlink import Message, Way, attribute
from fwdaemon.kernel.observe import leads_away
from fwdaemon.kernel.rtnetlink import PROTOCOL

NEW, DELETED = 24, 25
GATEWAY = attribute(5, bytes([192, 0, 2, 1]))


def link(links: Path, name: str, *, device: bool = False, built_on: tuple[str, ...] = (), kind: str = "1") -> Path:
    """Make a link the way /sys/class/net shows it."""
    made = links / name
    made.mkdir()
    (made / "type").write_text(f"{kind}\n")
    if device:
        (made / "device").mkdir()
    for lower in built_on:
        (made / f"lower_{lower}").symlink_to(links / lower)
    return made


def route(*parts: bytes, length: int = 0, protocol: int = 3, kind: int = 1, to: bytes = b"") -> bytes:
    """Write a route of IPv4 the way the kernel sends it."""
    destination = attribute(1, to) if to else b""
    return struct.pack("=BBBBBBBBI", 2, length, 0, 0, 254, protocol, 0, kind, 0) + destination + b"".join(parts)


def out_by(index: int) -> bytes:
    return attribute(4, struct.pack("=I", index))


def hop(index: int, more: bytes = b"") -> bytes:
    return struct.pack("=HBBi", 8 + len(more), 0, 0, index) + more


def test_a_network_card_leads_away_and_what_is_built_on_it(tmp_path: Path) -> None:
    assert leads_away(link(tmp_path, "enp1s0", device=True))
    assert leads_away(link(tmp_path, "enp1s0.100", built_on=("enp1s0",)))
    assert leads_away(link(tmp_path, "br100", built_on=("enp1s0.100", "vnet0")))


@pytest.mark.parametrize("kind", ["65534", "512", "776"], ids=["wireguard", "ppp", "sit"])
def test_a_tunnel_leads_away(tmp_path: Path, kind: str) -> None:
    assert leads_away(link(tmp_path, "tunnel", kind=kind))


def test_what_stands_alone_does_not(tmp_path: Path) -> None:
    assert not leads_away(link(tmp_path, "cali0123"))
    assert not leads_away(link(tmp_path, "docker0", built_on=("cali0123",)))
    assert not leads_away(link(tmp_path, "vlan", built_on=("gone",)))
    assert not leads_away(link(tmp_path, "lo", kind="772"))
    assert not leads_away(tmp_path / "gone")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(route(out_by(3)), {Way(3, leads_on=True)}, id="default"),
        pytest.param(
            route(out_by(3), GATEWAY, length=24, to=bytes([198, 51, 100, 0])), {Way(3, leads_on=True)}, id="via"
        ),
        pytest.param(
            route(out_by(3), GATEWAY, protocol=9),
            {Way(3, leads_on=True, is_advertised=True)},
            id="by a router advertisement",
        ),
        pytest.param(route(out_by(3), length=24, to=bytes([198, 51, 100, 0])), {Way(3, leads_on=False)}, id="on link"),
        pytest.param(route(out_by(3), length=32, to=bytes([10, 244, 0, 5])), set(), id="a pod"),
        pytest.param(route(out_by(3), length=16, to=bytes([169, 254, 0, 0])), set(), id="link-local"),
        pytest.param(route(out_by(3), length=24, to=bytes([203, 0, 113, 0]), protocol=PROTOCOL), set(), id="ours"),
        pytest.param(route(out_by(3), kind=6), set(), id="a blackhole"),
        pytest.param(
            route(attribute(9, hop(3) + hop(4, GATEWAY)), length=8, to=bytes([10, 0, 0, 0])),
            {Way(3, leads_on=False), Way(4, leads_on=True)},
            id="several hops",
        ),
        pytest.param(route(attribute(9, bytes(8))), set(), id="a hop of no length"),
        pytest.param(route(), set(), id="no interface"),
    ],
)
def test_where_a_route_leads(body: bytes, expected: set[Way]) -> None:
    assert set(ways_of(body)) == expected


def test_routes_are_news_where_they_may_change_uplinks() -> None:
    changes = UplinkChanges()
    default, further = route(out_by(3), GATEWAY), route(out_by(3), GATEWAY, length=24, to=bytes([198, 51, 100, 0]))

    def news(kind: int, body: bytes, now: float) -> int:
        return len(list(changes.news(Message(kind, 0, 0, 0, body), now)))

    assert news(NEW, default, 0) == 1
    assert news(NEW, further, 0) == 0
    assert news(DELETED, default, 1) == 1
    assert news(NEW, default, 1) == 1
    assert news(DELETED, further, 2) == 0  # a router of the Internet withdraws some all the time
    assert news(DELETED, further, 60) == 1
    advertised = route(out_by(4), GATEWAY, protocol=9)
    assert news(NEW, advertised, 61) == 1
    assert news(NEW, route(out_by(4), GATEWAY), 61) == 1  # the host's own route says more
