"""What exposures need of the host besides rules: forwarding, routes, addresses, proxies, and two settings of bridges.

Each has its keeper, which compares the host with what is wanted, puts back what others changed, and takes away only
what it made itself. What one of them cannot do is reported as a fault, and no reason to leave the others undone.
"""

import logging
import os
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from ipaddress import ip_address
from pathlib import Path
from socket import NETLINK_ROUTE
from typing import Final

from fwdaemon.core.exposures import Nat, Renaming
from fwdaemon.core.report import ApplyResult, Fault, FaultKind, Setting, SettingKind, joined, tried
from fwdaemon.core.state import Desired
from fwdaemon.core.text import is_interface_name, shown
from fwdaemon.core.types import Family
from fwdaemon.errors import KernelError
from fwdaemon.hostnet.local_proxy import LocalProxy
from fwdaemon.hostnet.neighbour_proxy import NeighbourProxies
from fwdaemon.hostnet.owned_state import DIRECTORY, Ipv6Bridges, OwnedStateFile, Record
from fwdaemon.hostnet.public_addresses import Announcer, Gateways, PublicAddresses, Seconds, for_ever
from fwdaemon.hostnet.routing import Forwarding, RouteKeeper
from fwdaemon.kernel import sysctl
from fwdaemon.kernel.netlink import NetlinkSocket, RefusalError, attribute, attributes
from fwdaemon.kernel.rtnetlink import RefusedError, first_listed
from fwdaemon.triggers import Budget

_log = logging.getLogger(__name__)

# Hairpin mode of bridge ports, for guests that reach themselves through the host.
#
# Where bridged frames pass through netfilter (net.bridge.bridge-nf-call-iptables, which Docker and Kubernetes need),
# a guest's connection to itself is translated while its frame is being bridged, and a bridge never sends a frame back
# out of the port it came from, unless that port is in hairpin mode. Others rely on the sysctl, so it is left alone.
_SWITCHES = {
    Family.IPV4: "net.bridge.bridge-nf-call-iptables",
    Family.IPV6: "net.bridge.bridge-nf-call-ip6tables",
}

# Interfaces as ports of a bridge, listed and switched by hand: guests' ports may be many, and a pass about any of them
# lists all (12 ports: 5 ms with pyroute2, 0.1 by hand). To switch one is all that most daemons change by rtnetlink,
# beside Docker with each guest's start (2 ms, 0.1 by hand, and 11 MB). Sources: linux/if_link.h, linux/rtnetlink.h.
_BRIDGE = 7  # AF_BRIDGE
_GET_LINK, _SET_LINK = 18, 19  # RTM_GETLINK and RTM_SETLINK
_NESTED: Final = 0x8000  # NLA_F_NESTED
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, changed flags
_NAME, _PORT, _MODE = 3, 12, 4  # IFLA_IFNAME, IFLA_PROTINFO, and IFLA_BRPORT_MODE in that


@dataclass(frozen=True, slots=True)
class BridgePort:
    """The number of an interface that is the port of a bridge, and whether it is in hairpin mode."""

    index: int
    hairpin: bool


def bridge_ports() -> dict[str, BridgePort]:
    """Give the ports of all bridges, by name.

    Raises:
        KernelError: the kernel does not list them.

    """
    ports = {}
    for body in first_listed(_GET_LINK, _LINK.pack(_BRIDGE, 0, 0, 0, 0)):
        _family, _type, index, _flags, _changed = _LINK.unpack_from(body)
        found = attributes(body[_LINK.size :])
        if _PORT in found:
            mode = attributes(found[_PORT]).get(_MODE, b"")
            ports[os.fsdecode(found[_NAME].rstrip(b"\0"))] = BridgePort(index, any(mode))
    return ports


