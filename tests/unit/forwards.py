"""Short ways to write forwards in tests, and to make up any."""

from ipaddress import ip_address, ip_network

from hypothesis import strategies as st

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


def some_forwards() -> st.SearchStrategy[Forward]:
    """Any forward of IPv4, on few ports, so that many of them overlap."""
    return st.builds(
        lambda protocol, listen, first, width, shift, guest, link, sources: forward(
            f"{protocol} {listen}:{first}-{first + width}",
            f"{guest}:{first + shift}-{first + shift + width}",
            interface=link,
            sources=sources,
        ),
        st.sampled_from(["tcp", "udp", "sctp"]),
        st.sampled_from(["*", "198.51.100.7"]),
        st.integers(1, 40),
        st.integers(0, 9),
        st.sampled_from([0, 0, 100]),
        st.sampled_from(["192.168.122.50", "192.168.122.51", "192.168.122.52"]),
        st.sampled_from([None, "eth0", "eth1"]),
        st.sampled_from([(), ("203.0.113.0/24", "203.0.113.7/32"), ("192.0.2.1/32",)]),
    )
