"""Ends tracked connections, and lists them. The only module that touches the kernel's connection table.

The kernel picks candidates by address or protocol; it cannot pick them by label, so those with ours are picked here
while they are still bytes. So a large table costs little.
"""

import errno
import logging
import os
import re
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from itertools import chain, islice
from typing import Final

from fwdaemon.core.exposures import Claim, Exposure, Nat, Renaming
from fwdaemon.core.types import Address, Family, Protocol
from fwdaemon.errors import KernelError
from fwdaemon.kernel import sysctl
from fwdaemon.kernel.conntrack_listing import (
    DELETE,
    EXPECTED,
    GET,
    Entry,
    Lane,
    OpenFlow,
    ending_request,
    flow_of,
    has_label,
    labelled,
    listing_request,
    may_be_expected,
    open_lane,
    protocol_request,
    read_entry,
    read_flow,
    read_open_flow,
    sent_to,
    size_of,
    source_request,
)
from fwdaemon.kernel.netlink import NETFILTER, SOL_NETLINK, Message, NetlinkSocket
from fwdaemon.kernel.packets import Field, attach
from fwdaemon.resolve.flows import Flow, Judge, Strangers, is_claimed, is_resumed, is_strayed

_log = logging.getLogger(__name__)

# What a guest that moved to this host may go on with.
_CARRYING_ON = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
_PINGS = {Family.IPV4: socket.IPPROTO_ICMP, Family.IPV6: socket.IPPROTO_ICMPV6}
# The kernel walks through its whole table for each listing: with more guests, one of everything is less work. So it is
# while so few connections are open, whoever has them: they are read in less time than one more walk takes.
_GUESTS_AT_MOST = 8
_FEW = 1000
_OPEN: Final = "net.netfilter.nf_conntrack_count"
# To look for more addresses in each message is more work than to read where it goes.
_ADDRESSES_AT_MOST = 16
_BATCH = 1000
# So many ways are remembered at once.
_WAYS_AT_MOST = 4096
_WHOLE = bytes([16]) * 65536
# More answers than some hundred do not fit into a socket's buffer.
_AT_ONCE = 100


class _Lane:
    """Connections that go the same way, as they are counted."""

    __slots__ = ("first", "number", "size")

    def __init__(self, first: Lane) -> None:
        self.first = first
        self.number = 0
        self.size: int | None = None

    def count(self, size: int | None) -> None:
        self.number += 1
        if size is not None:
            self.size = size + (self.size or 0)


def outdated(
    judge: Judge,
    label: int,
    guests: Collection[Address] | None = None,
    clients: Collection[Address] = (),
    few: int = _FEW,
) -> Iterator[list[Entry]]:
    """Find the connections that are ours and outdated, some at a time.

    With `guests`, only those are looked at that these answer, or `clients` began, unless no more than `few` are open on
    this host. What an outdated connection expected, as one of FTP expects others, is outdated too.

    Raises:
        KernelError: the kernel does not list its connections.

    """
    masters, expected, batch = set[bytes](), list[Entry](), list[Entry]()
    wanted = _ours(label, judge.renamed)
    for message in _listed(_requests(guests, clients, masters, few), [*wanted, EXPECTED] if wanted else ()):
        if may_be_expected(message) and (entry := read_entry(message)) is not None and entry.master:
            expected.append(entry)
        elif (entry := _outdated(message, judge, label)) is not None:
            batch.append(entry)
            masters.add(entry.expecting)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield [*batch, *(entry for entry in expected if entry.master in masters)]


def _outdated(message: Message, judge: Judge, label: int) -> Entry | None:
    """Read a connection if it is outdated: of those of others, too, some are picked from the listing."""
    flow = read_flow(message)
    if flow is None:
        return None
    labelled, unlabelled = judge.is_outdated(flow), judge.is_misnamed(flow)
    entry = read_entry(message, flow) if labelled or unlabelled else None
    return entry if entry is not None and (labelled if entry.has(label) else unlabelled) else None


def end(entries: Sequence[Entry]) -> int:
    """End connections, and give the number of those that had not ended by themselves.

    Raises:
        KernelError: the kernel cannot be asked.

    """
    with _asking() as asking:
        return len(_end(asking, entries))


def end_claimed(added: Collection[Exposure], local: Collection[Address]) -> list[Flow]:
    """End the flows to the host itself that exposures have just taken and that have no end of their own, and give them.

    Those are UDP, and pings where an address is taken whole.

    Raises:
        KernelError: the kernel does not list its connections.

    """
    claims = [exposure.claim for exposure in added]
    taken = {family: [claim for claim in claims if claim.family is family] for family in Family}
    endless = ((family, protocol) for family in Family for protocol in _endless(family, taken[family]))
    requests = (protocol_request(family.domain, protocol) for family, protocol in endless)
    return _end_listed(requests, lambda flow: is_claimed(flow, taken[flow.family], local))


def end_flows(flows: Collection[Flow]) -> int:
    """End just these, all of UDP, and give their number.

    Raises:
        KernelError: the kernel does not list its connections.

    """
    families = sorted({flow.family for flow in flows})
    requests = (protocol_request(family.domain, socket.IPPROTO_UDP) for family in families)
    return len(_end_listed(requests, flows.__contains__))