def set_hairpin_mode(index: int, *, hairpin: bool) -> None:
    """Switch a bridge port.

    Raises:
        RefusedError: the interface is no port of a bridge.
        KernelError: the kernel cannot be asked.

    """
    setting = attribute(_PORT | _NESTED, attribute(_MODE, bytes([hairpin])))
    try:
        with NetlinkSocket(NETLINK_ROUTE) as asking:
            asking.ask(_SET_LINK, _LINK.pack(_BRIDGE, 0, index, 0, 0) + setting)
    except RefusalError as error:
        raise RefusedError(error.errno or 0, error.strerror or str(error)) from error
    except OSError as error:
        raise KernelError(f"the kernel does not let us ask: {error.strerror or error}") from error


_Ports = Mapping[str, BridgePort]


class HairpinPorts:
    """Keeps bridge ports of guests with forwards in hairpin mode while that is needed, and puts them back after.

    The ports we switched are recorded with their numbers, as a later guest may get a port of the same name.
    """

    def __init__(self, state_file: OwnedStateFile | None = None) -> None:
        self._state_file = state_file or OwnedStateFile("hairpin-ports")
        self._ours = dict(_read(self._state_file.records))
        self._right: dict[str, int] = {}
        self._looked: frozenset[str] | None = frozenset()

    def apply(self, desired: Desired, *, full: bool = True) -> ApplyResult:
        """Set what exposures need; reset what we set before and is not needed now.

        Unless `full`, ports that were needed before are not looked at again.

        Raises:
            KernelError: the kernel does not give its bridge ports.

        """
        needed = _needed(desired)
        if not (needed or self._ours) or (needed == self._looked and not full):
            return ApplyResult()
        faults: dict[str, Fault] = {}
        ports = bridge_ports()
        self._record({port: index for port, index in self._ours.items() if _has(ports, port, index)})
        settings = list(self._set(ports, sorted(needed), faults))
        reset = self._reset(ports, self._ours.keys() - needed)
        self._right = {port: ports[port].index for port in needed - faults.keys() if port in ports}
        self._looked = None if faults else needed
        return ApplyResult(settings=tuple(settings), changed=bool(settings) or reset, faults=tuple(faults.values()))

    def _set(self, ports: _Ports, needed: Iterable[str], faults: dict[str, Fault]) -> Iterator[Setting]:
        for name in needed:
            port = ports.get(name)
            if port is None or port.hairpin:
                continue
            was_right = self._right.get(name) == port.index
            restored = was_right or name in self._ours
            try:
                if not restored:
                    self._record_first(name, port.index)
            except KernelError as error:
                faults[name] = Fault(FaultKind.HAIRPIN_MODE, (name,), str(error))
                continue
            if _switch(name, port.index, hairpin=True):
                yield Setting(name, restored, SettingKind.HAIRPIN_MODE)

    def _reset(self, ports: _Ports, superfluous: Collection[str]) -> bool:
        switched = [_switch(name, ports[name].index, hairpin=False) for name in superfluous if ports[name].hairpin]
        self._record({name: index for name, index in self._ours.items() if name not in superfluous})
        return any(switched)

    def _record_first(self, port: str, index: int) -> None:
        """Record a port before switching it: if the daemon dies in between, the next one can still put it back."""
        ours = {**self._ours, port: index}
        self._state_file.write_first(_records(ours))
        self._ours = ours

    def _record(self, ours: dict[str, int]) -> None:
        self._ours = ours
        self._state_file.write(_records(ours))


def _records(ours: Mapping[str, int]) -> list[Record]:
    return [{"port": port, "index": index} for port, index in ours.items()]


def _needed(desired: Desired) -> frozenset[str]:
    through_netfilter = {family for family, switch in _SWITCHES.items() if sysctl.read(switch) == "1"}
    if not through_netfilter:
        return frozenset()
    return frozenset(port for family, port in desired.bridge_ports if family in through_netfilter)


def _has(ports: _Ports, name: str, index: int) -> bool:
    return name in ports and ports[name].index == index


def _switch(name: str, index: int, *, hairpin: bool) -> bool:
    """Switch a port; `False` where it went meanwhile."""
    try:
        set_hairpin_mode(index, hairpin=hairpin)
    except RefusedError as error:
        _log.debug("bridge port %s has no hairpin mode to set: %s", shown(name), error)
        return False
    return True


