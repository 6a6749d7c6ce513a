"""What tests of the keepers of the host's network share; `links` and `begin` of `conftest` give the host."""

from collections.abc import Callable
from dataclasses import replace

from fwdaemon.core.report import ApplyResult, Fault, FaultKind, joined
from fwdaemon.core.state import Desired
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.kernel import sysctl
from tests.kernel.links import Links

FILTERED = "net.bridge.bridge-nf-call-iptables"

MakeHost = Callable[[], SystemHostNetwork]


def without_forwarding(links: Links) -> Links:
    """Turn off on the host what our program turns on where that is needed."""
    links.host.sysctl("ipv4.ip_forward=0")
    sysctl.write(FILTERED, "0")
    return links


def apply(host: SystemHostNetwork, desired: Desired, *, full: bool = True) -> ApplyResult:
    """Have the host hold this; a proxy that is busy is asked again, as the daemon does."""
    host.release(desired)
    desired = host.confine(desired, ip_forward=True)
    result = host.apply(desired, ip_forward=True, full=full)
    if Fault(FaultKind.LOOPBACK_BUSY) in result.faults:
        return joined(replace(result, faults=(), short=False), apply(host, desired, full=full))
    return result