def end_strayed(arrived: Collection[Nat]) -> int:
    """End the flows of guests that were not translated as their public address is, before its rules were there.

    For guests that have just arrived from another host: they go on with connections that began there, and what was
    decided about the first packet here, as by libvirt's masquerade, would hold for all that follow. So it would for
    what clients sent to the public address: a host that the guest has left minutes ago has had some of that. Gives
    their number.

    Raises:
        KernelError: the kernel does not list its connections.

    """
    public = defaultdict[Address, set[Address]](set)
    for nat in arrived:
        public[nat.target].add(nat.public)
    families, taken = sorted({nat.family for nat in arrived}), {nat.public for nat in arrived}
    requests = (protocol_request(family.domain, protocol) for family in families for protocol in _CARRYING_ON)
    return len(_end_listed(requests, lambda flow: is_strayed(flow, public, taken)))


def end_strangers(strangers: Strangers, label: int) -> int:
    """End the flows that have slipped in, and give their number; what an open connection expected goes on with it.

    Raises:
        KernelError: the kernel does not list its connections.

    """
    ended = 0
    found = chain.from_iterable(_strangers(family, strangers, label) for family in sorted(strangers.families))
    while batch := [*islice(found, _BATCH)]:
        ended += end(batch)
    return ended


def _strangers(family: Family, strangers: Strangers, label: int) -> Iterator[Entry]:
    """Find them, a part at a time; most connections have our label, so that is what is looked for first."""
    with _asking() as asking:
        for message in asking.stream(GET, listing_request(family.domain)):
            if has_label(message, label) or (flow := read_flow(message)) is None or not strangers.include(flow):
                continue
            if (entry := read_entry(message)) is not None and not entry.master:
                yield entry


def end_resumed(taken_over: Collection[Address]) -> int:
    """End what is known of connections of addresses that have just been taken over from another host.

    They went on there meanwhile, maybe after they had been here: what is known is of another time, and nothing that is
    sent now would fit it. The next packet has them known anew. Gives their number.

    Raises:
        KernelError: the kernel does not list its connections.

    """
    requests = _requests(taken_over, taken_over, (), _FEW) if taken_over else []
    return len(_end_listed(requests, lambda flow: is_resumed(flow, taken_over)))


def open_flows(
    label: int, octets: Sequence[int] = _WHOLE, renamed: Collection[Renaming] = frozenset()
) -> Iterator[OpenFlow]:
    """List the open connections that have our label, or that guests opened; those that go the same way are few.

    `octets` says for each port to which translated ones were sent how many octets of the source distinguish two ways.

    Raises:
        KernelError: the kernel does not list them.

    """
    lanes = dict[tuple[int | bytes, ...], _Lane]()
    with _asking() as asking:
        # A part at a time: there may be hundreds of thousands.
        for message in asking.stream(GET, listing_request(), _ours(label, renamed)):
            if renamed and not _is_ours(message, label, renamed):
                continue
            if (lane := open_lane(message.body)) is None:
                if (flow := read_open_flow(message)) is not None:
                    yield flow
                continue
            way = lane.way(octets[int.from_bytes(lane.destination_port)]) if lane.translated else lane
            if (known := lanes.get(way)) is None:
                if len(lanes) >= _WAYS_AT_MOST:  # each client may have its own
                    yield from map(_told, lanes.values())
                    lanes.clear()
                known = lanes[way] = _Lane(lane)
            known.count(size_of(message.body))
    yield from map(_told, lanes.values())


def _told(lane: "_Lane") -> OpenFlow:
    return OpenFlow(flow_of(lane.first), lane.size, lane.number)


def _listed(requests: Iterable[bytes], holding: Sequence[re.Pattern[bytes]]) -> Iterator[Message]:
    """List what is asked for; with patterns, what holds one of them."""
    for request in requests:
        with _asking() as asking:
            yield from asking.stream(GET, request, holding)


def _ours(label: int, renamed: Collection[Renaming]) -> list[re.Pattern[bytes]]:
    """Give what is found in the message of each connection that is ours, and in some others; nothing is in all."""
    public = {address.packed for _, address in renamed}
    return [labelled(label), *map(sent_to, sorted(public))] if len(public) <= _ADDRESSES_AT_MOST else []


def _is_ours(message: Message, label: int, renamed: Collection[Renaming]) -> bool:
    """Whether a connection has our label, or was opened by a guest under its public address."""
    if labelled(label).search(message.body) is not None:
        return True
    flow = read_flow(message)
    return flow is not None and (flow.source, flow.client) in renamed