def _read(records: Iterable[Record]) -> Iterator[tuple[str, int]]:
    """Read what is recorded; what cannot be read was not written by us."""
    for record in records:
        match record:
            case {"port": str(port), "index": int(index)}:
                yield port, index


# Which bridges have their own frames filtered as if these were routed (br_netfilter).
_LINKS: Final = Path("/sys/class/net")


def _bridging(family: Family) -> frozenset[str]:
    """Name the bridges whose frames pass the forward chains of a family, in by the bridge and out by the same."""
    every = sysctl.read(_SWITCHES[family]) == "1"
    return frozenset(name for name in _bridges() if every or _is_set(name, f"nf_call_{family.iptables}"))


def _bridges() -> list[str]:
    try:
        return [link.name for link in _LINKS.iterdir() if (link / "bridge").is_dir()]
    except OSError:
        return []


def _is_set(bridge: str, attribute: str) -> bool:
    try:
        return (_LINKS / bridge / "bridge" / attribute).read_text().strip() == "1"
    except OSError:
        return False


# Puts back what earlier versions of this program switched on the host and this one does not use any more.

# Lines such as `virbr0 0`: an interface, and the value before.
_ROUTE_LOCALNET: Final = "route-localnet"


def put_back(directory: Path) -> ApplyResult:
    """Turn `route_localnet` off where it was turned on for `localhost = true`, and forget that."""
    record = directory / _ROUTE_LOCALNET
    try:
        lines = record.read_bytes().split(b"\n")
    except OSError:
        return ApplyResult()
    done = [setting for line in lines if (setting := _turned_off(line)) is not None]
    try:
        record.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot remove %s (%s)", record, error.strerror)
    return ApplyResult(changed=bool(done), settings=tuple(done))


def _turned_off(line: bytes) -> Setting | None:
    interface, _, former = line.decode("ascii", errors="replace").rpartition(" ")
    if not is_interface_name(interface) or former != "0":
        return None
    try:
        name = sysctl.of_interface(Family.IPV4, interface, "route_localnet")
        if sysctl.read(name) != "1":
            return None
        sysctl.write(name, "0")
    except KernelError as error:
        _log.warning("%s, which an earlier version turned on", error)
        return None
    return Setting(f"{name} = 0", restored=True, kind=SettingKind.FORMER_SYSCTL)


# Under which public addresses 1:1 guests open connections, which nothing else says of these once the rules are gone.


class Renamings:
    """Records them, and gives once what an earlier run recorded: where its entries and its rules went, those are left.

    What is left stays on record until the second time, so that a run that ends before it has ended connections leaves
    that to the next one.
    """

    def __init__(self, state_file: OwnedStateFile) -> None:
        self._state_file = state_file
        self._left = frozenset(_renamings(state_file.records))

    def apply(self, nats: Collection[Nat]) -> frozenset[Renaming]:
        """Record these, and give what is left of an earlier run."""
        left, self._left = self._left, frozenset()
        found = left.union(nat.renaming for nat in nats)
        self._state_file.write({"guest": str(guest), "public": str(public)} for guest, public in found)
        return left


def _renamings(records: Iterable[Record]) -> Iterator[Renaming]:
    for record in records:
        with suppress(ValueError):  # what cannot be read was not written by us
            match record:
                case {"guest": str(guest), "public": str(public)}:
                    yield ip_address(guest), ip_address(public)


