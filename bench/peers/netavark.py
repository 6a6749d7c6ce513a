"""netavark as a peer: what podman runs when a container with published ports starts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bench.forwards import FIRST_PORT, GREETING, STREAM
from bench.peers.peer import Peer, one_more
from bench.peers.steps import Program, Step
from bench.scene import Scene
from bench.wiped import restore, saved
from tests.lab import image

_PROGRAM: Final = "usr/lib/podman/netavark"
_NETWORK: Final = "podman"
_SUBNET: Final = "10.88.0"
# The containers, by name: their last numbers in the subnet.
_MANY, _ONE = "many", "one"
_NUMBERS: Final[Mapping[str, int]] = {_MANY: 2, _ONE: 3}


class Netavark(Peer):
    """netavark, for one container with all the ports, and one more with one."""

    label = "netavark"
    about = (
        "`setup` and `teardown` as podman calls them, for a container with N ports and for a second one with one port;"
        " each makes or removes the container's link, too, and no container is started"
    )
    slow = True

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._program = str(image.peers() / _PROGRAM)
        self._libvirts = saved(scene.host)
        for name in _NUMBERS:
            scene.host.run("ip", "netns", "add", name)
            scene.host.run("ip", "-netns", name, "link", "set", "lo", "up")
            namespace = Path(f"/proc/{scene.host.init}/root/run/netns/{name}")
            scene.traffic.serve(GREETING, STREAM, replace(scene.host.place, namespace=namespace))

    def publish(self, size: int) -> Sequence[Step]:
        """Set up a container with so many ports."""
        return [self._run("setup", _MANY, _ports(size))]

    def add(self, size: int) -> Sequence[Step]:
        """Set up a second container."""
        return [self._run("setup", _ONE, [one_more(size)])]

    def remove(self, size: int) -> Sequence[Step]:
        """Tear that down."""
        return [self._run("teardown", _ONE, [one_more(size)])]

    def withdraw(self, size: int) -> None:  # noqa: ARG002  whatever there is
        """Flush everything at once, untimed: netavark takes minutes to tear down a thousand ports."""
        host = self.scene.host
        host.run("nft", "flush", "ruleset")
        restore(host, self._libvirts)
        host.run("ip", "-netns", _MANY, "link", "del", "eth0")
        host.run("ip", "link", "del", "podman0")

    def _run(self, what: str, container: str, ports: Iterable[int]) -> Program:
        words = self._program, "--config", "/run/netavark", what, f"/run/netns/{container}"
        return Program(words, json.dumps(wanted(container, ports)))


def wanted(container: str, ports: Iterable[int]) -> dict[str, Any]:
    """Say what podman does of a container in its network."""
    return {
        "container_id": f"{_NUMBERS[container]:064x}",
        "container_name": container,
        "port_mappings": [
            {"host_ip": "", "host_port": port, "container_port": GREETING, "protocol": "tcp", "range": 1}
            for port in ports
        ],
        "networks": {_NETWORK: {"interface_name": "eth0", "static_ips": [f"{_SUBNET}.{_NUMBERS[container]}"]}},
        "network_info": {
            _NETWORK: {
                "name": _NETWORK,
                "id": f"{1:064x}",
                "driver": "bridge",
                "network_interface": "podman0",
                "subnets": [{"subnet": f"{_SUBNET}.0/24", "gateway": f"{_SUBNET}.1"}],
                "ipv6_enabled": False,
                "internal": False,
                "dns_enabled": False,
                "ipam_options": {"driver": "host-local"},
            }
        },
    }


def _ports(size: int) -> range:
    return range(FIRST_PORT, FIRST_PORT + size)
