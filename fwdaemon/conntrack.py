"""Ends tracked connections, through pyroute2. The only module that touches the kernel's connection table.

The kernel picks the candidates, by our connection mark or by protocol, so that a large table costs little.
"""

import errno
import logging
import socket
from collections.abc import Callable, Collection, Iterator
from ipaddress import ip_address
from typing import Any

from fwdaemon.desired import Forward
from fwdaemon.errors import KernelError
from fwdaemon.flows import Carriers, Flow, is_claimed, is_outdated
from fwdaemon.model import Address, Family, Protocol

_log = logging.getLogger(__name__)

_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP, Protocol.SCTP: socket.IPPROTO_SCTP}
_PROTOCOLS = {int(number): protocol for protocol, number in _NUMBERS.items()}
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


def end_outdated(live: Collection[Forward], mark: int, refuse: Callable[[Collection[Flow]], None]) -> int:
    """End the flows with our mark that no live forward carries, and give their number.

    `refuse` is told of them just before: what a guest sends on a forgotten flow would begin it anew.
    """
    carriers = Carriers(live)
    ended = 0
    for table, entries in _tables({"mark": mark, "mark_mask": mark}):
        outdated = {flow: entry for flow, entry in entries if is_outdated(flow, carriers)}
        if outdated:
            refuse(outdated.keys())
        ended += sum(_end(table, entry) for entry in outdated.values())
    return ended


def end_claimed(added: Collection[Forward], local: Collection[Address]) -> int:
    """End the UDP flows to the host itself on ports that forwards have just taken, and give their number."""
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple  # noqa: PLC0415  takes 150 ms to import

    udp = [forward for forward in added if forward.protocol is Protocol.UDP]
    if not udp:
        return 0
    return sum(
        _end(table, entry)
        for table, entries in _tables({"tuple_orig": NFCTAttrTuple(proto=_NUMBERS[Protocol.UDP])})
        for flow, entry in entries
        if is_claimed(flow, udp, local)
    )


def _tables(pick: dict[str, Any]) -> Iterator[tuple[Any, list[tuple[Flow, Any]]]]:
    """Give each family's connection table with the entries the kernel picks."""
    from pyroute2 import Conntrack, NetlinkError  # noqa: PLC0415  takes 150 ms to import

    for family in _FAMILIES.values():
        with Conntrack(nfgen_family=family) as table:
            try:
                entries = list(table.dump_entries(**pick))
            except NetlinkError as error:
                raise KernelError(f"the kernel does not list its connections: {error}") from error
            yield table, [(flow, entry) for entry in entries if (flow := _flow(entry))]


def _flow(entry: Any) -> Flow | None:
    """Read an entry; `None` where its protocol has no ports that a forward could name."""
    sent, answered = entry.tuple_orig, entry.tuple_reply
    if sent.proto not in _PROTOCOLS:
        return None
    return Flow(
        _PROTOCOLS[sent.proto],
        ip_address(sent.saddr),
        ip_address(sent.daddr),
        sent.dport,
        ip_address(answered.saddr),
        answered.sport,
        ip_address(answered.daddr),
        answered.dport,
    )


def _end(table: Any, entry: Any) -> bool:
    from pyroute2 import NetlinkError  # noqa: PLC0415  as above

    try:
        table.entry("del", tuple_orig=entry.tuple_orig)
    except NetlinkError as error:
        if error.code != errno.ENOENT:  # it may have ended by itself
            _log.warning("cannot end the connection %s: %s", entry.tuple_orig, error)
        return False
    return True