class SystemHostNetwork:
    """All keepers. Its methods block; call them from one thread at a time.

    `refused` names the families in which rules refuse what the host did not forward before us. `directory` is where
    what the kernel does not attribute to us is kept. What is done because of guests takes from `guests`.
    `seconds` says for how long public addresses may be held.
    """

    def __init__(
        self,
        refused: Callable[[], Collection[Family]],
        directory: Path = DIRECTORY,
        guests: Budget | None = None,
        seconds: Seconds = for_ever,
    ) -> None:
        state_file = partial(OwnedStateFile, directory=directory)
        self._directory = directory
        self._announcer = announcer = Announcer()
        self._forwarding = Forwarding(refused, state_file)
        self._hairpin = HairpinPorts(state_file("hairpin-ports"))
        self._routes = RouteKeeper(Ipv6Bridges(state_file))
        self._addresses = PublicAddresses(state_file("addresses"), seconds, announcer)
        self._proxies = NeighbourProxies(state_file("proxy-ndp"), guests, announcer)
        self._proxy = LocalProxy(guests)
        self._gateways = Gateways(announcer)
        self._renamings = Renamings(state_file("one-to-one"))
        self._is_first = True
        self._held: frozenset[Nat] = frozenset()

    def adopt(self, confined: Collection[Family], switched: Collection[tuple[Family, str]] = ()) -> None:
        """Know where we turned forwarding on, for families or interfaces, as our rules say and no record does."""
        self._forwarding.adopt(confined, switched)

    def has_turned_on(self) -> bool:
        """Whether forwarding was off before us, in either family."""
        return self._forwarding.has_turned_on()

    def confine(self, desired: Desired, *, ip_forward: bool) -> Desired:
        """Say in the desired state for which families the rules are to keep the host from being a router."""
        confined = self._forwarding.confined(desired, allowed=ip_forward)
        found = self._forwarding.switched(desired, allowed=ip_forward)
        switched = frozenset((family, name) for family, name in found if family not in confined)
        concerned = confined.union(family for family, _ in switched)
        bridged = frozenset((family, name) for family in concerned for name in _bridging(family))
        return desired.confining(confined, bridged, switched)

    def release(self, desired: Desired) -> None:
        """Take back, before the rules change, what without them would lead to the host itself or nowhere."""
        if self._held - desired.nats:
            self._held &= desired.nats
            self._addresses.apply(self._held)
        self._proxies.release(desired.proxied)

    def apply(self, desired: Desired, *, ip_forward: bool, full: bool = True, replugged: bool = False) -> ApplyResult:
        """Make the host hold what `desired` needs, once the rules are there; `ip_forward` allows turning it on.

        Only if `full`, the kernel is asked also where nothing is wanted; and only then, or where guests may have been
        `replugged`, about all bridge ports.
        """
        if self._is_first:
            self._addresses.adopt(self._directory / "addresses")
        result = reduce(
            joined,
            [
                tried(lambda: self._forwarding.apply(desired, allowed=ip_forward)),
                tried(lambda: self._routes.apply(desired.routes, full=full)),
                tried(lambda: self._proxies.apply(desired.routes, desired.proxied, full=full)),
                tried(lambda: self._addresses.apply(desired.nats)),
                tried(lambda: self._proxy.apply(desired, full=full)),
                tried(lambda: self._hairpin.apply(desired, full=full or replugged)),
                tried(lambda: self._gateways.apply(desired)),
            ],
        )
        self._held = desired.nats
        result = joined(result, ApplyResult(renamings=self._renamings.apply(desired.nats)))
        if self._is_first:
            result = joined(result, put_back(self._directory))
        self._is_first = False
        return result

    def preview(self, desired: Desired) -> ApplyResult:
        """Say which routes and addresses `apply` would add or remove, touching nothing."""
        return joined(
            tried(lambda: self._routes.preview(desired.routes)),
            tried(lambda: self._addresses.preview(desired.nats)),
        )

    def remove(self, forwarded: frozenset[tuple[Family, str]]) -> ApplyResult:
        """Take back everything that we made; forwarding that `forwarded` networks of libvirt's need stays on."""
        nothing = Desired(forwarded=forwarded)
        self.release(nothing)
        removed = self.apply(nothing, ip_forward=False)
        self._renamings.apply(())
        return removed

    def close(self) -> None:
        """End what runs beside us; what the kernel holds stays."""
        self._proxies.close()
        self._proxy.close()
        self._announcer.close()
