"""What the kernel tells of this host: its own addresses, its neighbour table, which bridge a tap is plugged into.

Everything is read afresh, through one short-lived socket. The only change made here is to have the kernel ask a
neighbour again.
"""

import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

from fwdaemon.inventory import HostAddress
from fwdaemon.observation import HostObservation, Neighbour
from fwdaemon.outer import outer_interfaces
from fwdaemon.rtnetlink.address import subnets
from fwdaemon.rtnetlink.client import RefusedError, Rtnetlink, interface_index
from fwdaemon.rtnetlink.link import master
from fwdaemon.rtnetlink.neighbour import KernelNeighbour, neighbours, probe


def observe_host(devices_without_bridge: Collection[str] = ()) -> HostObservation:
    """Read this network namespace's addresses and neighbours, and the bridges of these devices. Blocks.

    Raises:
        KernelError: the kernel did not answer.

    """
    with Rtnetlink() as kernel:
        names = dict(socket.if_nameindex())
        return HostObservation(
            addresses=tuple(_addresses(kernel, names)),
            neighbours=tuple(_neighbours(kernel, names)),
            bridges=dict(_bridges(kernel, devices_without_bridge, names)),
            outer=outer_interfaces(),
        )


def ask_again(doubtful: Collection[Neighbour]) -> None:
    """Have the kernel ask these whether they are there, and hold that they are until they fail to answer, in 3 s.

    Raises:
        KernelError: the kernel did not answer.

    """
    if not doubtful:
        return
    with Rtnetlink() as kernel:
        for neighbour in doubtful:
            index = interface_index(neighbour.device)
            with suppress(RefusedError):  # the entry, or its interface, went meanwhile
                if index is not None:
                    probe(kernel, KernelNeighbour(neighbour.address, neighbour.mac, index))


def _addresses(kernel: Rtnetlink, names: Mapping[int, str]) -> Iterator[HostAddress]:
    for own, subnet in subnets(kernel):
        if own.index in names:
            yield HostAddress(own.address, subnet, names[own.index])


def _neighbours(kernel: Rtnetlink, names: Mapping[int, str]) -> Iterator[Neighbour]:
    for entry in neighbours(kernel):
        if entry.index in names and not (entry.address.is_multicast or entry.address.is_link_local):
            yield Neighbour(names[entry.index], entry.mac, entry.address)


def _bridges(kernel: Rtnetlink, devices: Collection[str], names: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    for device in devices:
        index = interface_index(device)
        bridge = None if index is None else master(kernel, index)
        if bridge is not None and bridge in names:  # it may be unplugged meanwhile, or in no bridge
            yield device, names[bridge]
