"""Hairpin mode of bridge ports, for guests that reach themselves through the host.

Where bridged frames pass through netfilter (net.bridge.bridge-nf-call-iptables, which Docker and Kubernetes need),
a guest's connection to itself is translated while its frame is being bridged, and a bridge never sends a frame back out
of the port it came from, unless that port is in hairpin mode. Others rely on the sysctl, so it is left alone.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fwdaemon.core.report import ApplyResult, Setting
from fwdaemon.core.state import Desired
from fwdaemon.core.text import shown
from fwdaemon.core.types import Family
from fwdaemon.errors import KernelError
from fwdaemon.hostnet.owned_state import OwnedStateFile, Record
from fwdaemon.kernel import sysctl
from fwdaemon.kernel.rtnetlink import Kind, RefusedError, Rtnetlink

_log = logging.getLogger(__name__)

_SWITCHES = {
    Family.IPV4: "net.bridge.bridge-nf-call-iptables",
    Family.IPV6: "net.bridge.bridge-nf-call-ip6tables",
}

# Interfaces as ports of a bridge.
_BRIDGE = 7  # AF_BRIDGE


@dataclass(frozen=True, slots=True)
class BridgePort:
    """The number of an interface that is the port of a bridge, and whether it is in hairpin mode."""

    index: int
    hairpin: bool


def bridge_ports(kernel: Rtnetlink) -> dict[str, BridgePort]:
    """Give the ports of all bridges, by name."""
    ports = {}
    for fields, found in kernel.entries(Kind.LINK, {"family": _BRIDGE}):
        if "IFLA_PROTINFO" in found:
            mode: Any = found["IFLA_PROTINFO"].get_attr("IFLA_BRPORT_MODE")
            ports[found["IFLA_IFNAME"]] = BridgePort(fields["index"], bool(mode))
    return ports


def set_hairpin_mode(kernel: Rtnetlink, index: int, *, hairpin: bool) -> None:
    """Switch a bridge port.

    Raises:
        RefusedError: the interface is no port of a bridge.

    """
    setting = {"attrs": [("IFLA_BRPORT_MODE", int(hairpin))]}
    kernel.set(Kind.LINK, {"family": _BRIDGE, "index": index}, {"IFLA_PROTINFO": setting})


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
        """Set what exposures need; reset what we set before and nobody needs now.

        Unless `full`, ports that were needed before are not looked at again.

        Raises:
            KernelError: the kernel does not tell its bridge ports.

        """
        needed = _needed(desired)
        if not (needed or self._ours) or (needed == self._looked and not full):
            return ApplyResult()
        faults: dict[str, str] = {}
        with Rtnetlink() as kernel:
            ports = bridge_ports(kernel)
            self._record({port: index for port, index in self._ours.items() if _has(ports, port, index)})
            settings = list(self._set(kernel, ports, sorted(needed), faults))
            reset = self._reset(kernel, ports, self._ours.keys() - needed)
        self._right = {port: ports[port].index for port in needed - faults.keys() if port in ports}
        self._looked = None if faults else needed
        return ApplyResult(settings=tuple(settings), changed=bool(settings) or reset, faults=tuple(faults.values()))

    def _set(
        self, kernel: Rtnetlink, ports: _Ports, needed: Iterable[str], faults: dict[str, str]
    ) -> Iterator[Setting]:
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
                faults[name] = f"bridge port {shown(name)} is not in hairpin mode: {error}"
                continue
            if _switch(kernel, name, port.index, hairpin=True):
                yield Setting(f"hairpin mode of bridge port {shown(name)}", restored)

    def _reset(self, kernel: Rtnetlink, ports: _Ports, superfluous: Collection[str]) -> bool:
        switched = [
            _switch(kernel, name, ports[name].index, hairpin=False) for name in superfluous if ports[name].hairpin
        ]
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


def _switch(kernel: Rtnetlink, name: str, index: int, *, hairpin: bool) -> bool:
    """Switch a port; `False` where it went meanwhile."""
    try:
        set_hairpin_mode(kernel, index, hairpin=hairpin)
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
