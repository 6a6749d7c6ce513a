"""Looking ports up finds what looking at everything would."""

from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.types import PortIndex, PortRange

RANGES = st.builds(
    lambda first, width: PortRange(first, min(first + width, 65535)),
    st.integers(1, 65535) | st.integers(1, 200),
    st.integers(0, 130) | st.just(0) | st.integers(0, 65535),
)


@given(st.lists(RANGES), RANGES)
def test_it_finds_exactly_what_overlaps(ranges: list[PortRange], asked: PortRange) -> None:
    index = PortIndex((ports, number) for number, ports in enumerate(ranges))
    assert sorted(index.meeting(asked)) == [number for number, ports in enumerate(ranges) if ports.overlaps(asked)]
