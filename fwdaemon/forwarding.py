"""Turns on IP forwarding when a forward needs it.

It is never turned off again: others on the host may rely on it by then, and nobody can tell.
"""

import os
from pathlib import Path

from fwdaemon import sysctl
from fwdaemon.errors import KernelError
from fwdaemon.model import Family
from fwdaemon.naming import shown

_SWITCHES = {Family.IPV4: "net.ipv4.ip_forward", Family.IPV6: "net.ipv6.conf.all.forwarding"}
_ROUTES = Path("/proc/net/ipv6_route")
_RTF_ADDRCONF = 0x00040000  # linux/ipv6_route.h: the route came with a router advertisement


def is_on(family: Family) -> bool:
    """Whether the host forwards packets of a family."""
    return sysctl.read(_SWITCHES[family]) == "1"


def turn_on(family: Family) -> str:
    """Make the host forward packets of a family, and give the name of the sysctl that was written.

    Raises:
        KernelError: it could not be written, or the host would lose its own default route: the kernel ignores router
            advertisements on a forwarding host unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst).

    """
    if family is Family.IPV6 and (links := _links_that_would_lose_their_route()):
        raise KernelError(
            "IPv6 forwarding stays off: it would take away the default route that"
            f" {', '.join(map(shown, links))} learned from a router; set {shown(_accept_ra(links[0]))} = 2 first"
        )
    sysctl.write(_SWITCHES[family], "1")
    return _SWITCHES[family]


def _links_that_would_lose_their_route() -> list[str]:
    """Find links with a default route from a router advertisement, and accept_ra at 1."""
    try:
        # Bytes are parted at blanks of ASCII alone, and those no link can have in its name (dev_valid_name).
        routes = [line.split() for line in _ROUTES.read_bytes().splitlines()]
    except OSError:
        return []
    # Destination, its prefix length, …, flags, device: all but the device in hexadecimal (net/ipv6/route.c).
    learned = {os.fsdecode(route[9]) for route in routes if route[1] == b"00" and int(route[8], 16) & _RTF_ADDRCONF}
    return sorted(link for link in learned if sysctl.read(_accept_ra(link)) == "1")


def _accept_ra(link: str) -> str:
    return sysctl.of_interface(Family.IPV6, link, "accept_ra")
