"""What openings need of the host besides rules: forwarding, routes, addresses, proxies, and two settings of bridges.

Each has its keeper, which makes the host hold what is wanted, puts back what somebody took away, and takes away only
what it made itself. What one of them cannot do is told as a fault, and no reason to leave the others undone.
"""

from functools import reduce

from fwdaemon import audit, forwarding
from fwdaemon.desired import Desired, Nat
from fwdaemon.errors import PortfwdError
from fwdaemon.hairpin import HairpinPorts
from fwdaemon.localnet import LocalNet
from fwdaemon.neighbour_proxy import NeighbourProxies
from fwdaemon.outcome import Outcome, joined, tried
from fwdaemon.public_addresses import PublicAddresses
from fwdaemon.routes import RouteKeeper


class HostSide:
    """All keepers. Its methods block; call them from one thread at a time."""

    def __init__(self) -> None:
        self._hairpin = HairpinPorts()
        self._routes = RouteKeeper()
        self._addresses = PublicAddresses()
        self._proxies = NeighbourProxies()
        self._localnet = LocalNet()
        self._held: frozenset[Nat] = frozenset()

    def release(self, desired: Desired) -> None:
        """Take back, before the rules change, what without them would lead to the host itself."""
        self._localnet.release(desired.local_bridges)
        if self._held - desired.nats:
            self._held &= desired.nats
            self._addresses.keep(self._held)

    def keep(self, desired: Desired, *, ip_forward: bool) -> Outcome:
        """Make the host hold what `desired` needs, once the rules are there; `ip_forward` allows turning it on."""
        outcome = reduce(
            joined,
            [
                tried(lambda: _turn_on_forwarding(desired, allowed=ip_forward)),
                tried(lambda: self._routes.keep(desired.routes)),
                tried(lambda: self._proxies.keep(desired.routes)),
                tried(lambda: self._addresses.keep(desired.nats)),
                tried(lambda: self._localnet.keep(desired.local_bridges)),
            ],
        )
        self._held = desired.nats
        self._hairpin.keep(desired)
        return outcome

    def preview(self, desired: Desired) -> Outcome:
        """Tell which routes and addresses `keep` would add or remove, touching nothing."""
        return joined(
            tried(lambda: self._routes.preview(desired.routes)),
            tried(lambda: self._addresses.preview(desired.nats)),
        )

    def remove(self) -> Outcome:
        """Take back everything that we made; forwarding stays on, as others may rely on it by now."""
        self.release(Desired())
        return self.keep(Desired(), ip_forward=False)

    def close(self) -> None:
        """End what runs beside us; what the kernel holds stays."""
        self._proxies.close()


def _turn_on_forwarding(desired: Desired, *, allowed: bool) -> Outcome:
    faults = []
    for family in sorted(desired.families):
        if forwarding.is_on(family):
            continue
        if not allowed:
            faults.append(f"IPv{family} forwarding is off, and [daemon] ip_forward = false leaves it to you")
            continue
        try:
            audit.forwarding_turned_on(forwarding.turn_on(family))
        except PortfwdError as error:
            faults.append(str(error))
    return Outcome(faults=tuple(faults))
