"""What exposures need of the host besides rules: forwarding, routes, addresses, proxies, and two settings of bridges.

Each has its keeper, which compares the host with what is wanted, puts back what others changed, and takes away only
what it made itself. What one of them cannot do is told as a fault, and no reason to leave the others undone.
"""

import logging
from collections.abc import Callable, Collection
from functools import partial, reduce
from pathlib import Path
from typing import Final

from fwdaemon.core.exposures import Nat
from fwdaemon.core.pace import Budget
from fwdaemon.core.report import ApplyResult, Setting, joined, tried
from fwdaemon.core.state import Desired
from fwdaemon.core.text import is_interface_name
from fwdaemon.core.types import Family
from fwdaemon.errors import KernelError
from fwdaemon.hostnet.forwarding import Forwarding, bridging
from fwdaemon.hostnet.hairpin import HairpinPorts
from fwdaemon.hostnet.local_proxy import LocalProxy
from fwdaemon.hostnet.neighbour_proxy import NeighbourProxies
from fwdaemon.hostnet.owned_state import DIRECTORY, Ipv6Bridges, OwnedStateFile
from fwdaemon.hostnet.public_addresses import Gateways, PublicAddresses
from fwdaemon.hostnet.routes import RouteKeeper
from fwdaemon.kernel import sysctl

# Puts back what earlier versions of this program switched on the host and this one does not use any more.
_log = logging.getLogger(__name__)

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
    return Setting(f"{name} = 0, which an earlier version turned on", restored=True)


class SystemHostNetwork:
    """All keepers. Its methods block; call them from one thread at a time.

    `refused` names the families in which rules refuse what the host did not forward before us. `directory` is where
    what the kernel does not attribute to us is kept. What is done because of guests takes from `guests`.
    """

    def __init__(
        self, refused: Callable[[], Collection[Family]], directory: Path = DIRECTORY, guests: Budget | None = None
    ) -> None:
        state_file = partial(OwnedStateFile, directory=directory)
        self._directory = directory
        self._forwarding = Forwarding(refused, state_file)
        self._hairpin = HairpinPorts(state_file("hairpin-ports"))
        self._routes = RouteKeeper(Ipv6Bridges(state_file))
        self._addresses = PublicAddresses(state_file("addresses"))
        self._proxies = NeighbourProxies(state_file("proxy-ndp"), guests)
        self._proxy = LocalProxy(guests)
        self._gateways = Gateways()
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
        bridged = frozenset((family, name) for family in concerned for name in bridging(family))
        return desired.confining(confined, bridged, switched)

    def release(self, desired: Desired) -> None:
        """Take back, before the rules change, what without them would lead to the host itself or to nobody."""
        if self._held - desired.nats:
            self._held &= desired.nats
            self._addresses.apply(self._held)
        self._proxies.release(desired.proxied)

    def apply(self, desired: Desired, *, ip_forward: bool, full: bool = True) -> ApplyResult:
        """Make the host hold what `desired` needs, once the rules are there; `ip_forward` allows turning it on.

        Only if `full`, the kernel is asked also where nothing is wanted, and about all bridge ports.
        """
        result = reduce(
            joined,
            [
                tried(lambda: self._forwarding.apply(desired, allowed=ip_forward)),
                tried(lambda: self._routes.apply(desired.routes, full=full)),
                tried(lambda: self._proxies.apply(desired.routes, desired.proxied, full=full)),
                tried(lambda: self._addresses.apply(desired.nats)),
                tried(lambda: self._proxy.apply(desired, full=full)),
                tried(lambda: self._hairpin.apply(desired, full=full)),
                tried(lambda: self._gateways.apply(desired)),
            ],
        )
        self._held = desired.nats
        if self._is_first:
            result = joined(result, put_back(self._directory))
        self._is_first = False
        return result

    def preview(self, desired: Desired) -> ApplyResult:
        """Tell which routes and addresses `apply` would add or remove, touching nothing."""
        return joined(
            tried(lambda: self._routes.preview(desired.routes)),
            tried(lambda: self._addresses.preview(desired.nats)),
        )

    def remove(self, forwarded: frozenset[tuple[Family, str]]) -> ApplyResult:
        """Take back everything that we made; forwarding that `forwarded` networks of libvirt's need stays on."""
        nothing = Desired(forwarded=forwarded)
        self.release(nothing)
        return self.apply(nothing, ip_forward=False)

    def close(self) -> None:
        """End what runs beside us; what the kernel holds stays."""
        self._proxies.close()
        self._proxy.close()
