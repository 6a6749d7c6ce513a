"""A lab host with guests for N forwards, and the server that the last forward leads to.

The server always listens, on a machine of its own on the guests' bridge, so that an answer waits for the rules alone
and not for a guest to boot.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.forwards import GREETING, GUESTS, LAST, PUBLIC, SERVER, STREAM, SUBNET, guest_address, guest_name
from bench.processes import wait_quiet
from bench.traffic import Traffic
from tests.lab.daemon import Daemon
from tests.lab.domain import Link
from tests.lab.host import Host
from tests.lab.lxc import LxcGuest
from tests.lab.release import Flavour

_READY_WITHIN_S = 120.0
_SERVER_LINKS = f"""
set -e
ip netns add server
ip link add server0 type veth peer name eth0 netns server
ip link set server0 master "$1" up
ip -n server link set lo up
ip -n server link set eth0 up
ip -n server address add {SERVER}/24 dev eth0
ip -n server route add default via 192.168.122.1
ip -n outside route add {SUBNET} via {PUBLIC}
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """A host whose guests run; `last` is the guest whose forward is measured."""

    host: Host
    last: LxcGuest
    traffic: Traffic

    def daemon(self, config: str, *, through: tuple[str, ...] = ()) -> Daemon:
        """Start the daemon on a configuration, and wait until it has nothing more to do.

        `through` are the first words of a program that starts it in its own place.
        """
        daemon = self.host.daemon(config, wait=False, through=through)
        daemon.wait_ready(_READY_WITHIN_S)
        wait_quiet(daemon.pid)
        return daemon


@contextmanager
def booted(flavour: Flavour, program: Path, *, mode: str = "nat") -> Iterator[Scene]:
    """Boot a host whose guests and server run; `program` is the compiled `traffic.c`."""
    with ExitStack() as at_end:
        host = at_end.enter_context(Host.boot(flavour))
        host.libvirt.start()
        host.libvirt.define_network("default", SUBNET, mode=mode)
        for guest in range(GUESTS):
            LxcGuest(host, guest_name(guest), Link("default", (f"{guest_address(guest)}/24",))).start()
        last = LxcGuest(host, LAST, Link("default")).start()
        host.run("sh", "-c", _SERVER_LINKS, "sh", host.libvirt.bridge("default"))
        server = replace(host.place, namespace=Path(f"/proc/{host.init}/root/run/netns/server"))
        traffic = Traffic(host, server, program)
        traffic.serve(GREETING, STREAM)
        yield Scene(host, last, traffic)
