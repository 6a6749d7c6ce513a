"""The behaviour of every backend, shown by the one in memory, and packets that its rules lead."""

from ipaddress import ip_address

import pytest

from fwdaemon.core.types import Family, Protocol
from fwdaemon.errors import KernelError
from fwdaemon.rulesets.packet import Packet, Surroundings
from tests.unit.backend_behaviour import DNS, STATE, WITHOUT_DNS, BackendBehaviour, Scene
from tests.unit.memory_backend import Kernel, MemoryBackend

HOST = ip_address("198.51.100.7")


class TestInMemory(BackendBehaviour):
    @pytest.fixture
    def scene(self) -> Scene:
        kernel = Kernel()
        return Scene(lambda: MemoryBackend(kernel), kernel.wipe, lambda: (dict(kernel.rules), kernel.confined))


def asked(port: int, protocol: Protocol, client: str = "203.0.113.9") -> Packet:
    return Packet(Family.IPV4, protocol, ip_address(client), HOST, port, (HOST, port), came_in="eth0")


def test_packets_go_where_the_rules_lead_and_those_of_a_closed_forward_nowhere() -> None:
    kernel, host = Kernel(), Surroundings({HOST: frozenset({"eth0"})})
    backend = MemoryBackend(kernel)
    backend.apply(STATE, full=True)
    assert kernel.led(asked(80, Protocol.TCP), host) == (ip_address("192.168.122.50"), 8080)
    assert kernel.led(asked(53, Protocol.UDP), host) == (DNS.target, 53)
    assert kernel.led(asked(53, Protocol.UDP, "192.0.2.1"), host) is None
    assert kernel.led(asked(81, Protocol.TCP), host) is None
    backend.apply(WITHOUT_DNS, full=True)
    assert kernel.led(asked(53, Protocol.UDP), host) is None


def test_a_commit_that_is_refused_leaves_what_was() -> None:
    kernel = Kernel(refusals=1)
    backend = MemoryBackend(kernel)
    with pytest.raises(KernelError):
        backend.apply(STATE, full=True)
    assert not kernel.rules
    assert backend.apply(STATE, full=True).mended == STATE.exposures
