from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.exposures import Forward
from fwdaemon.core.types import PortRange
from fwdaemon.resolve.segments import segments
from tests.unit.forwards import forward


def test_a_forward_alone_is_one_segment() -> None:
    alone = forward("tcp *:80", "192.168.122.50:8080")
    (segment,) = segments([alone])
    assert (segment.listen, segment.ports, segment.forwards) == (None, PortRange(80, 80), (alone,))


def test_forwards_that_share_ports_in_part_are_cut_at_the_edges() -> None:
    east = forward("udp *:100-109", "192.168.122.50:100-109", interface="eth0")
    west = forward("udp *:105-119", "192.168.122.51:105-119", interface="eth1")
    found = {str(segment.ports): set(segment.forwards) for segment in segments([west, east])}
    assert found == {"100-104": {east}, "105-109": {east, west}, "110-119": {west}}


def test_one_address_and_every_address_do_not_share_a_segment() -> None:
    found = segments([forward("tcp *:80", "192.168.122.50:80"), forward("tcp 198.51.100.7:80", "192.168.122.51:80")])
    assert sorted(str(segment.listen) for segment in found) == ["198.51.100.7", "None"]


_ranges = st.tuples(st.integers(1, 60), st.integers(0, 20)).map(lambda pair: f"{pair[0]}-{pair[0] + pair[1]}")


@given(st.lists(st.tuples(_ranges, st.sampled_from(["eth0", "eth1", "eth2"])), max_size=12))
def test_segments_are_disjoint_and_cover_exactly_what_is_claimed(claims: list[tuple[str, str]]) -> None:
    forwards = {forward(f"tcp *:{ports}", f"192.168.122.50:{ports}", interface=link) for ports, link in claims}
    cover: dict[int, set[Forward]] = {}
    for segment in segments(forwards):
        for port in segment.ports:
            assert port not in cover
            cover[port] = set(segment.forwards)
    claimed = {port for item in forwards for port in item.ports}
    assert cover == {port: {item for item in forwards if port in item.ports} for port in claimed}
