"""Whose a socket is: the process that holds it, or else the unit it was opened in.

Root finds the process through /proc/PID/fd (proc_pid_fd(5)). The service may not look into other processes, as it has
none of root's powers but those over the network; but the kernel gives each socket's control group, and systemd names
those after its units.
"""

import errno
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, TypeAlias

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.core.inventory import Inventory, Occupied
from fwdaemon.core.types import Address, Family, Listener, Protocol
from fwdaemon.errors import KernelError
from fwdaemon.kernel import sysctl
from fwdaemon.kernel.netlink import Message, NetlinkSocket, RefusalError, attributes

# The kernel's listing of sockets, sock_diag(7): what is asked, and what is answered. Pure.
#
# It lists waiting sockets alone, while /proc/net/tcp lists all, and shows what that does not: the interface a socket is
# bound to, whether one of IPv6 takes IPv4 too, and its control group. Sources: linux/inet_diag.h, linux/sock_diag.h and
# the states in net/tcp_states.h.
BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY
# TCP_LISTEN; of UDP those without a fixed peer, which are in the state TCP_CLOSE.
_STATES: Final = {Protocol.TCP: 1 << 10, Protocol.UDP: 1 << 7, Protocol.SCTP: 1 << 10}

_REQUEST: Final = struct.Struct("=BBBBI48x")
# Up to the addresses all is in network byte order, or a single byte.
_ADDRESSES: Final = struct.Struct("!BBBBHH16s16s")
_REST: Final = struct.Struct("=I8sIIIII")
_ONLY_IPV6, _CGROUP = 11, 21


def request(protocol: Protocol, family: Family) -> bytes:
    """Write the body of a request for all sockets of a kind that wait."""
    return _REQUEST.pack(family.domain, protocol.number, 0, 0, _STATES[protocol])


def read(protocol: Protocol, body: bytes, devices: Mapping[int, str]) -> Listener:
    """Read the body of one answer; `devices` names interfaces by their numbers."""
    family, _, _, _, port, _, source, _ = _ADDRESSES.unpack_from(body)
    device, *_, inode = _REST.unpack_from(body, _ADDRESSES.size)
    more = attributes(body[_ADDRESSES.size + _REST.size :])
    address = ip_address(source[:4] if family == Family.IPV4.domain else source)
    families, plain = _taken(address, only_ipv6=any(more.get(_ONLY_IPV6, b"")))
    cgroup = int.from_bytes(more.get(_CGROUP, b""), sys.byteorder)
    return Listener(protocol, families, plain, port, devices.get(device), inode, cgroup)


def _taken(address: Address, *, only_ipv6: bool) -> tuple[frozenset[Family], Address | None]:
    """Say what comes to an address; all of IPv6 is all of IPv4 too, unless the socket says otherwise (ipv6(7))."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    if mapped is not None:
        return frozenset({Family.IPV4}), None if mapped.is_unspecified else mapped
    if not address.is_unspecified:
        return frozenset({Family.of(address)}), address
    return frozenset({Family.of(address)} if only_ipv6 or isinstance(address, IPv4Address) else Family), None


_PROC: Final = Path("/proc")
_MOUNTS: Final = Path("/proc/self/mounts")
_UNITS: Final = (".service", ".socket", ".scope")
_INIT: Final = 1


class Holders:
    """Names holders as text that may hold anything; what was found out about a socket is not asked again."""

    def __init__(self) -> None:
        self._known: dict[int, str | None] = {}

    def name(self, sockets: Collection[Listener]) -> dict[int, str]:
        """Give the names of those that are known, by inode; `sshd (pid 712)`, or `ssh.service`."""
        known = {socket.inode: self._known[socket.inode] for socket in sockets if socket.inode in self._known}
        unknown = [socket for socket in sockets if socket.inode not in known]
        if unknown:
            found = _processes_of({socket.inode for socket in unknown})
            units = _units_of({socket.cgroup for socket in unknown if socket.inode not in found} - {0})
            known |= {socket.inode: found.get(socket.inode) or units.get(socket.cgroup) for socket in unknown}
        self._known = known
        return {inode: name for inode, name in known.items() if name is not None}


def _processes_of(inodes: set[int]) -> dict[int, str]:
    """Name the process with the lowest number for each socket; init holds those of others for them, and comes last."""
    found: dict[int, str] = {}
    for pid in sorted(_pids(), key=lambda pid: (pid == _INIT, pid)):
        for inode in _sockets_of(pid) & (inodes - found.keys()):
            found[inode] = _named(pid)
        if len(found) == len(inodes):
            break
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]  # noqa: PTH208  a Path for each takes longer


def _sockets_of(pid: int) -> set[int]:
    try:
        with os.scandir(_PROC / str(pid) / "fd") as entries:
            links = [_link(entry.path) for entry in entries]
    except OSError:  # it ended, or belongs to another user
        return set()
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115  the same
    except OSError:  # it was closed
        return ""


def _named(pid: int) -> str:
    try:
        comm = (_PROC / str(pid) / "comm").read_text(errors="backslashreplace").rstrip("\n")
    except OSError:  # it has gone
        return f"pid {pid}"
    return f"{comm} (pid {pid})"


# --- units -----------------------------------------------------------------------------------------------------------


def _units_of(groups: set[int]) -> dict[int, str]:
    """Name the units of control groups; a group's number is that of its directory."""
    found: dict[int, str] = {}
    directories = deque((root, "") for root in _hierarchies())
    while directories and len(found) < len(groups):
        path, unit = directories.popleft()
        for name, number in _subdirectories(path):
            inner = name if name.endswith(_UNITS) else unit
            directories.append((f"{path}/{name}", inner))
            if number in groups and inner:
                found[number] = inner
    return found


