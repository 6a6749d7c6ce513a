"""Short ways to write forwards, 1:1 NATs and routes in tests, and to make up any."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import strategies as st

from fwdaemon.core.exposures import Forward, Nat, Route
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, PortRange, Protocol, Subnet


def address(text: str) -> Address:
    return ip_address(text)


def ports(text: str) -> PortRange:
    first, _, last = text.partition("-")
    return PortRange(int(first), int(last or first))


def subnets(*texts: str) -> frozenset[Subnet]:
    return frozenset(map(ip_network, texts))


def forward(  # noqa: PLR0913  a forward has that many sides
    spec: str,
    target: str,
    *,
    domain: str = "web1",
    interface: str | None = None,
    sources: tuple[str, ...] = (),
    masquerade: bool = False,
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
        masquerade=masquerade,
    )


def nat(  # noqa: PLR0913  a 1:1 NAT has that many sides
    public: str,
    target: str,
    *,
    domain: str = "mail",
    assign: str | None = None,
    bridge: str | None = None,
    mac: str | None = None,
) -> Nat:
    """Write `198.51.100.8` for the host's side, `192.168.122.51` for the guest's."""
    return Nat(domain, ip_address(public), ip_address(target), assign, bridge, mac=mac)


def route(
    subnet: str,
    bridge: str = "virbr1",
    *,
    network: str = "public",
    proxy: str | None = None,
    let_out: bool = False,
) -> Route:
    """Write `203.0.113.64/29`."""
    return Route(network, ip_network(subnet), bridge, proxy, let_out=let_out)


def some_forwards() -> st.SearchStrategy[Forward]:
    """Any forward of IPv4, on few ports, so that many of them overlap."""
    return st.builds(
        lambda protocol, listen, first, width, shift, guest, link, sources, masquerade: forward(
            f"{protocol} {listen}:{first}-{first + width}",
            f"{guest}:{first + shift}-{first + shift + width}",
            interface=link,
            sources=sources,
            masquerade=masquerade,
        ),
        st.sampled_from(["tcp", "udp", "sctp"]),
        st.sampled_from(["*", "198.51.100.7"]),
        st.integers(1, 40),
        st.integers(0, 9),
        st.sampled_from([0, 0, 100]),
        st.sampled_from(["192.168.122.50", "192.168.122.51", "192.168.122.52"]),
        st.sampled_from([None, "eth0", "eth1"]),
        st.sampled_from([(), ("203.0.113.0/24", "203.0.113.7/32"), ("192.0.2.1/32",)]),
        st.sampled_from([False, False, False, True]),
    )


def some_nats() -> st.SearchStrategy[frozenset[Nat]]:
    """Any 1:1 NATs of IPv4: no public address twice, but one guest may have several, and one that is routed to it."""
    publics = ["198.51.100.7", "198.51.100.8", "198.51.100.9"]
    guests = ["192.168.122.50", "192.168.122.51", "203.0.113.66"]
    return st.dictionaries(st.sampled_from(publics), st.sampled_from(guests)).map(
        lambda pairs: frozenset(nat(public, guest) for public, guest in pairs.items())
    )


def some_routes() -> st.SearchStrategy[frozenset[Route]]:
    """Any routes of IPv4: side by side, never one in another."""
    subnets = ["203.0.113.64/29", "203.0.113.72/29", "203.0.113.80/32"]
    return st.dictionaries(st.sampled_from(subnets), st.sampled_from(["virbr1", "virbr2"])).map(
        lambda pairs: frozenset(route(subnet, bridge) for subnet, bridge in pairs.items())
    )


def some_states() -> st.SearchStrategy[Desired]:
    """Any state of IPv4, of few exposures of every kind."""
    return st.builds(
        Desired,
        forwards=st.frozensets(some_forwards(), max_size=8),
        nats=some_nats(),
        routes=some_routes(),
        uplinks=st.frozensets(st.sampled_from(["eth0", "eth1"])),
        localhost=st.booleans(),
    )


def in_ipv6(desired: Desired) -> Desired:
    """Give the same state with each address of NATs and routes in 2001:db8::/96."""

    def longer(item: Address) -> Address:
        return ip_address("2001:db8::") + int(item)

    return replace(
        desired,
        nats=frozenset(replace(nat, public=longer(nat.public), target=longer(nat.target)) for nat in desired.nats),
        routes=frozenset(
            replace(
                route,
                subnet=ip_network((longer(route.subnet.network_address), 96 + route.subnet.prefixlen)),
            )
            for route in desired.routes
        ),
    )
