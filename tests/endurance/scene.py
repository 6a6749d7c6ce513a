"""The host of the long run: guests that stay up, guests that come and go, a thousand forwards, the daemon."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.chaos.listing import copy_nft
from tests.chaos.server import TCP_PORT, UDP_PORT
from tests.chaos.steady import Steady, transfers
from tests.lab.daemon import Daemon
from tests.lab.domain import Link
from tests.lab.host import PUBLIC4, PUBLIC6, SOURCE, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import Process
from tests.lab.release import Flavour

NETWORK, URI = "default", "lxc:///system"
STEADY = "steady"
_HEAD = f'[daemon]\nlibvirt = ["{URI}"]\nresync = "60s"\n'
_FORWARDS = 1000
# Each stays up, comes and goes, or is only defined and undefined; and with how many forwards each.
_LASTING, _LASTING_PORTS = 4, 20
_PASSING, _PASSING_PORTS = 4, 5
_IDLES = 12
# What their names begin with.
PASSING, IDLE = "passing", "idle"
_PASSING_AT, _PASSING_FROM = "192.168.122.4", 50000
# What of the rules belongs to guests that come and go, as a regular expression: names, addresses, ports.
PASSING_SIGNS = rf"{PASSING}\d|192\.168\.122\.4\d|\b50\d\d\d\b"


@dataclass(frozen=True, slots=True)
class Scene:
    """`passing` guests are started and stopped, `idle` ones only defined, `pausing` is suspended and resumed."""

    host: Host
    daemon: Daemon
    listener: Process
    pausing: LxcGuest
    passing: list[LxcGuest]
    idle: list[LxcGuest]
    steady: Steady


@contextmanager
def set_up(flavour: Flavour) -> Iterator[Scene]:
    """Boot a host and bring everything up; it is gone after the block."""
    with Host.boot(flavour) as host:
        host.libvirt.start()
        copy_nft(host)
        host.libvirt.define_network(NETWORK, "192.168.122.0/24", "2001:db8:122::/64")
        steady = _guest(host, STEADY, 10).start()
        steady.place.popen([host.python, f"{SOURCE}/tests/chaos/server.py", STEADY]).wait_line("^ready$")
        lasting = [_guest(host, f"lasting{number}", 20 + number).start() for number in range(_LASTING)]
        passing = [_guest(host, f"{PASSING}{number}", 40 + number).start() for number in range(_PASSING)]
        idle = [_guest(host, f"{IDLE}{number}", 60 + number) for number in range(_IDLES)]
        daemon = host.daemon(_config(), wait=False)
        daemon.wait_ready(60)
        listener = host.popen(host.python, f"{SOURCE}/tests/endurance/listener.py", URI)
        listener.wait_line("{")
        streams = [(host.outside, (address, TCP_PORT)) for address in (PUBLIC4, PUBLIC6)]
        with transfers(streams, (host.outside, (PUBLIC4, UDP_PORT)), STEADY) as going:
            yield Scene(host, daemon, listener, lasting[0], passing, idle, going)


def _guest(host: Host, name: str, number: int) -> LxcGuest:
    return LxcGuest(host, name, Link(NETWORK, (f"192.168.122.{number}/24", f"2001:db8:122::{number}/64")))


def _config() -> str:
    speaking = [f"{TCP_PORT}", f"{UDP_PORT}/udp"]
    entries = [_entry(STEADY, "192.168.122.10", speaking), _entry(STEADY, "2001:db8:122::10", speaking)]
    entries += [
        _entry(f"lasting{number}", f"192.168.122.{20 + number}", _ports(10000 + 100 * number, _LASTING_PORTS))
        for number in range(_LASTING)
    ]
    entries += [
        _entry(f"{PASSING}{number}", f"{_PASSING_AT}{number}", _ports(_PASSING_FROM + 100 * number, _PASSING_PORTS))
        for number in range(_PASSING)
    ]
    left = _FORWARDS - 2 * len(speaking) - _LASTING * _LASTING_PORTS - _PASSING * _PASSING_PORTS
    entries += [
        _entry(f"{IDLE}{number}", f"192.168.122.{60 + number}", _ports(20000 + 100 * number, left // _IDLES))
        for number in range(_IDLES)
    ]
    return "\n".join([_HEAD, *entries])


def _ports(first: int, count: int) -> list[str]:
    return [f"{first + index}:80" for index in range(count)]


def _entry(domain: str, address: str, ports: list[str]) -> str:
    listed = ", ".join(f'"{port}"' for port in ports)
    return f'[[forward]]\ndomain = "{domain}"\naddress = "{address}"\nports = [{listed}]\n'
