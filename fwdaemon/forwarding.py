"""Turns on IP forwarding when a forward needs it; the only module that writes a sysctl.

It is never turned off again: others on the host may rely on it by then, and nobody can tell.
"""

from pathlib import Path

from fwdaemon.errors import KernelError
from fwdaemon.model import Family

_SYSCTL = Path("/proc/sys")
_SWITCHES = {Family.IPV4: "net/ipv4/ip_forward", Family.IPV6: "net/ipv6/conf/all/forwarding"}
_ROUTES = Path("/proc/net/ipv6_route")
_RTF_ADDRCONF = 0x00040000  # linux/ipv6_route.h: the route came with a router advertisement


def is_on(family: Family) -> bool:
    """Whether the host forwards packets of a family."""
    return _read(_SYSCTL / _SWITCHES[family]) == "1"


def turn_on(family: Family) -> str:
    """Make the host forward packets of a family, and give the name of the sysctl that was written.

    Raises:
        KernelError: it could not be written, or the host would lose its own default route: the kernel ignores router
            advertisements on a forwarding host unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst).

    """
    if family is Family.IPV6 and (links := _links_that_would_lose_their_route()):
        raise KernelError(
            f"IPv6 forwarding stays off: it would take away the default route that {', '.join(links)} learned from a"
            f" router; set net.ipv6.conf.{links[0]}.accept_ra = 2 first"
        )
    name = _SWITCHES[family].replace("/", ".")
    try:
        (_SYSCTL / _SWITCHES[family]).write_text("1\n")
    except OSError as error:
        raise KernelError(f"cannot turn on {name}: {error.strerror}; turn it on with sysctl") from error
    return name


def _links_that_would_lose_their_route() -> list[str]:
    """Find links with a default route from a router advertisement, and accept_ra at 1."""
    try:
        routes = [line.split() for line in _ROUTES.read_text().splitlines()]
    except OSError:
        return []
    # Destination, its prefix length, …, flags, device: all but the device in hexadecimal (net/ipv6/route.c).
    learned = {route[9] for route in routes if route[1] == "00" and int(route[8], 16) & _RTF_ADDRCONF}
    return sorted(link for link in learned if _read(_SYSCTL / "net/ipv6/conf" / link / "accept_ra") == "1")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