def _hierarchies() -> list[str]:
    try:
        return hierarchies(_MOUNTS.read_bytes())
    except OSError:
        return []


def hierarchies(mounts: bytes) -> list[str]:
    """Give where control groups of version 2 are, from /proc/self/mounts.

    Names in it are chosen by users who may mount. The kernel writes blanks, tabs and line breaks in them as numbers,
    but none of the other characters at which Python parts lines and words.
    """
    parted = (line.split(" ") for line in os.fsdecode(mounts).split("\n"))
    return [words[1] for words in parted if words[2:3] == ["cgroup2"]]


def _subdirectories(path: str) -> list[tuple[str, int]]:
    try:
        with os.scandir(path) as entries:
            return [(entry.name, entry.inode()) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # it has gone
        return []


# Asks the kernel for the sockets that wait, in this thread's network namespace.
_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG, linux/netlink.h


def listeners() -> list[Listener]:
    """List the sockets that wait for TCP, UDP or SCTP; a kernel without one of these has none of it.

    Raises:
        KernelError: the kernel does not answer.

    """
    try:
        devices = dict(socket.if_nameindex())
        with NetlinkSocket(_SOCK_DIAG) as asking:
            return [
                read(protocol, message.body, devices)
                for protocol in Protocol
                for family in Family
                for message in _answers(asking, request(protocol, family))
            ]
    except OSError as error:
        raise KernelError(f"the kernel does not report which sockets listen: {error}") from error


# One warning, for all that ask.
_unknown = WarnOnce()
Listing: TypeAlias = Callable[[], Iterable[Listener]]


def _listed(listing: Listing) -> Iterable[Listener] | None:
    try:
        found = listing()
    except KernelError as error:
        _unknown.warn(f"domains get no port that they do not have yet: {error}")
        return None
    _unknown.settle()
    return found


def ports_in_use(listing: Listing = listeners) -> frozenset[Occupied] | None:
    """Give the ports where processes of the host wait; `None` where the kernel does not say."""
    found = _listed(listing)
    return None if found is None else frozenset(_occupied(found))


# Where the ports of clients are taken from (ip-sysctl.rst): a socket for UDP there may be about to ask something.
_CLIENT_PORTS: Final = "net.ipv4.ip_local_port_range"


def with_occupied(inventory: Inventory, listing: Listing = listeners) -> Inventory:
    """Add the ports that processes of the host wait on, where metadata asks for ports: none of them is granted."""
    if not any(domain.metadata is not None and domain.running for domain in inventory.domains):
        return inventory
    found = ports_in_use(listing)
    return replace(inventory, occupied=None if found is None else frozenset(item for item in found if not item.passing))


def _occupied(listed: Iterable[Listener]) -> Iterator[Occupied]:
    words = sysctl.read(_CLIENT_PORTS).split()
    clients = range(int(words[0]), int(words[1]) + 1) if words else range(0)
    for item in listed:
        is_client = item.protocol is Protocol.UDP and item.port in clients
        where = item.protocol, item.address, item.port, item.families, item.device
        yield Occupied(*where, passing=is_client or not _meets_forwards(item))


def _meets_forwards(item: Listener) -> bool:
    """Whether a forward may listen where a socket does: not on these addresses, nor where only the host itself asks."""
    if item.address is None:
        return item.device != "lo"
    return not (item.address.is_loopback or item.address.is_link_local or item.address.is_multicast)


def _answers(asking: NetlinkSocket, body: bytes) -> Iterable[Message]:
    try:
        return asking.listing(BY_FAMILY, body).messages
    except RefusalError as error:
        if error.errno != errno.ENOENT:  # the kernel knows no such protocol
            raise
        return ()
