"""Which address a host is reached at when nobody says: the first IPv4 address of the default route's interface."""

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Any, Final

from fwdaemon.errors import KernelError

_MAIN_TABLE: Final = 254  # RT_TABLE_MAIN of linux/rtnetlink.h


def default_address() -> IPv4Address | None:
    """Ask the kernel; `None` without a default route, or where its interface has no IPv4 address.

    Raises:
        KernelError: the kernel did not answer.

    """
    from pyroute2 import IPRoute  # noqa: PLC0415 - 150 ms
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - the same

    try:
        with IPRoute() as rtnetlink:
            routes = rtnetlink.get_default_routes(family=socket.AF_INET, table=_MAIN_TABLE)
            device = _device(routes)
            return None if device is None else _first_address(rtnetlink.get_addr(family=socket.AF_INET, index=device))
    except (NetlinkError, OSError) as error:
        raise KernelError(f"the kernel did not tell its default route: {error}") from error


def _device(routes: Iterable[Any]) -> int | None:
    """Give the interface of the best route: the lowest metric, and of several the first, as `ip route` lists them."""
    best = min(routes, key=lambda route: route.get_attr("RTA_PRIORITY") or 0, default=None)
    return None if best is None else best.get_attr("RTA_OIF")


def _first_address(messages: Iterable[Any]) -> IPv4Address | None:
    return next((IPv4Address(message.get_attr("IFA_LOCAL")) for message in messages), None)
