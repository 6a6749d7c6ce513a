"""The N forwards of the benchmark: as a configuration of ours, and as hook scripts make them. Pure.

They lead to ten guests in turn, the last one to the server that is measured.
"""

from collections.abc import Sequence

from bench.hook_scripts import HookForward

# The host's own address; `tests.lab.host` has it too, but wants libvirt.
PUBLIC = "198.51.100.1"
GUESTS = 10
LAST = "last"
SUBNET = "192.168.122.0/24"
SERVER = "192.168.122.250"
# The server's ports: one greets with a byte, the other sends without end.
GREETING, STREAM = 80, 81
# The port of the host that leads to the latter, where there is one.
STREAM_PORT = 10000
# Ten thousand ports from here on end below those that clients take (ip_local_port_range).
FIRST_PORT = 10001


def guest_name(guest: int) -> str:
    """The domain's name."""
    return f"guest{guest}"


def guest_address(guest: int) -> str:
    """Where the guest is."""
    return f"192.168.122.{10 + guest}"


def last_port(size: int) -> int:
    """The port of the host that leads to the server."""
    return FIRST_PORT + size - 1


def config(size: int, *, resync: str = "30s", first: int = FIRST_PORT, stream: bool = False) -> str:
    """Write a configuration of `size` forwards; with `stream` one more, to the server that sends without end."""
    head = f'[daemon]\nlibvirt = ["lxc:///system"]\nresync = "{resync}"\n'
    ports = range(first, first + size - 1)
    guests = [
        _entry(guest_name(guest), guest_address(guest), [f"{port}:{GREETING}" for port in ports[guest::GUESTS]])
        for guest in range(GUESTS)
    ]
    last = [f"{first + size - 1}:{GREETING}", *([f"{STREAM_PORT}:{STREAM}"] if stream else [])]
    return head + "".join(guests) + _entry(LAST, SERVER, last)


def _entry(domain: str, address: str, ports: Sequence[str]) -> str:
    if not ports:
        return ""
    listed = ", ".join(f'"{port}"' for port in ports)
    return f'\n[[forward]]\ndomain = "{domain}"\naddress = "{address}"\nports = [{listed}]\n'


def hook_forwards(size: int, *, stream: bool = False) -> list[HookForward]:
    """The same forwards for hook scripts, in the same order."""
    guests = (guest_address(index % GUESTS) for index in range(size - 1))
    forwards = [HookForward(PUBLIC, FIRST_PORT + index, guest, GREETING) for index, guest in enumerate(guests)]
    forwards.append(HookForward(PUBLIC, last_port(size), SERVER, GREETING))
    return [*forwards, HookForward(PUBLIC, STREAM_PORT, SERVER, STREAM)] if stream else forwards
