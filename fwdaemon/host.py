"""The seam to rtnetlink: the host's own addresses, its neighbour table, which bridge a tap is plugged into.

Everything is read afresh, through one short-lived socket. The only change made here is to have the kernel ask a
neighbour again. pyroute2 is imported at the first use, as that takes 150 ms.
"""

import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from typing import Any, Final

from fwdaemon.errors import KernelError
from fwdaemon.inventory import HostAddress
from fwdaemon.libvirt_xml import guest_address, normal_mac
from fwdaemon.observation import HostObservation, Neighbour
from fwdaemon.outer import outer_interfaces

# linux/neighbour.h: REACHABLE, STALE, DELAY, PROBE, PERMANENT. In the others nobody answered, or was asked.
USABLE_NEIGHBOUR_STATES: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80

_NUD_PROBE: Final = 0x10


def observe_host(devices_without_bridge: Collection[str] = ()) -> HostObservation:
    """Read this network namespace's addresses and neighbours, and the bridges of these devices. Blocks.

    Raises:
        KernelError: the kernel did not answer.

    """
    from pyroute2 import IPRoute  # noqa: PLC0415 - 150 ms
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - the same

    try:
        with IPRoute() as rtnetlink:
            return _observe(rtnetlink, devices_without_bridge)
    except (NetlinkError, OSError) as error:
        raise KernelError(f"the kernel did not tell its addresses and neighbours: {error}") from error


def ask_again(neighbours: Collection[Neighbour]) -> None:
    """Have the kernel ask these whether they are there, and hold that they are until they fail to answer, in 3 s.

    Raises:
        KernelError: the kernel did not answer.

    """
    if not neighbours:
        return
    from pyroute2 import IPRoute  # noqa: PLC0415 - 150 ms

    try:
        with IPRoute() as rtnetlink:
            for neighbour in neighbours:
                _ask_again(rtnetlink, neighbour)
    except OSError as error:
        raise KernelError(f"the kernel did not ask neighbours again: {error}") from error


def _ask_again(rtnetlink: Any, neighbour: Neighbour) -> None:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - 150 ms

    with suppress(NetlinkError, OSError):  # the entry, or its interface, went meanwhile
        index = socket.if_nametoindex(neighbour.device)
        rtnetlink.neigh("change", dst=str(neighbour.address), lladdr=neighbour.mac, ifindex=index, state=_NUD_PROBE)


def _observe(rtnetlink: Any, devices_without_bridge: Collection[str]) -> HostObservation:
    names = dict(socket.if_nameindex())
    return HostObservation(
        addresses=tuple(_addresses(rtnetlink.get_addr(), names)),
        neighbours=tuple(_neighbours(rtnetlink.get_neighbours(), names)),
        bridges=dict(_bridges(rtnetlink.get_links, devices_without_bridge, names)),
        outer=outer_interfaces(),
    )


def _addresses(messages: Iterable[Any], names: dict[int, str]) -> Iterator[HostAddress]:
    for message in messages:
        device = names.get(message["index"])
        peer = message.get_attr("IFA_ADDRESS")
        if device is not None and peer is not None:
            # On a point-to-point link IFA_ADDRESS is the other end, and IFA_LOCAL ours (rtnetlink(7)).
            own = message.get_attr("IFA_LOCAL") or peer
            yield HostAddress(ip_address(own), ip_interface(f"{peer}/{message['prefixlen']}").network, device)


def _neighbours(messages: Iterable[Any], names: dict[int, str]) -> Iterator[Neighbour]:
    for message in messages:
        device = names.get(message["ifindex"])
        address = guest_address(message.get_attr("NDA_DST"))
        mac = normal_mac(message.get_attr("NDA_LLADDR"))
        if device is None or address is None or mac is None or not message["state"] & USABLE_NEIGHBOUR_STATES:
            continue
        if not (address.is_multicast or address.is_link_local):
            yield Neighbour(device, mac, address)


def _bridges(
    get_links: Callable[..., Iterable[Any]], devices: Collection[str], names: dict[int, str]
) -> Iterator[tuple[str, str]]:
    indices = {name: index for index, name in names.items()}
    for device in devices:
        with suppress(KeyError):  # unplugged meanwhile, or in no bridge
            for link in get_links(indices[device]):
                yield device, names[link.get_attr("IFLA_MASTER")]
