"""What a guest sends back to a client off its link, as frames."""

import struct

import pytest

from fwdaemon.core.types import Family
from fwdaemon.explain.far_probe import LAYOUTS, is_about_ports

PORT, OURS = 80, 40_000


def frame(family: Family, protocol: int, payload: bytes) -> bytes:
    layout = LAYOUTS[family]
    header = bytearray(20 if family is Family.IPV4 else 40)
    header[layout.protocol_at] = protocol
    return bytes(12) + struct.pack("!H", layout.ether_type) + header + payload


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [(PORT, OURS, True), (PORT, OURS + 1, None), (PORT + 1, OURS, None)],
    ids=["to us", "to an earlier probe", "from another port"],
)
def test_only_an_answer_to_this_very_probe_counts(
    family: Family, source: int, destination: int, *, expected: bool | None
) -> None:
    answer = frame(family, 6, struct.pack("!HH", source, destination))
    assert is_about_ports(answer, LAYOUTS[family], (PORT, OURS)) is expected


@pytest.mark.parametrize("family", Family)
def test_a_pong_is_no_answer_of_the_port_and_a_refusal_is_one(family: Family) -> None:
    layout = LAYOUTS[family]
    for kind, expected in ((layout.pong_type, False), (3 if family is Family.IPV4 else 1, True)):
        assert is_about_ports(frame(family, layout.ping, bytes([kind, 0, 0, 0])), layout, (PORT, OURS)) is expected