def _requests(
    guests: Collection[Address] | None, clients: Collection[Address], masters: Collection[bytes], few: int
) -> Iterator[bytes]:
    """Ask for what guests answer and clients began, and for the rest of theirs once one that was found expects others.

    For each listing the kernel walks through its whole table, and lets nothing else have that processor meanwhile.
    """
    concerned = {*(guests or ()), *clients}
    if guests is None or len(concerned) > _GUESTS_AT_MOST or _are_at_most(few):
        yield listing_request()
        return
    old = sorted(address for address in concerned if isinstance(address, IPv4Address))
    yield from (source_request(address) for address in old if address in guests)
    yield from (source_request(address, begun=True) for address in old if address in clients)
    if len(old) < len(concerned):
        yield listing_request(socket.AF_INET6)
    if any(masters):
        yield from (source_request(address) for address in old if address not in guests)
        yield from (source_request(address, begun=True) for address in old if address not in clients)


def _are_at_most(few: int) -> bool:
    """Whether no more connections are open on this host, guests' or not."""
    number = sysctl.read(_OPEN)
    return number.isdecimal() and int(number) <= few


def _end_listed(requests: Iterable[bytes], is_meant: Callable[[Flow], bool]) -> list[Flow]:
    """End those of the listed flows that are meant, and give them."""
    ended = list[Flow]()
    for request in requests:
        with _asking() as asking:
            listed = asking.stream(GET, request)
            meant = [item for item in listed if (flow := read_flow(item)) is not None and is_meant(flow)]
            ended += [entry.flow for entry in _end(asking, [*filter(None, map(read_entry, meant))])]
    return ended


def _endless(family: Family, taken: Iterable[Claim]) -> list[int]:
    """Give the protocols without an end of their own that any of these exposures takes from the host."""
    protocols = {claim.protocol for claim in taken if claim.subnet is None}
    whole, udp = None in protocols, not protocols.isdisjoint((None, Protocol.UDP))
    return [*([socket.IPPROTO_UDP] if udp else []), *([_PINGS[family]] if whole else [])]


@contextmanager
def _asking() -> Iterator[NetlinkSocket]:
    try:
        with NetlinkSocket(NETFILTER) as asking:
            yield asking
    except OSError as error:
        raise KernelError(f"the kernel does not list its connections: {error.strerror or error}") from error


def _end(asking: NetlinkSocket, entries: Sequence[Entry]) -> list[Entry]:
    """Have the kernel forget connections, and give those it knew; one that it does not know has ended already."""
    codes = list[int]()
    for first in range(0, len(entries), _AT_ONCE):
        some = entries[first : first + _AT_ONCE]
        codes += asking.change(DELETE, [ending_request(entry.flow.family.domain, entry) for entry in some])
    for code in set(codes) - {0, errno.ENOENT}:
        _log.warning("cannot end %d connections: %s", codes.count(code), os.strerror(code))
    return [entry for entry, code in zip(entries, codes, strict=False) if code == 0]


# What the kernel reports of connections: NFNLGRP_CONNTRACK_NEW, _UPDATE and _DESTROY (linux/netfilter/nfnetlink.h).
CONNECTIONS: Final = 0b111
_FORCED_BUFFER: Final = 33  # SO_RCVBUFFORCE
_MEMORY_INFO: Final = 55  # SO_MEMINFO, of which SK_MEMINFO_DROPS of linux/sock_diag.h is number 8
_MEMORY: Final = struct.Struct("=9I")
_NO_ENOBUFS: Final = 5  # NETLINK_NO_ENOBUFS: what is lost is counted all the same


def netfilter_socket(groups: int, only: Sequence[Sequence[Field]], buffer: int) -> socket.socket:
    """Open a socket for what netfilter sends to `groups`, of which the kernel keeps so many bytes; as for rtnetlink.

    Raises:
        OSError: the kernel refused.

    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    subscribed = socket.socket(socket.AF_NETLINK, kind, NETFILTER)
    try:
        attach(subscribed, only)
        subscribed.setsockopt(socket.SOL_SOCKET, _FORCED_BUFFER, buffer)
        subscribed.setsockopt(SOL_NETLINK, _NO_ENOBUFS, 1)
        subscribed.bind((0, groups))
    except OSError:
        subscribed.close()
        raise
    return subscribed


def dropped(subscribed: socket.socket) -> int:
    """Give how many messages the kernel had no room for since the socket was opened."""
    number: int = _MEMORY.unpack(subscribed.getsockopt(socket.SOL_SOCKET, _MEMORY_INFO, _MEMORY.size))[8]
    return number


# Where a message about a connection has its family, and the last four bytes of the address that answers: behind the
# headers of netlink and nfnetlink, and the first tuple (ctnetlink_dump_tuples of nf_conntrack_netlink.c).
_FAMILY_AT: Final = 16
_ANSWERING_AT: Final = {Family.IPV4: 84, Family.IPV6: 120}


def answered_by(guests: Collection[Address], most: int) -> list[list[Field]]:
    """Give filters of what is reported of connections that guests answer; with more than `most`, of all connections."""
    if len(guests) > most:
        return [[Field(1, _FAMILY_AT, family.domain)] for family in Family]
    families = ((Family.of(guest), int.from_bytes(guest.packed[-4:])) for guest in guests)
    return [[Field(1, _FAMILY_AT, kind.domain), Field(4, _ANSWERING_AT[kind], last)] for kind, last in families]
