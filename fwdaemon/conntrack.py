"""Ends tracked connections, and lists them. The only module that touches the kernel's connection table.

The kernel picks the candidates, by our connection mark or by protocol, so that a large table costs little.
"""

import errno
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import ip_address
from typing import Any

from fwdaemon.conntrack_listing import OpenFlow, listing_request, read_listing
from fwdaemon.desired import Forward, Nat, Opening, Route
from fwdaemon.errors import KernelError
from fwdaemon.flows import Carriers, Flow, is_claimed, is_outdated
from fwdaemon.model import Address, Family, Protocol

_log = logging.getLogger(__name__)

_PROTOCOLS = {
    socket.IPPROTO_TCP: Protocol.TCP,
    socket.IPPROTO_UDP: Protocol.UDP,
    socket.IPPROTO_SCTP: Protocol.SCTP,
}
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_NETLINK_NETFILTER = 12  # linux/netlink.h
_DATAGRAM = 1 << 16  # what the kernel puts into one part of a listing at most (af_netlink.c)
_LISTING_S = 10.0
_PINGS = {Family.IPV4: socket.IPPROTO_ICMP, Family.IPV6: socket.IPPROTO_ICMPV6}
# linux/netfilter/nfnetlink_conntrack.h: what tells two pings apart.
_PING_PARTS = {"icmp_id": "ID", "icmp_type": "TYPE", "icmp_code": "CODE"}


def end_outdated(
    live: Collection[Opening], mark: int, local: Collection[Address], refuse: Callable[[Collection[Flow]], None]
) -> int:
    """End the flows with our mark that no live opening carries, and give their number.

    `local` are the host's own addresses. `refuse` is told of them just before: what a guest sends on a forgotten flow
    would begin it anew.
    """
    carriers = Carriers(live)
    ended = 0
    for family in Family:
        with _table(family) as table:
            entries = _entries(table, family, mark=mark, mark_mask=mark)
            outdated = [(flow, key) for flow, key in entries if is_outdated(flow, carriers, local)]
            if ported := [flow for flow, _ in outdated if flow.protocol is not None]:
                refuse(ported)
            ended += sum(_end(table, key) for _, key in outdated)
    return ended


def end_claimed(added: Collection[Opening], local: Collection[Address]) -> int:
    """End the flows to the host itself that openings have just taken and that have no end of their own.

    Those are UDP, and pings where an address is taken whole. Gives their number.
    """
    taken = [opening for opening in added if not isinstance(opening, Route)]
    return sum(_end_claimed(family, [item for item in taken if item.family is family], local) for family in Family)


def open_flows(mark: int) -> Iterator[OpenFlow]:
    """List the open connections that have our mark.

    Raises:
        KernelError: the kernel does not list them.

    """
    for family in Family:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as asking:
            asking.settimeout(_LISTING_S)
            try:
                yield from _listed(asking, _FAMILIES[family], mark)
            except OSError as error:
                raise KernelError(f"the kernel does not list its connections: {error.strerror or error}") from error


def _listed(asking: socket.socket, family: int, mark: int) -> Iterator[OpenFlow]:
    asking.send(listing_request(family, mark))
    ended = None
    while ended is None:
        flows, ended = read_listing(asking.recv(_DATAGRAM))
        yield from flows
    if ended:
        raise OSError(ended, os.strerror(ended))


def _end_claimed(family: Family, taken: Collection[Forward | Nat], local: Collection[Address]) -> int:
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple  # noqa: PLC0415  takes 150 ms to import

    ended = 0
    for protocol in _endless(family, taken):
        with _table(family) as table:
            pick = NFCTAttrTuple(family=_FAMILIES[family], proto=protocol)
            claimed = [key for flow, key in _entries(table, family, tuple_orig=pick) if is_claimed(flow, taken, local)]
            ended += sum(_end(table, key) for key in claimed)
    return ended


def _endless(family: Family, taken: Iterable[Forward | Nat]) -> list[int]:
    """Give the protocols without an end of their own that any of these openings takes."""
    whole = any(isinstance(opening, Nat) for opening in taken)
    udp = whole or any(isinstance(item, Forward) and item.protocol is Protocol.UDP for item in taken)
    return [*([socket.IPPROTO_UDP] if udp else []), *([_PINGS[family]] if whole else [])]


def _table(family: Family) -> Any:
    from pyroute2 import Conntrack  # noqa: PLC0415  takes 150 ms to import

    return Conntrack(nfgen_family=_FAMILIES[family])


def _entries(table: Any, family: Family, **pick: Any) -> list[tuple[Flow, Any]]:
    """Read the entries the kernel picks, each with what it takes to end it."""
    from pyroute2 import NetlinkError  # noqa: PLC0415  as above

    try:
        messages = list(table.dump(**pick))
    except NetlinkError as error:
        raise KernelError(f"the kernel does not list its connections: {error}") from error
    return [_read(message, family) for message in messages]


def _read(message: Any, family: Family) -> tuple[Flow, Any]:
    # pyroute2's own reading of an entry leaves out the ports of SCTP.
    sent, answered = (_parts(message.get_attr(name), family) for name in ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY"))
    flow = Flow(
        _PROTOCOLS.get(sent["proto"]),
        ip_address(sent["saddr"]),
        ip_address(sent["daddr"]),
        sent.get("dport") or 0,
        ip_address(answered["saddr"]),
        answered.get("sport") or 0,
        ip_address(answered["daddr"]),
        answered.get("dport") or 0,
    )
    return flow, sent


def _parts(entry: Any, family: Family) -> dict[str, Any]:
    """Read one direction of an entry by the names of `NFCTAttrTuple`'s arguments."""
    ip, proto = entry.get_attr("CTA_TUPLE_IP"), entry.get_attr("CTA_TUPLE_PROTO")
    parts = {
        "saddr": ip.get_attr(f"CTA_IP_V{family.value}_SRC"),
        "daddr": ip.get_attr(f"CTA_IP_V{family.value}_DST"),
        "proto": proto.get_attr("CTA_PROTO_NUM"),
        "sport": proto.get_attr("CTA_PROTO_SRC_PORT"),
        "dport": proto.get_attr("CTA_PROTO_DST_PORT"),
    }
    ping = "CTA_PROTO_ICMP" if family is Family.IPV4 else "CTA_PROTO_ICMPV6"
    return parts | {name: proto.get_attr(f"{ping}_{part}") for name, part in _PING_PARTS.items()}


def _end(table: Any, key: dict[str, Any]) -> bool:
    from pyroute2 import NetlinkError  # noqa: PLC0415  as above
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple  # noqa: PLC0415  as above

    family = _FAMILIES[Family.of(ip_address(key["saddr"]))]
    try:
        table.entry("del", tuple_orig=NFCTAttrTuple(family=family, **key))
    except NetlinkError as error:
        if error.code != errno.ENOENT:  # it may have ended by itself
            _log.warning("cannot end the connection %s: %s", key, error)
        return False
    return True
