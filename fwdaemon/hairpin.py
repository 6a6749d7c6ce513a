"""Hairpin mode of bridge ports, for guests that reach themselves through the host.

Where bridged frames pass through netfilter (net.bridge.bridge-nf-call-iptables, which Docker and Kubernetes need),
a guest's connection to itself is translated while its frame is being bridged, and a bridge never sends a frame back out
of the port it came from, unless that port is in hairpin mode. Others rely on the sysctl, so it is left alone.
"""

import logging
from collections.abc import Collection
from pathlib import Path

from fwdaemon.desired import Forward
from fwdaemon.model import Family

_log = logging.getLogger(__name__)

_SWITCHES = {
    Family.IPV4: Path("/proc/sys/net/bridge/bridge-nf-call-iptables"),
    Family.IPV6: Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
}
_LINKS = Path("/sys/class/net")
_RECORD = Path("/run/kvm-portfwd/hairpin-ports")


class HairpinPorts:
    """Keeps bridge ports of guests with forwards in hairpin mode while that is needed, and puts them back after.

    The ports we switched are written down, since nothing else would tell a later run whose doing that was.
    """

    def __init__(self, record: Path = _RECORD) -> None:
        self._record = record
        self._ours = _read(record)

    def keep(self, forwards: Collection[Forward]) -> None:
        """Set what `forwards` need; reset what we set before and nobody needs now. Does nothing when all is well."""
        through_netfilter = {family for family, switch in _SWITCHES.items() if _is_on(switch)}
        ports = {forward.bridge_port for forward in forwards if forward.family in through_netfilter}
        needed = {port for port in ports if port is not None}
        if needed == self._ours:
            return
        changed = {port for port in needed - self._ours if _set(port, hairpin=True)}
        for port in self._ours - needed:
            _set(port, hairpin=False)
        self._remember((self._ours & needed) | changed)

    def _remember(self, ports: set[str]) -> None:
        if ports == self._ours:
            return
        self._ours = ports
        try:
            self._record.parent.mkdir(mode=0o755, exist_ok=True)
            self._record.write_text("".join(f"{port}\n" for port in sorted(ports)))
        except OSError as error:
            _log.warning("cannot write %s (%s): ports in hairpin mode may stay so", self._record, error.strerror)


def _read(record: Path) -> set[str]:
    try:
        return set(record.read_text().split())
    except OSError:
        return set()


def _is_on(switch: Path) -> bool:
    """Whether a switch in /proc or /sys is 1; one that does not exist is off."""
    try:
        return switch.read_text().strip() == "1"
    except OSError:
        return False


def _set(port: str, *, hairpin: bool) -> bool:
    """Switch a port; `False` where there is nothing to switch, since it is gone or somebody has done so before."""
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415  takes 150 ms to import

    if _is_on(_LINKS / port / "brport/hairpin_mode") == hairpin:
        return False
    with IPRoute() as route:
        try:
            index = route.link_lookup(ifname=port)[0]
            route.brport("set", index=index, mode=int(hairpin))
        except (IndexError, NetlinkError) as error:
            _log.debug("bridge port %s has no hairpin mode to set: %s", port, error)
            return False
    return True
