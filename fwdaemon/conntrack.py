"""Ends tracked connections, and lists them. The only module that touches the kernel's connection table.

The kernel picks the candidates, by our connection mark or by protocol, so that a large table costs little.
"""

import errno
import logging
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from fwdaemon.conntrack_listing import (
    DELETE,
    GET,
    Entry,
    OpenFlow,
    ending_request,
    listing_request,
    protocol_request,
    read_entry,
    read_open_flow,
)
from fwdaemon.desired import Forward, Nat, Opening, Route
from fwdaemon.errors import KernelError
from fwdaemon.flows import Carriers, Flow, is_claimed, is_outdated, reaching
from fwdaemon.model import Address, Family, Protocol
from fwdaemon.netlink_socket import NETFILTER, NetlinkSocket, RefusalError

_log = logging.getLogger(__name__)

_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_PINGS = {Family.IPV4: socket.IPPROTO_ICMP, Family.IPV6: socket.IPPROTO_ICMPV6}


def end_outdated(
    live: Collection[Opening], mark: int, local: Collection[Address], refuse: Callable[[Collection[Flow]], None]
) -> int:
    """End the flows with our mark that no live opening carries, and give their number.

    `local` are the host's own addresses. `refuse` is told of them just before: what a guest sends on a forgotten flow
    would begin it anew.

    Raises:
        KernelError: the kernel does not list its connections.

    """
    with _asking() as asking:
        entries = _entries(asking, listing_request(mark))
        carriers = Carriers(reaching(live, [entry.flow for entry in entries]))
        outdated = [entry for entry in entries if is_outdated(entry.flow, carriers, local)]
        if ported := [entry.flow for entry in outdated if entry.flow.protocol is not None]:
            refuse(ported)
        return sum(_end(asking, entry) for entry in outdated)


def end_claimed(added: Collection[Opening], local: Collection[Address]) -> int:
    """End the flows to the host itself that openings have just taken and that have no end of their own.

    Those are UDP, and pings where an address is taken whole. Gives their number.

    Raises:
        KernelError: the kernel does not list its connections.

    """
    taken = [opening for opening in added if not isinstance(opening, Route)]
    return sum(_end_claimed(family, [item for item in taken if item.family is family], local) for family in Family)


def open_flows(mark: int) -> Iterator[OpenFlow]:
    """List the open connections that have our mark.

    Raises:
        KernelError: the kernel does not list them.

    """
    with _asking() as asking:
        # A part at a time: there may be tens of thousands.
        found = map(read_open_flow, asking.stream(GET, listing_request(mark)))
        yield from (flow for flow in found if flow is not None)


def _end_claimed(family: Family, taken: Collection[Forward | Nat], local: Collection[Address]) -> int:
    ended = 0
    for protocol in _endless(family, taken):
        with _asking() as asking:
            entries = _entries(asking, protocol_request(_FAMILIES[family], protocol))
            claimed = [entry for entry in entries if is_claimed(entry.flow, taken, local)]
            ended += sum(_end(asking, entry) for entry in claimed)
    return ended


def _endless(family: Family, taken: Iterable[Forward | Nat]) -> list[int]:
    """Give the protocols without an end of their own that any of these openings takes."""
    whole = any(isinstance(opening, Nat) for opening in taken)
    udp = whole or any(isinstance(item, Forward) and item.protocol is Protocol.UDP for item in taken)
    return [*([socket.IPPROTO_UDP] if udp else []), *([_PINGS[family]] if whole else [])]


@contextmanager
def _asking() -> Iterator[NetlinkSocket]:
    try:
        with NetlinkSocket(NETFILTER) as asking:
            yield asking
    except OSError as error:
        raise KernelError(f"the kernel does not list its connections: {error.strerror or error}") from error


def _entries(asking: NetlinkSocket, request: bytes) -> list[Entry]:
    found = map(read_entry, asking.stream(GET, request))
    return [entry for entry in found if entry is not None]


def _end(asking: NetlinkSocket, entry: Entry) -> bool:
    try:
        asking.ask(DELETE, ending_request(_FAMILIES[entry.flow.family], entry))
    except RefusalError as error:
        if error.errno != errno.ENOENT:  # it may have ended by itself
            _log.warning("cannot end the connection %s: %s", entry.flow, error.strerror)
        return False
    return True
