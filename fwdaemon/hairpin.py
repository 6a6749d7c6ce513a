"""Hairpin mode of bridge ports, for guests that reach themselves through the host.

Where bridged frames pass through netfilter (net.bridge.bridge-nf-call-iptables, which Docker and Kubernetes need),
a guest's connection to itself is translated while its frame is being bridged, and a bridge never sends a frame back out
of the port it came from, unless that port is in hairpin mode. Others rely on the sysctl, so it is left alone.
"""

import logging
from pathlib import Path

from fwdaemon import sysctl
from fwdaemon.desired import Desired
from fwdaemon.ledger import Ledger
from fwdaemon.model import Family
from fwdaemon.rtnetlink.client import RefusedError, Rtnetlink, interface_index
from fwdaemon.rtnetlink.link import set_hairpin_mode

_log = logging.getLogger(__name__)

_SWITCHES = {
    Family.IPV4: "net.bridge.bridge-nf-call-iptables",
    Family.IPV6: "net.bridge.bridge-nf-call-ip6tables",
}
_LINKS = Path("/sys/class/net")


class HairpinPorts:
    """Keeps bridge ports of guests with forwards in hairpin mode while that is needed, and puts them back after.

    The ports we switched are written down, since nothing else would tell a later run whose doing that was.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = ledger or Ledger("hairpin-ports")

    def keep(self, desired: Desired) -> None:
        """Set what openings need; reset what we set before and nobody needs now. Does nothing when all is well."""
        through_netfilter = {family for family, switch in _SWITCHES.items() if sysctl.read(switch) == "1"}
        ports = desired.bridge_ports if through_netfilter else ()
        needed, ours = {port for family, port in ports if family in through_netfilter}, self._ledger.lines
        if needed == ours:
            return
        changed = {port for port in needed - ours if _set(port, hairpin=True)}
        for port in ours - needed:
            _set(port, hairpin=False)
        self._ledger.write((ours & needed) | changed)


def _set(port: str, *, hairpin: bool) -> bool:
    """Switch a port; `False` where there is nothing to switch, since it is gone or somebody has done so before."""
    index = interface_index(port)
    if index is None or _is_in_hairpin_mode(port) == hairpin:
        return False
    try:
        with Rtnetlink() as kernel:
            set_hairpin_mode(kernel, index, hairpin=hairpin)
    except RefusedError as error:
        _log.debug("bridge port %s has no hairpin mode to set: %s", port, error)
        return False
    return True


def _is_in_hairpin_mode(port: str) -> bool:
    """Whether a port is in hairpin mode; what is not there, or no bridge port, is not."""
    try:
        return (_LINKS / port / "brport/hairpin_mode").read_text().strip() == "1"
    except OSError:
        return False
