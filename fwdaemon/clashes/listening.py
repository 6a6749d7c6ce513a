"""Processes of the host that listen where an opening takes what comes. Pure.

What an opening takes never reaches a process of the host: it is translated before the kernel looks for a socket. That
holds for the addresses of bridges too. A forward of port 53 on every address takes what guests ask dnsmasq at the
gateway of their network, so libvirt's own dnsmasq counts like any other process; one for the packets of a single
interface leaves them alone.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from fwdaemon.clashes.port_index import PortIndex
from fwdaemon.clashes.taking import LOCALHOST, Entry, Taking
from fwdaemon.clashes.words import listed
from fwdaemon.model import PortRange, Protocol, Subnet
from fwdaemon.naming import shown
from fwdaemon.sockets.model import Listener

_SSH_PORT: Final = 22

_Rank: TypeAlias = tuple[bool, str, int]


@dataclass(frozen=True, slots=True)
class Overheard:
    """An opening and the sockets it takes from, which are never none."""

    taking: Taking
    sockets: tuple[Listener, ...]


def overheard(
    takings: Iterable[Taking], sockets: Iterable[Listener], clients: PortRange, guest_subnets: Collection[Subnet]
) -> list[Overheard]:
    """Find every socket that an opening takes from; `clients` are the ports the kernel gives to clients."""
    index = PortIndex((PortRange(socket.port, socket.port), socket) for socket in sockets)
    found: defaultdict[Entry, dict[Listener, None]] = defaultdict(dict)
    openings: dict[Entry, Taking] = {}
    for taking in takings:
        for socket in index.meeting(taking.ports):
            if _takes_from(taking, socket, guest_subnets) and not _may_be_client(taking, socket, clients):
                openings.setdefault(taking.entry, taking)
                found[taking.entry][socket] = None
    return [Overheard(openings[entry], tuple(sockets)) for entry, sockets in found.items()]


def _takes_from(taking: Taking, socket: Listener, guest_subnets: Collection[Subnet]) -> bool:
    if not _could_take_from(taking, socket):
        return False
    match socket.address:
        case None:
            return taking.localhost if socket.device == "lo" else taking.shared
        case address if address.is_loopback:
            return taking.localhost and address == LOCALHOST
        case address if address.is_link_local or address.is_multicast:
            # Never "every address", and no forward can name one.
            return False
        case address if taking.interface is not None and any(address in subnet for subnet in guest_subnets):
            # Whom guests ask there, no packet from another interface is for.
            return False
        case address:
            return taking.address in (None, address)


def _could_take_from(taking: Taking, socket: Listener) -> bool:
    """Whether they agree in everything but the address."""
    if taking.protocol not in (None, socket.protocol) or taking.family not in socket.families:
        return False
    return taking.interface is None or socket.device in (None, taking.interface)


def _may_be_client(taking: Taking, socket: Listener, clients: PortRange) -> bool:
    """Whether it may be a client that waits for an answer: over UDP such a socket looks like a server's.

    Clients come and go by the second, and answers to them are not taken. So where a forward has many ports, those that
    clients use are passed over; one that is named singly is meant.
    """
    return socket.protocol is Protocol.UDP and not taking.is_one_port and socket.port in clients


# --- in words --------------------------------------------------------------------------------------------------------


def sentences(found: Iterable[Overheard], names: Mapping[int, str]) -> Iterator[str]:
    """Tell each with the names of processes by the inodes of their sockets, which may hold anything."""
    for item in sorted(found, key=lambda item: (min(map(_rank, item.sockets)), str(item.taking))):
        taking = item.taking
        who = _holders(item, names)
        verb = "listens" if len(who) == 1 else "listen"
        place, whence = _where(item)
        reaching = taking.reaching(whence)
        yield taking.tell(
            f"{listed(who)} of the host {verb} there{place}; {reaching} will reach {taking.owner} instead"
        )


def _holders(item: Overheard, names: Mapping[int, str]) -> Sequence[str]:
    """Name each holder once, or once for each port of several, sshd first: without it nobody gets in any more."""
    taking = item.taking

    def name(socket: Listener) -> str:
        return shown(names.get(socket.inode, "a process"))

    def order(socket: Listener) -> tuple[bool, _Rank, str]:
        return not name(socket).startswith("ssh"), _rank(socket), name(socket)

    ordered = sorted(item.sockets, key=order)
    if taking.is_one_port:
        return list(dict.fromkeys(map(name, ordered)))
    ports = (f"{name(socket)} at port {taking.show_port(socket.protocol, socket.port)}" for socket in ordered)
    return list(dict.fromkeys(ports))


def _rank(socket: Listener) -> _Rank:
    return socket.port != _SSH_PORT, socket.protocol, socket.port


def _where(item: Overheard) -> tuple[str, str]:
    """Say where they listen, unless it is wherever the opening is, and whose connections those are."""
    bound = {socket.address or socket.device for socket in item.sockets}
    if bound & {None, item.taking.address}:
        return "", "from outside"
    return f" on {listed(sorted(map(str, bound)))}", "there"
