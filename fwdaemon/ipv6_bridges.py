"""IPv6 on the bridges of networks that have none of their own.

libvirt switches `disable_ipv6` on for them, and the kernel then takes no IPv6 route through the bridge. Without a
link-local address there, it could not ask which guest has an address either (RFC 4861, section 7.2.2). What guests
advertise as routers is not heeded on a bridge that was closed to them before, whatever the setting was.
"""

from collections.abc import Callable, Collection
from typing import Final

from fwdaemon import sysctl
from fwdaemon.ledger import Ledger
from fwdaemon.model import Family
from fwdaemon.naming import shown
from fwdaemon.switches import Switches

_DISABLED, _HEEDED, _MODE = "disable_ipv6", "accept_ra", "addr_gen_mode"
_BY_MAC, _NEVER = "0", "1"  # enum in6_addr_gen_mode in linux/if_link.h
_IS_OFF: Final = "1"


class Ipv6Bridges:
    """Keeps IPv6 on for bridges that need it, and switches off again where we switched it on."""

    def __init__(self, ledger: Callable[[str], Ledger] = Ledger) -> None:
        self._opened = Switches(ledger("disable-ipv6"), Family.IPV6, _DISABLED, "0")
        self._unheeded = Switches(ledger("accept-ra"), Family.IPV6, _HEEDED, "0")
        self._addressed = Switches(ledger("addr-gen-mode"), Family.IPV6, _MODE, _BY_MAC)

    def keep(self, bridges: Collection[str]) -> list[str]:
        """Do so, and tell what could not be done."""
        self._opened.release(bridges)
        closed = [bridge for bridge in bridges if bridge in self._opened.ours or _read(bridge, _DISABLED) == _IS_OFF]
        faults = self._unheeded.keep(closed).faults
        faults |= self._opened.keep(bridges).faults
        bare = [bridge for bridge in closed if bridge in self._addressed.ours or _read(bridge, _MODE) == _NEVER]
        faults |= self._addressed.keep(bare).faults
        return [f"{shown(bridge)} has no IPv6: {reason}" for bridge, reason in faults.items()]


def _read(bridge: str, setting: str) -> str:
    return sysctl.read(sysctl.of_interface(Family.IPV6, bridge, setting))
