"""Lets packets from 127.0.0.0/8 leave towards guests, on their bridges only.

The kernel drops such packets wherever they are routed, unless `route_localnet` is on for the interface
(Documentation/networking/ip-sysctl.rst). It then also lets them in there, which a rule of ours refuses: the guard.
"""

from collections.abc import Collection

from fwdaemon.ledger import Ledger
from fwdaemon.model import Family
from fwdaemon.outcome import Outcome
from fwdaemon.switches import Switches


class LocalNet:
    """Keeps `route_localnet` on while it is needed. Others may have switched it on; it then stays so."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        ledger = ledger or Ledger("route-localnet")
        self._switches = Switches(ledger, Family.IPV4, "route_localnet", "1")

    def release(self, bridges: Collection[str]) -> None:
        """Switch it off again where we switched it on and it is not needed; to be done before the guard may go."""
        self._switches.release(bridges)

    def keep(self, bridges: Collection[str]) -> Outcome:
        """Switch it on where it is needed; to be done once the guard is there."""
        switched = self._switches.keep(bridges)
        faults = (f"127.0.0.1 does not lead to guests: {reason}" for reason in switched.faults.values())
        return Outcome(faults=tuple(faults), changed=switched.changed)
