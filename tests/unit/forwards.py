"""Short ways to write forwards in tests."""

from ipaddress import ip_address, ip_network

from fwdaemon.desired import Forward
from fwdaemon.model import Address, PortRange, Protocol


def address(text: str) -> Address:
    return ip_address(text)


def ports(text: str) -> PortRange:
    first, _, last = text.partition("-")
    return PortRange(int(first), int(last or first))


def forward(
    spec: str, target: str, *, domain: str = "web1", interface: str | None = None, sources: tuple[str, ...] = ()
) -> Forward:
    """Write `tcp *:80` or `udp 198.51.100.7:30-40` for the host's side, `192.168.122.50:80` for the guest's."""
    protocol, _, listening = spec.partition(" ")
    listen, _, host_ports = listening.rpartition(":")
    guest, _, guest_ports = target.rpartition(":")
    return Forward(
        domain=domain,
        protocol=Protocol(protocol),
        listen=None if listen == "*" else ip_address(listen.strip("[]")),
        ports=ports(host_ports),
        target=ip_address(guest.strip("[]")),
        target_ports=ports(guest_ports),
        interface=interface,
        sources=tuple(ip_network(source) for source in sources),
    )
